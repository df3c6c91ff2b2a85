"""Running sums over segments: the state before (or after) each of them."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    STATE,
    Axis,
    Cast,
    Full,
    Load,
    Program,
    Span,
    Var,
    cdiv,
    wrap,
)
from ..ir.traits import RUNNING_SUMS
from .linear_attention_parts import BATCH_AXES, SIZES, B, H, Layer


def prefix(layer: Layer, name: str, reverse: bool) -> Program:
    """For each segment the state before it (after it, if `reverse`), from an initial one on.

    `sums` are what single segments add.  The state is rounded to what the matrix units read; its running sum
    is not.
    """
    b = Builder()
    f = b.let("f", Span(Var("feature_block") * "FEATURES", "FEATURES"))
    u = b.let("u", Span(wrap(0), "VALUES"))
    running = b.let("S", Full(("FEATURES", "VALUES"), 0.0))
    z = b.let("z", Full(("FEATURES",), 0.0)) if layer.spec.normalize else None
    with b.when("INITIAL"):
        b.set(running, b.let("S_initial", Load("initial_state", (B, H, f, u), ACC)))
        if z:
            b.set(z, b.let("z_initial", Load("initial_normalizer", (B, H, f), ACC)))
    with b.loop("i", 0, "segments", ahead=True) as i:
        segment = b.let("segment", Var("segments") - 1 - i) if reverse else i
        added = b.let("S_added", Load("sums", (B, H, segment, f, u), ACC))
        b.store("state", (B, H, segment, f, u), Cast(running, OPERAND))
        b.add(running, added)
        if z:
            z_added = b.let("z_added", Load("normalizer_sums", (B, H, segment, f), ACC))
            b.store("normalizer", (B, H, segment, f), z)
            b.add(z, z_added)
    with b.when("TOTAL"):
        b.store("total_state", (B, H, f, u), Cast(running, STATE))
        if z:
            b.store("total_normalizer", (B, H, f), z)
    return Program(
        name,
        f"The state {'after' if reverse else 'before'} each segment.",
        (*BATCH_AXES, Axis("feature_block", cdiv(layer.features.rows, "FEATURES"))),
        (
            *layer.user_states("initial_", "INITIAL"),
            *layer.segment_sums(),
            *layer.segment_states(),
            *layer.user_states("total_", "TOTAL"),
        ),
        SIZES,
        (),
        ("INITIAL", "TOTAL"),
        ("FEATURES", "VALUES"),
        b.body,
        {"VALUES": layer.v},
        frozenset({RUNNING_SUMS}),
    )
