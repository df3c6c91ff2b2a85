"""Tables of the page of concepts: shipped layers in the one sentence, their states, and tolerances."""

from __future__ import annotations

import inspect
from typing import Any

import based_ops
from based_ops import tolerance
from based_ops.codegen.mixers import mixers

from .spec_reference import shipped_layers

SHOWN = (
    *("taylor2_qk16_v64", "pos_elu_qk64_v64", "identity_qk64_v64", "window64_d64"),
    *("hybrid_taylor2_qk16_v64_w64", "lolcats_qk64_v64_w64"),
)
"""Layers whose states the page compares."""


def sentence() -> str:
    """One line for each layer with queries: its words."""
    rows = [
        "| layer | κ(q, k) | decay | window | divided by | enters |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, spec in shipped_layers().items():
        if "qk" in spec.facts():
            rows.append(f"| `{name}` | {' | '.join(_words(spec))} |")
    return "\n".join(rows)


def without_queries() -> str:
    """A line for each mixer that has no queries: what it computes."""
    lines = []
    for name, cls in mixers().items():
        shown = [layer for layer, spec in shipped_layers().items() if spec.mixer == name]
        if "qk" not in cls.fact_types:
            said = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
            lines.append(f"- `{name}`: {said} Shipped: {', '.join(f'`{x}`' for x in shown)}.")
    return "\n".join(lines)


def _words(spec: Any) -> tuple[str, ...]:
    feature_map = getattr(spec, "feature_map", None)
    kappa = f"`{feature_map.weight}`" if feature_map else "softmax alone"
    parts = [f"`{getattr(x, 'expression', x.kind)}`" for x in getattr(spec, "parts", ())]
    if parts:
        kappa += f" after {', '.join(parts)}"
    if getattr(spec, "unit_keys", False):
        kappa += ", of unit length"
    divides = {True: "sum + eps", False: "1"}[getattr(spec, "normalize", True)]
    if feature_map is None:
        divides = "sum"
    elif getattr(spec, "combine", "normalizer") == "sum":
        divides = "each its own sum"
    decay = {"none": "none", "head": "a head", "token": "a token and head"}[getattr(spec, "decay", "none")]
    window = str(getattr(spec, "window", "none"))
    return kappa, decay, window, divides, "corrected" if getattr(spec, "corrects", False) else "as it is"


def states() -> str:
    """Bytes of the state of one sequence and head, for some layers."""
    rows = [
        "| layer | rows of the state | bytes of one sequence and head, bfloat16 inputs |",
        "| --- | --- | --- |",
    ]
    for name in SHOWN:
        op = based_ops.get(name)
        size = op.state_bytes(1, 1, dtype=op.dtypes[0])
        feature_map = getattr(op.spec, "feature_map", None)
        count = feature_map.features(op.spec.core.head_dims.qk) if feature_map else "none"
        keys = f", and {op.spec.window} keys and values" if hasattr(op.spec, "window") else ""
        rows.append(f"| `{name}` | {count}{keys} | {size:,} |")
    return "\n".join(rows)


def tolerances() -> str:
    """The bounds of `based_ops.tolerance`."""
    rows = ["| dtype | outputs, norm | outputs, worst | gradients, norm | gradients, worst |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for dtype, forward in tolerance.FORWARD.items():
        backward = tolerance.BACKWARD[dtype]
        bounds = (forward.norm, forward.worst, backward.norm, backward.worst)
        rows.append(f"| {str(dtype).removeprefix('torch.')} | {' | '.join(f'{x:g}' for x in bounds)} |")
    return "\n".join(rows)
