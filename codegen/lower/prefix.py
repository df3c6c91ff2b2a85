"""Running sums over segments: the state before (or after) each of them."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import Span, Var, cdiv, wrap
from ..ir.program import Axis, Program
from ..ir.traits import RUNNING_SUMS
from .linear_attention_parts import BATCH_AXES, SIZES, Layer


def prefix(layer: Layer, name: str, reverse: bool) -> Program:
    """For each segment the state before it (after it, if `reverse`), from an initial one on.

    `sums` are what single segments add.  The state is rounded to what the matrix units read; its running sum
    is not.
    """
    b = Builder()
    f = b.let("f", Span(Var("feature_block") * "FEATURES", "FEATURES"))
    b.let("u", Span(wrap(0), "VALUES"))
    initial, total = layer.user_states("initial_", "INITIAL"), layer.user_states("total_", "TOTAL")
    sums, before = layer.segment_sums(), layer.segment_states()
    memory = layer.memory(b, "FEATURES")
    state = memory.zeros(f)
    with b.when("INITIAL"):
        state.restore(initial, "_initial")
    length = layer.segment_length(b) if memory.fade else None
    with b.loop("i", 0, "segments", ahead=True) as i:
        segment = b.let("segment", Var("segments") - 1 - i) if reverse else i
        log = layer.of_segment(memory, segment, length) if length else None
        state.pass_by(sums, before, segment, log)
    with b.when("TOTAL"):
        state.store(total)
    return Program(
        name,
        f"The state {'after' if reverse else 'before'} each segment.",
        (*BATCH_AXES, Axis("feature_block", cdiv(layer.features.rows, "FEATURES"))),
        (*layer.decays(), *initial, *sums, *before, *total),
        SIZES,
        (),
        ("INITIAL", "TOTAL"),
        (*(("SEGMENT",) if memory.fade else ()), "FEATURES", "VALUES"),
        b.body,
        {"VALUES": layer.v},
        frozenset({RUNNING_SUMS}),
    )
