"""Public signatures say what they take and give: no `Any`, also not behind an alias."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import Any, get_args

import pytest

import based_ops
from based_ops.codegen.names import BACKENDS
from based_ops.dispatch import Backend

ROOMS = (
    "",
    "layers",
    "models",
    "generate",
    "train",
    "recall",
    "recall.mqar",
    "recall.designs",
    "onnx",
    "hippo",
    "distill",
)
CALLED = ("__init__", "__call__")
"""Methods without a name of their own that users call."""


def public(room: str) -> Iterator[tuple[str, object]]:
    """Functions and classes that a room offers, with the methods of the classes that are ours."""
    module = importlib.import_module("based_ops" + (f".{room}" if room else ""))
    own = [name for name, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", [x for x in own if not x.startswith("_")]):
        found = getattr(module, name)
        if inspect.isclass(found):
            for kind in found.__mro__:
                if kind.__module__.startswith("based_ops"):
                    yield from methods(kind)
        elif inspect.isfunction(found):
            yield f"{module.__name__}.{name}", found


def methods(kind: type) -> Iterator[tuple[str, object]]:
    said = inspect.get_annotations(kind)
    for name, x in vars(kind).items():
        if isinstance(x, property) and name in said:
            assert "Any" not in named(said[name])
            continue
        plain = x.fget if isinstance(x, property) else getattr(x, "__func__", x)
        if getattr(plain, "__isabstractmethod__", False):
            continue  # each mixer says its own
        if inspect.isfunction(plain) and (name in CALLED or not name.startswith("_")):
            yield f"{kind.__module__}.{kind.__name__}.{name}", plain


def named(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def says_any(text: str, names: dict[str, Any]) -> bool:
    """Whether an annotation has `Any` in it, or an alias of this project that has."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Name):
            meaning = names.get(node.id)
            if meaning is Any or "typing.Any" in str(meaning) and not inspect.isclass(meaning):
                return True
    return False


FUNCTIONS = sorted({name: x for room in ROOMS for name, x in public(room)}.items())


@pytest.mark.parametrize("function", [x for _, x in FUNCTIONS], ids=[name for name, _ in FUNCTIONS])
def test_signatures_say_what_they_mean(function: Any) -> None:
    signature = inspect.signature(function)
    annotations = {
        name: x.annotation for name, x in signature.parameters.items() if name not in ("self", "cls")
    }
    annotations["return"] = signature.return_annotation
    unsaid = [name for name, x in annotations.items() if x is inspect.Signature.empty]
    if function.__name__ == "__init__":
        unsaid = [name for name in unsaid if name != "return"]
    vague = [name for name, x in annotations.items() if says_any(named(x), function.__globals__)]
    assert not vague and not unsaid


def test_enough_is_looked_at() -> None:
    names = [name for name, _ in FUNCTIONS]
    assert len(names) > 100 and "based_ops.models.language_model.LanguageModel.step" in names


def test_backends_are_those_of_the_compiler() -> None:
    assert set(get_args(Backend)) == set(BACKENDS)


def test_variants_are_generic_in_their_states() -> None:
    """What a checker knows of a layer's state, as plain types."""
    op = based_ops.get("window64_d64")
    (base,) = [x for x in type(op).__orig_bases__ if get_args(x)]  # type: ignore[attr-defined]
    assert get_args(base) == (based_ops.SlidingWindowState,)
