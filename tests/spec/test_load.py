"""Reading specs: files, directories, and the way back to YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen.dtypes import DTYPES
from based_ops.codegen.errors import SpecErrors
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.spec.load import load_dir, load_file, parse_spec
from based_ops.codegen.spec.model import (
    HeadDims,
    LayerSpec,
    Power,
    TaylorExp,
    dump_yaml,
    spec_from_dict,
    spec_to_dict,
)
from based_ops.codegen.spec.source import MAX_BYTES
from tests.strategies import layer_specs

SPECS = Path(__file__).parents[2] / "specs"
TAYLOR = LinearAttention("good", TaylorExp(2), HeadDims(16, 64))


@given(layer_specs())
def test_loading_a_dump_is_the_identity(spec: LayerSpec) -> None:
    text = dump_yaml(spec)
    assert parse_spec(text, stem=spec.name) == spec
    assert dump_yaml(parse_spec(text)) == text


@given(layer_specs())
def test_plain_data_round_trips(spec: LayerSpec) -> None:
    data = spec_to_dict(spec)
    assert spec_from_dict(data) == spec
    # What a dump says in YAML is what the plain data says in Python.
    assert yaml.safe_load(dump_yaml(spec)) == data


@given(st.text(alphabet="abn:e{}[]&*!|>-'\"\n\t 01.#?,mixer", max_size=60) | st.binary(max_size=60))
def test_any_text_loads_or_is_refused(text: str | bytes) -> None:
    with pytest.raises(SpecErrors) as caught:
        parse_spec(text)
    assert all(error.line >= 1 and error.column >= 1 and error.message for error in caught.value.errors)


def test_defaults() -> None:
    text = (
        "name: good\nmixer: linear_attention\nfeature_map: {kind: taylor_exp, order: 2}\n"
        "head_dims: {qk: 16, v: 64}\n"
    )
    spec = parse_spec(text)
    assert spec == TAYLOR
    assert isinstance(spec, LinearAttention)
    assert (spec.normalize, spec.eps, spec.scale, spec.state_dtype) == (True, 1e-6, None, "float32")
    assert spec.dtypes == DTYPES


def test_dtypes_are_kept_in_one_order() -> None:
    text = dump_yaml(TAYLOR).replace("[bfloat16, float16, float32]", "[float32, bfloat16]")
    assert parse_spec(text).dtypes == ("bfloat16", "float32")


def test_an_expression_is_kept_in_canonical_form() -> None:
    text = (
        "name: good\nmixer: linear_attention\nfeature_map: {kind: elementwise, expression: 1+elu( x )}\n"
        "head_dims: {qk: 16, v: 64}\nscale: null\n"
    )
    assert spec_to_dict(parse_spec(text))["feature_map"] == {
        "kind": "elementwise",
        "expression": "elu(x) + 1",
    }


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (TAYLOR, 0.25),
        (LinearAttention("p", Power(2), HeadDims(16, 64)), 0.25),
        (SlidingWindow("w", 4, HeadDims(64, 64)), 0.125),
        (LinearAttention("s", TaylorExp(1), HeadDims(16, 64), scale=2.0), 2.0),
        (SlidingWindow("w", 4, HeadDims(64, 64), scale=3.0), 3.0),
    ],
)
def test_default_scale(spec: LayerSpec, scale: float) -> None:
    assert spec.default_scale() == scale


def test_an_elementwise_map_has_no_scale_of_its_own() -> None:
    assert load_file(SPECS / "relu_qk64_v64.yaml").default_scale() == 1.0


def test_shipped_specs() -> None:
    specs = load_dir(SPECS)
    assert list(specs) == [
        "allpoly_qk64_v64",
        "conv3_silu",
        "conv4_plain",
        "conv4_silu",
        "cosformer_qk64_v64",
        "delta_qk128_v128",
        "delta_qk64_v64",
        "dpfp_qk64_v64",
        "exp_qk64_v64",
        "gated_delta_qk128_v128",
        "gated_delta_qk64_v64",
        "hedgehog_qk64_v64",
        "hedgehog_separate_qk64_v64",
        "hybrid_taylor2_qk16_v64_w64",
        "identity_qk128_v128",
        "identity_qk64_v64",
        "lightning_qk64_v64",
        "lolcats_qk64_v64_w64",
        "long_conv_l2048",
        "long_conv_l2048_h16",
        "mamba2_qk64_v64",
        "performer_qk64_v64",
        "pos_elu_qk64_v64",
        "power2_qk16_v64",
        "rebased_qk16_v64",
        "relu_qk64_v64",
        "retention_qk64_v64",
        "s4d_n64",
        "s4d_n64_h16",
        "sigmoid_qk64_v64",
        "silu_qk64_v64",
        "simple_gla_qk64_v64",
        "square_delta_qk16_v64",
        "square_qk64_v64",
        "t2r_qk64_v64",
        "taylor1_qk16_v64",
        "taylor2_decay_qk16_v64",
        "taylor2_delta_qk16_v64",
        "taylor2_gated_delta_qk16_v64",
        "taylor2_qk16_v112",
        "taylor2_qk16_v128",
        "taylor2_qk16_v64",
        "taylor2_replay_qk16_v112",
        "taylor2_replay_qk16_v64",
        "taylor3_qk16_v64",
        "taylor3_qk8_v64",
        "window128_d64",
        "window129_d112",
        "window129_d64",
        "window16_d64",
        "window256_d64",
        "window64_d112",
        "window64_d64",
    ]
    for name, spec in specs.items():
        lines = (SPECS / f"{name}.yaml").read_text().splitlines()
        assert lines[0] == "# yaml-language-server: $schema=schema.json"
        assert lines[1].startswith("# ")
        assert load_file(SPECS / f"{name}.yaml") == spec


def test_chosen_names_only(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(dump_yaml(TAYLOR))
    (tmp_path / "broken.yaml").write_text("")
    assert load_dir(tmp_path, ["good"]) == {"good": TAYLOR}
    with pytest.raises(SpecErrors) as caught:
        load_dir(tmp_path, ["good", "god"])
    assert (
        str(caught.value) == f"{tmp_path}: there is no layer `god` in this directory (did you mean `good`?)"
    )


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(dump_yaml(TAYLOR))
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / ".hidden.yaml").write_text("")
    assert load_dir(tmp_path) == {"good": TAYLOR}


def test_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors) as caught:
        load_file(tmp_path / "none.yaml")
    assert str(caught.value) == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"
    with pytest.raises(SpecErrors) as caught:
        load_dir(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}: cannot be read: No such file or directory"
    with pytest.raises(SpecErrors) as caught:
        load_dir(tmp_path)
    assert str(caught.value) == f"{tmp_path}: there is no spec (*.yaml) in this directory"


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(dump_yaml(TAYLOR) + "#" * MAX_BYTES)
    with pytest.raises(SpecErrors) as caught:
        load_file(path)
    assert str(caught.value) == f"{path}:1:1: the file is larger than {MAX_BYTES} bytes"


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    assert parse_spec(b"\xef\xbb\xbf" + dump_yaml(TAYLOR).replace("\n", "\r\n").encode()) == TAYLOR


def test_the_model_imports_neither_yaml_nor_sympy() -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); import codegen.spec.model, codegen.names, codegen.errors\n"
        "print([name for name in ('yaml', 'sympy', 'torch', 'triton', 'tilelang') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=SPECS.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_layers_without_expressions_load_without_sympy() -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); from codegen.spec.load import load_file\n"
        "load_file('specs/taylor2_qk16_v64.yaml'); print('sympy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=SPECS.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
