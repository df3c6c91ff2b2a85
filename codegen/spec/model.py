"""What a layer is: frozen dataclasses that hold meaning only, and no tile size.

The runtime imports this module, so it needs neither YAML nor sympy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .fields import (
    Choice,
    Choices,
    Expression,
    Flag,
    Integer,
    Name,
    Number,
    Record,
    Tagged,
    spec_field,
    spec_fields,
)

DTYPES = ("bfloat16", "float16", "float32")
MAX_WINDOW = 4096

QK_DOC = "Width of a query and of a key."
V_DOC = "Width of a value."
DTYPES_DOC = "Dtypes of the inputs that this layer serves."


@dataclass(frozen=True)
class HeadDims:
    """Widths of one head.  The mixer says how wide is allowed."""

    qk: int = spec_field(Integer(8, 128), QK_DOC)
    v: int = spec_field(Integer(16, 256), V_DOC)


@dataclass(frozen=True)
class TaylorExp:
    """A_ij = Σ_{n ≤ order} (scale·q_i·k_j)ⁿ / n!, the start of the series of exp."""

    kind: ClassVar[str] = "taylor_exp"
    order: int = spec_field(Integer(1, 2), "Highest power of q·k that is kept.")


@dataclass(frozen=True)
class Elementwise:
    """A_ij = φ(q_i)·φ(k_j) with φ applied to each component; `expression` is φ(x) in canonical form."""

    kind: ClassVar[str] = "elementwise"
    expression: str = spec_field(Expression(), "The map φ as an expression in x, such as elu(x) + 1.")


FeatureMap = TaylorExp | Elementwise
FEATURE_MAPS: dict[str, type[FeatureMap]] = {cls.kind: cls for cls in (TaylorExp, Elementwise)}


@dataclass(frozen=True)
class LinearAttention:
    """o_i = Σ_{j ≤ i} A_ij v_j / (Σ_{j ≤ i} A_ij + eps), or without the denominator."""

    mixer: ClassVar[str] = "linear_attention"
    summary: ClassVar[str] = (
        "Causal linear attention: a recurrent state of fixed size instead of a key-value cache."
    )

    name: str = spec_field(Name(), "Name of the layer and of its operators; equal to the name of the file.")
    feature_map: FeatureMap = spec_field(
        Tagged("kind", FEATURE_MAPS), "How a query and a key become a weight."
    )
    head_dims: HeadDims = spec_field(
        Record(HeadDims, {"qk": Integer(8, 64), "v": Integer(16, 256)}), "Widths of one head."
    )
    normalize: bool = spec_field(Flag(), "Divide by the sum of the weights.", True)
    eps: float = spec_field(Number(0.0, 1.0), "Added to the sum of the weights before the division.", 1e-6)
    scale: float | None = spec_field(
        Number(0.0, 1e6, above=True, optional=True),
        "Factor on q·k; null means 1/sqrt(qk) for taylor_exp and 1 for elementwise.",
        None,
    )
    state_dtype: str = spec_field(
        Choice(("float32", "bfloat16", "float16")), "Dtype in which the recurrent state is kept.", "float32"
    )
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def default_scale(self) -> float:
        """The factor on q·k that is used when a call gives none."""
        if self.scale is not None:
            return self.scale
        return 1.0 / math.sqrt(self.head_dims.qk) if isinstance(self.feature_map, TaylorExp) else 1.0


@dataclass(frozen=True)
class SlidingWindow:
    """Causal softmax attention over the last `window` keys, the query's own included."""

    mixer: ClassVar[str] = "sliding_window"
    summary: ClassVar[str] = "Causal softmax attention in which a query sees the last keys only."

    name: str = spec_field(Name(), "Name of the layer and of its operators; equal to the name of the file.")
    window: int = spec_field(Integer(1, MAX_WINDOW), "Number of keys that a query sees, its own included.")
    head_dims: HeadDims = spec_field(
        Record(HeadDims, {"qk": Integer(8, 128), "v": Integer(16, 256)}), "Widths of one head."
    )
    scale: float | None = spec_field(
        Number(0.0, 1e6, above=True, optional=True), "Factor on q·k; null means 1/sqrt(qk).", None
    )
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def default_scale(self) -> float:
        """The factor on q·k that is used when a call gives none."""
        return self.scale if self.scale is not None else 1.0 / math.sqrt(self.head_dims.qk)


LayerSpec = LinearAttention | SlidingWindow
MIXERS: dict[str, type[LayerSpec]] = {cls.mixer: cls for cls in (LinearAttention, SlidingWindow)}


def spec_to_dict(spec: LayerSpec) -> dict[str, Any]:
    """The spec as plain data, in the order of a spec file.  A scale that is the default is left out."""
    data: dict[str, Any] = {"name": spec.name, "mixer": spec.mixer}
    for name in spec_fields(type(spec)):
        value = getattr(spec, name)
        if isinstance(value, TaylorExp | Elementwise):
            data[name] = {"kind": value.kind} | {
                inner: getattr(value, inner) for inner in spec_fields(type(value))
            }
        elif isinstance(value, HeadDims):
            data[name] = {"qk": value.qk, "v": value.v}
        elif isinstance(value, tuple):
            data[name] = list(value)
        elif value is not None:
            data[name] = value
    return data


def spec_from_dict(data: Mapping[str, Any]) -> LayerSpec:
    """The inverse of `spec_to_dict`.  It trusts `data`; text from a user goes through `load` instead."""
    values = {name: value for name, value in data.items() if name != "mixer"}
    values["head_dims"] = HeadDims(**values["head_dims"])
    if "dtypes" in values:
        values["dtypes"] = tuple(values["dtypes"])
    if "feature_map" in values:
        inner = dict(values["feature_map"])
        values["feature_map"] = FEATURE_MAPS[inner.pop("kind")](**inner)
    return MIXERS[data["mixer"]](**values)


_YAML_WORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null"})


def yaml_scalar(value: bool | int | float | str) -> str:
    """One value as YAML 1.1 reads it back: its floats need a point, and some of its words are not text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        mantissa, _, exponent = repr(value).partition("e")
        return mantissa + ("" if "." in mantissa else ".0") + (f"e{int(exponent):+d}" if exponent else "")
    if isinstance(value, str) and value in _YAML_WORDS:
        return f'"{value}"'
    return str(value)


def dump_yaml(spec: LayerSpec) -> str:
    """The spec as the text of a spec file; loading it gives an equal spec."""
    lines = []
    for name, value in spec_to_dict(spec).items():
        if isinstance(value, list):
            lines.append(f"{name}: [{', '.join(map(yaml_scalar, value))}]")
        elif name == "head_dims":
            lines.append(f"{name}: {{qk: {value['qk']}, v: {value['v']}}}")
        elif isinstance(value, dict):
            lines += [f"{name}:", *(f"  {inner}: {yaml_scalar(item)}" for inner, item in value.items())]
        else:
            lines.append(f"{name}: {yaml_scalar(value)}")
    return "\n".join(lines) + "\n"
