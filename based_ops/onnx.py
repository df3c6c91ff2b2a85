"""Linear attention as ONNX says it: a model around the operator `LinearAttention` of opset 27.

    from based_ops import onnx
    onnx.save(onnx.model(based_ops.get("pos_elu_qk64_v64"), heads=8), "layer.onnx")

The operator adds k ⊗ v to a state, perhaps faded (`gated`) or corrected (`delta`, `gated_delta`) first, and
reads it by q.  What a spec says besides stands around it in nodes of ONNX: the feature map, keys of length 1,
and the normaliser, which is one more column of values, all ones.  Source: ONNX's document of the operator.
"""

from __future__ import annotations

from typing import Any

import torch

from .checks import count
from .errors import ArgumentTypeError, ArgumentValueError, fail
from .extras import require
from .state_base import State
from .variant import Variant

require("onnx", "based_ops.onnx")
from onnx import ModelProto, TensorProto, checker, helper, save  # noqa: E402

__all__ = ["OPSET", "model", "save"]

OPSET = 27
"""The first that has the operator."""
RULES = {
    ("none", "add"): "linear",
    ("head", "add"): "gated",
    ("token", "add"): "gated",
    ("none", "delta"): "delta",
    ("head", "delta"): "gated_delta",
    ("token", "delta"): "gated_delta",
}
"""The update rule of a spec's `decay` and `update`."""
_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}
_NODES = {
    **{name: name.capitalize() for name in ("neg", "exp", "log", "sqrt", "abs", "relu", "tanh", "sigmoid")},
    **{name: name.capitalize() for name in ("sin", "cos", "erf", "add", "sub", "mul", "div", "max", "min")},
    "gt": "Greater",
    "lt": "Less",
    "where": "Where",
}
"""ONNX's operators of an expression's (`codegen.spec.tree`)."""


