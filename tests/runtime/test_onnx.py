"""Linear attention as ONNX's operator says it, evaluated by ONNX, against naive mathematics in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import based_ops
from based_ops.errors import ArgumentTypeError, ArgumentValueError
from based_ops.variant import Variant

onnx = pytest.importorskip("onnx", minversion="1.23")
reference = pytest.importorskip("onnx.reference")
from based_ops import onnx as ours  # noqa: E402

SAYABLE = [
    "identity_qk64_v64",
    "relu_qk64_v64",
    "pos_elu_qk64_v64",
    "exp_qk64_v64",
    "silu_qk64_v64",
    "sigmoid_qk64_v64",
    "square_qk64_v64",
    "lightning_qk64_v64",
    "retention_qk64_v64",
    "simple_gla_qk64_v64",
    "mamba2_qk64_v64",
    "delta_qk64_v64",
    "gated_delta_qk64_v64",
]


def inputs(
    op: Variant[Any], batch: int, length: int, heads: int, state_heads: int
) -> dict[str, torch.Tensor]:
    """Tensors by the names of calls, in float64."""
    made = {
        "q": torch.randn(batch, length, heads, op.qk),
        "k": torch.randn(batch, length, state_heads, op.qk),
        "v": torch.randn(batch, length, state_heads, op.v),
    }
    if op.spec.decay != "none":
        shape = (state_heads,) if op.spec.decay == "head" else (batch, length, state_heads)
        made["g"] = -torch.rand(shape)
    if op.spec.update == "delta":
        made["beta"] = torch.rand(batch, length, state_heads)
    return {name: x.double() for name, x in made.items()}


def evaluated(made: Any, feed: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    given = {name: x.float().numpy() for name, x in feed.items()}
    return [torch.from_numpy(np.array(x)) for x in reference.ReferenceEvaluator(made).run(None, given)]


def check(op: Variant[Any], batch: int, length: int, heads: int, state_heads: int) -> None:
    """Two calls, of which the second goes on from the state of the first."""
    made = ours.model(op, heads, state_heads)
    state, feed = None, {"state": torch.zeros(batch, state_heads, op.qk, op.v)}
    if op.spec.normalize:
        feed["normalizer"] = torch.zeros(batch, state_heads, op.qk)
    for _ in range(2):
        tensors = inputs(op, batch, length, heads, state_heads)
        found = evaluated(made, feed | tensors)
        want, state = op.reference(**tensors, initial_state=state, output_final_state=True)
        wanted = [want, *(x for x in state if x is not None)]
        for x, y in zip(found, wanted, strict=True):
            assert x.shape == y.shape and (x - y).norm() <= 1e-5 * y.norm(), op.name
        feed = dict(zip(("state", "normalizer"), found[1:], strict=False))


@pytest.mark.parametrize("name", SAYABLE)
def test_it_is_the_layer(name: str) -> None:
    torch.manual_seed(0)
    check(based_ops.get(name), 2, 5, 4, 2)


MAPS = (
    "x",
    "exp(x)",
    "elu(x) + 1",
    "softplus(x)**2",
    "gelu(x) + 1",
    "log(1 + x**2)",
    "maximum(x, 0.5)",
    "cos(x) + 2",
)


@settings(max_examples=12, deadline=None)
@given(
    expression=st.sampled_from(MAPS),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)),
    normalize=st.booleans(),
    decay=st.sampled_from(("none", "head", "token")),
    scale=st.sampled_from((0.25, 1.0, 3.0)),
)
def test_any_map(
    tmp_path_factory: pytest.TempPathFactory,
    expression: str,
    sizes: tuple[int, int, int, int],
    normalize: bool,
    decay: str,
    scale: float,
) -> None:
    batch, length, groups, state_heads = sizes
    spec = tmp_path_factory.mktemp("spec") / "drawn.yaml"
    spec.write_text(
        "name: drawn\nmixer: linear_attention\n"
        f"feature_map: {{kind: elementwise, expression: '{expression}'}}\n"
        f"head_dims: {{qk: 8, v: 16}}\nnormalize: {str(normalize).lower()}\ndecay: {decay}\n"
        f"signed_weights: {str(normalize and expression == 'x').lower()}\nscale: {scale}\n"
    )
    op = based_ops.load(spec)
    if normalize and expression == "x":  # a sum that may vanish says nothing of digits
        ours.model(op, groups * state_heads, state_heads)
    else:
        check(op, batch, length, groups * state_heads, state_heads)


def test_two_bytes() -> None:
    """In bfloat16 and float16 it is a model that ONNX takes, with a state in float32."""
    op = based_ops.get("gated_delta_qk64_v64")
    for dtype in (torch.bfloat16, torch.float16):
        made = ours.model(op, 2, dtype=dtype)
        types = {x.name: x.type.tensor_type.elem_type for x in [*made.graph.input, *made.graph.output]}
        assert types["state"] == types["final_state"] == onnx.TensorProto.FLOAT
        assert types["q"] == types["o"] != onnx.TensorProto.FLOAT


def test_it_goes_to_disk(tmp_path: Path) -> None:
    made = ours.model(based_ops.get("relu_qk64_v64"), 2)
    ours.save(made, tmp_path / "layer.onnx")
    again = onnx.load(tmp_path / "layer.onnx")
    assert again == made and again.opset_import[0].version == ours.OPSET
    (node,) = [x for x in again.graph.node if x.op_type == "LinearAttention"]
    assert {x.name for x in node.attribute} == {"kv_num_heads", "q_num_heads", "scale", "update_rule"}


@pytest.mark.parametrize(
    "name, why",
    [
        ("window64_d64", "a sliding_window, must be a linear_attention"),
        ("conv3_silu", "a short_conv, must be a linear_attention"),
        ("taylor2_qk16_v64", "with the map taylor_exp, must be a layer with an elementwise map"),
        ("hedgehog_qk64_v64", "features first, must be a layer without parts"),
    ],
)
def test_what_it_cannot_say_is_an_error(name: str, why: str) -> None:
    with pytest.raises(ArgumentValueError, match=re.escape(why)):
        ours.model(based_ops.get(name), 2)


def test_arguments_are_checked(tmp_path: Path) -> None:
    op = based_ops.get("relu_qk64_v64")
    with pytest.raises(ArgumentValueError, match="state_heads: got 3, must be a divisor of heads, 4"):
        ours.model(op, 4, 3)
    with pytest.raises(ArgumentValueError, match="dtype: got torch.float64"):
        ours.model(op, 4, dtype=torch.float64)
    with pytest.raises(ArgumentTypeError, match="variant: got str"):
        ours.model("relu_qk64_v64", 4)  # type: ignore[arg-type]
    spec = tmp_path / "narrow.yaml"
    text = (Path(based_ops.__file__).parent / "specs" / "relu_qk64_v64.yaml").read_text(encoding="utf-8")
    text = text.replace("name: relu_qk64_v64", "name: narrow").replace(
        "state_dtype: float32", "state_dtype: bfloat16"
    )
    spec.write_text(text)
    with pytest.raises(ArgumentValueError, match="with a state of bfloat16"):
        ours.model(based_ops.load(spec), 4)
