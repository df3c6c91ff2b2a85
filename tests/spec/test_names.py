"""Names of layers, operators and files; what errors look like."""

from __future__ import annotations

import keyword
import pickle
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen import names
from based_ops.codegen.errors import SpecError, SpecErrors, nearest_name


@given(st.text(max_size=80))
def test_a_valid_name_is_a_plain_identifier(text: str) -> None:
    if names.name_problem(text) is None:
        assert text.isidentifier() and text.isascii() and text == text.lower() and not keyword.iskeyword(text)
        assert names.variant_file(text, "torch").parts == (text, "torch.py")


@pytest.mark.parametrize(
    "name", ["", "A", "a-b", "a.b", "../a", "a/b", "_a", "1a", "a b", "a\n", "é", "class", "a" * 65]
)
def test_what_cannot_be_a_name(name: str) -> None:
    assert names.name_problem(name) is not None


@given(st.text(max_size=80))
def test_suggestions_are_valid(text: str) -> None:
    suggestion = names.suggest_name(text)
    assert suggestion is None or names.name_problem(suggestion) is None


def test_names_of_operators_and_files() -> None:
    assert names.op_name("w", "forward") == "w_forward"
    assert names.qualified_op_name("w", "step") == "based_ops::w_step"
    assert names.variant_file("w", "triton") == PurePosixPath("w/triton.py")
    assert names.spec_file("w") == PurePosixPath("w.yaml")


def test_an_error_as_text() -> None:
    assert str(SpecError("a.yaml", 3, 7, "wrong")) == "a.yaml:3:7: wrong"
    assert str(SpecError("a.yaml", 0, 0, "wrong")) == "a.yaml: wrong"
    full = SpecError("a.yaml", 3, 7, "wrong", ("b", "c"), "b")
    assert str(full) == "a.yaml:3:7: wrong (allowed: b, c; did you mean `b`?)"


def test_errors_are_sorted_and_survive_pickling() -> None:
    later, sooner = SpecError("a", 2, 1, "second"), SpecError("a", 1, 9, "first")
    errors = SpecErrors([later, sooner])
    assert errors.errors == (sooner, later)
    assert pickle.loads(pickle.dumps(errors)).errors == errors.errors
    assert str(errors) == "a:1:9: first\na:2:1: second"


def test_nearest_names() -> None:
    assert nearest_name("Taylor-Exp", ["taylor_exp", "elementwise"]) == "taylor_exp"
    assert nearest_name("half", ["bfloat16", "float16"]) == "float16"
    assert nearest_name("half", ["alpha"]) is None
    assert nearest_name("zzz", ["alpha"]) is None
