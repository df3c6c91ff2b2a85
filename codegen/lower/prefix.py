"""Running sums over segments: the state before (or after) each of them."""

from __future__ import annotations

from .. import names
from ..ir.build import Builder
from ..ir.nodes import INDEX, Const, Expr, Load, Span, Var, cdiv, wrap
from ..ir.program import Axis, Program
from ..ir.traits import RUNNING_SUMS
from .linear_attention_parts import BATCH_AXES, SIZES, Layer
from .ragged import BOUNDS, PACKED, SEQUENCE, TABLE, Segment


def prefix(layer: Layer, name: str, reverse: bool, packed: bool = False) -> Program:
    """For each segment the state before it (after it, if `reverse`), from an initial one on.

    `sums` are what single segments add.  The state is rounded to what the matrix units read; its running sum
    is not.  Of `packed` sequences each has an initial state, and segments from a first to a last one.
    """
    b = Builder()
    f = b.let("f", Span(Var("feature_block") * "FEATURES", "FEATURES"))
    b.let("u", Span(wrap(0), "VALUES"))
    initial = layer.user_states("initial_", "INITIAL", packed)
    total = layer.user_states("total_", "TOTAL", packed)
    sums, before = layer.segment_sums(), layer.segment_states()
    first, count = bounds(b) if packed else (Const(0), Var("segments"))
    memory = layer.memory(b, "FEATURES", sequence=PACKED) if packed else layer.memory(b, "FEATURES")
    state = memory.zeros(f)
    with b.when("INITIAL"):
        state.restore(initial, "_initial")
    length = layer.segment_length(b) if memory.fade and not packed else None
    with b.loop("i", 0, count, ahead=True) as i:
        place: Expr = count - 1 - i if reverse else i
        segment = b.let("segment", first + place) if packed else b.let("segment", place) if reverse else i
        log = None
        if memory.fade:
            own = Segment.of_packed(b, segment) if packed else None
            start, stop = (own.first, own.sequence.stop) if own else layer.segment_ends(segment, length)
            log = memory.between("segment_log", memory.moment("start", start), memory.moment("stop", stop))
        state.pass_by(sums, before, segment, log)
    with b.when("TOTAL"):
        state.store(total)
    sizes = SIZES if not packed else (*SIZES, "N")
    tables = (BOUNDS, *((TABLE,) if memory.fade else ())) if packed else ()
    return Program(
        names.packed(name) if packed else name,
        f"The state {'after' if reverse else 'before'} each segment{' of each sequence' if packed else ''}.",
        (
            *((BATCH_AXES[1], SEQUENCE) if packed else BATCH_AXES),
            Axis("feature_block", cdiv(layer.features.rows, "FEATURES")),
        ),
        (*layer.decays(), *initial, *sums, *before, *total, *tables),
        sizes,
        (),
        ("INITIAL", "TOTAL"),
        (*(("SEGMENT",) if length else ()), "FEATURES", "VALUES"),
        b.body,
        {"VALUES": layer.v},
        frozenset({RUNNING_SUMS}),
    )


def bounds(b: Builder) -> tuple[Expr, Expr]:
    """The first segment of a program's sequence, and how many there are; the batch is one."""
    b.let("b", 0)
    first, last = (
        b.let(name, Load(BOUNDS.name, (Var(SEQUENCE.name), Const(place)), INDEX))
        for place, name in enumerate(("first_segment", "last_segment"))
    )
    return first, last - first