def model(
    variant: Variant[State],
    heads: int,
    state_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ModelProto:
    """The layer with q of `heads` heads, and k, v and state of `state_heads`, a divisor (default: as many).

    Inputs are q [B,T,heads,qk], k [B,T,state_heads,qk] and v [B,T,state_heads,v] of `dtype`; g, [state_heads]
    or [B,T,state_heads], where the spec has a decay, and beta [B,T,state_heads] where it corrects values;
    `state` [B,state_heads,qk,v] and, where it normalises, `normalizer` [B,state_heads,qk], in float32 and 0
    before the first token.  Outputs are o [B,T,heads,v], `final_state` and `final_normalizer`.  B and T are
    free.

    Raises `ArgumentValueError` for a spec that the operator cannot say: of another mixer, with a map that is
    no function of a component, with parts, or with a state of two bytes, which rounds at random.
    """
    spec = _sayable(variant)
    if dtype not in _TYPES or dtype not in variant.dtypes:
        allowed = ", ".join(str(x) for x in _TYPES if x in variant.dtypes)
        fail(ArgumentValueError, "dtype", str(dtype), allowed)
    count("heads", heads, 1)
    state_heads = heads if state_heads is None else state_heads
    count("state_heads", state_heads, 1)
    if heads % state_heads:
        fail(ArgumentValueError, "state_heads", state_heads, f"a divisor of heads, {heads}")
    graph = _Graph(dtype)
    o, states = _attention(graph, spec, heads, state_heads)
    graph.give("o", o, dtype, ["B", "T", heads, spec.head_dims.v])
    rows = ["B", state_heads, spec.head_dims.qk]
    graph.give("final_state", states[0], torch.float32, [*rows, spec.head_dims.v])
    if spec.normalize:
        graph.give("final_normalizer", states[1], torch.float32, rows)
    made = helper.make_model(
        helper.make_graph(graph.nodes, variant.name, graph.inputs, graph.outputs, doc_string=spec.describe()),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="based_ops",
    )
    checker.check_model(made, full_check=True)
    return made


def _sayable(variant: Variant[State]) -> Any:
    """The spec, if the operator can say it."""
    if not isinstance(variant, Variant):
        fail(ArgumentTypeError, "variant", type(variant).__name__, "a variant, as `based_ops.get` gives it")
    spec: Any = variant.spec

    def refuse(got: str, must: str) -> None:
        fail(
            ArgumentValueError, "variant", f"{variant.name}, {got}", f"{must}: ONNX's operator says no other"
        )

    if spec.mixer != "linear_attention":
        refuse(f"a {spec.mixer}", "a linear_attention")
    if spec.feature_map.kind != "elementwise":
        refuse(f"with the map {spec.feature_map.kind}", "a layer with an elementwise map")
    if spec.parts or spec.key_parts:
        refuse("whose queries and keys become features first", "a layer without parts")
    if spec.state_dtype != "float32":
        refuse(f"with a state of {spec.state_dtype}", "a layer with a state of float32")
    return spec


class _Graph:
    """Nodes as they come, each called by its output."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The output of one more node."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"{operator.lower()}_{len(self.nodes)}{'abc'[i]}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def numbers(self, *values: int) -> str:
        """A shape, or axes."""
        return self.node("Constant", value_ints=list(values))

    def number(self, value: float, dtype: torch.dtype | None = None) -> str:
        tensor = helper.make_tensor("value", _TYPES[dtype or self.dtype], [], [value])
        return self.node("Constant", value=tensor)

    def take(self, name: str, shape: list[int | str], dtype: torch.dtype | None = None) -> str:
        """An input of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype or self.dtype], shape))
        return name

    def give(self, name: str, value: str, dtype: torch.dtype, shape: list[Any]) -> None:
        """An output of the model."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def apart(self, x: str, first: int, second: int) -> tuple[str, str]:
        """The first so many of the last axis, and the rest."""
        parts = self.several("Split", 2, x, self.numbers(first, second), axis=-1)
        return parts[0], parts[1]


def _attention(graph: _Graph, spec: Any, heads: int, state_heads: int) -> tuple[str, list[str]]:
    """The output, and what is kept: the state, and the normaliser if there is one."""
    qk, v = spec.head_dims.qk, spec.head_dims.v
    corrects, scale = spec.update == "delta", float(spec.default_scale())
    query = _features(graph, spec, graph.take("q", ["B", "T", heads, qk]))
    key = _features(graph, spec, graph.take("k", ["B", "T", state_heads, qk]))
    value = graph.take("v", ["B", "T", state_heads, v])
    decay = _decay(graph, spec, query, state_heads)
    beta = graph.take("beta", ["B", "T", state_heads]) if corrects else ""
    past = graph.take("state", ["B", state_heads, qk, v], torch.float32)
    if corrects:  # ours is divided by the weight that a key of length 1 has for itself, and read with it
        past = graph.node("Mul", past, graph.number(scale, torch.float32))
    if spec.normalize:
        column = graph.take("normalizer", ["B", state_heads, qk], torch.float32)
        past = graph.node("Concat", past, graph.node("Unsqueeze", column, graph.numbers(-1)), axis=-1)
        first, _ = graph.apart(value, 1, v - 1)
        ones = graph.node("Add", graph.node("Mul", first, graph.number(0.0)), graph.number(1.0))
        value = graph.node("Concat", value, ones, axis=-1)
    flat = [graph.node("Reshape", x, graph.numbers(0, 0, -1)) for x in (query, key, value)]
    attention = {"q_num_heads": heads, "kv_num_heads": state_heads, "scale": 1.0 if corrects else scale}
    rule = RULES[spec.decay, spec.update]
    o, state = graph.several("LinearAttention", 2, *flat, past, decay, beta, update_rule=rule, **attention)
    width = v + spec.normalize
    o = graph.node("Reshape", o, graph.numbers(0, 0, heads, width))
    if not spec.normalize:
        if corrects:
            state = graph.node("Div", state, graph.number(scale, torch.float32))
        return o, [state]
    sums, weights = graph.apart(o, v, 1)
    o = graph.node("Div", sums, graph.node("Add", weights, graph.number(spec.eps)))
    state, column = graph.apart(state, v, 1)
    return o, [state, graph.node("Squeeze", column, graph.numbers(-1))]


def _decay(graph: _Graph, spec: Any, like: str, state_heads: int) -> str:
    """The logarithm of what is left of the state, [B,T,state_heads]."""
    if spec.decay == "none":
        return ""
    if spec.decay == "token":
        return graph.take("g", ["B", "T", state_heads])
    lengths = graph.node("Shape", like, start=0, end=2)
    shape = graph.node("Concat", lengths, graph.numbers(state_heads), axis=0)
    return graph.node("Expand", graph.take("g", [state_heads]), shape)


def _features(graph: _Graph, spec: Any, x: str) -> str:
    """φ of queries or keys."""
    from based_ops.codegen.spec.feature_map import parse, to_tree

    if spec.unit_keys:
        x = graph.node("LpNormalization", x, axis=-1, p=2)
    return _expression(graph, to_tree(parse(spec.feature_map.expression)), x)


def _expression(graph: _Graph, tree: Any, x: str) -> str:
    operator, *arguments = tree
    if operator == "x":
        return x
    if operator == "const":
        return graph.number(arguments[0])
    given = [_expression(graph, argument, x) for argument in arguments]
    one = graph.number(1.0) if operator in ("expm1", "log1p", "erfc") else ""
    match operator:
        case "expm1":
            return graph.node("Sub", graph.node("Exp", *given), one)
        case "log1p":
            return graph.node("Log", graph.node("Add", *given, one))
        case "erfc":
            return graph.node("Sub", one, graph.node("Erf", *given))
        case "if_positive":  # what a slope chooses; of NaN it is NaN
            above = graph.node("Greater", given[0], graph.number(0.0))
            return graph.node("Where", above, given[1], graph.node("Relu", given[0]))
    return graph.node(_NODES[operator], *given)
