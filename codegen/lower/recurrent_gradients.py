"""Gradients of linear attention as two recurrences, with the states in registers: none is stored.

Queries are read first to last, with the state of the keys before; keys last to first, with the mirrored state
of the queries after.  Each program has one segment, as that of `linear_attention_recurrence.py`, and a block
of values.  What these owe to dq and dk adds up: where there are several, each stores a part.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import IO, Cast, Full, Span, Var, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS
from ..memory.states import B, Block, H, State
from ..memory.sums import Sums
from .features import SCALE
from .linear_attention_parts import ROWS, Layer
from .linear_attention_recurrence import doubt_of_state
from .ragged import Segment
from .second_look import second_look

FIRST = Var("value_block") * "VALUES"
ONE = wrap(1.0)
PART = (Var("value_block"),)
"""Which part of dq or dk a program has, where there are several."""


def query_gradients(layer: Layer, blocks: int) -> Program:
    """dq of the queries of one segment, in as many parts as there are `blocks` of values."""
    b, part = Builder(), PART if blocks > 1 else ()
    segment, memory, block, state = _begin(b, layer)
    tokens, d = segment.sequence, memory.d
    with b.loop("t0", segment.first, segment.end, "CHUNK") as t0:
        t = b.let("t", tokens.tile(t0, "CHUNK"))
        loaded, queries = memory.load("Q", "q", t)
        keys, values = memory.keys(t)
        gradients = memory.gradients(t)
        dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
        memory.read_by_query(dq, queries, gradients, block, state, scale=ONE)
        seen = column(t) >= row(t)
        memory.pair_by_query(dq, queries, gradients, keys, values, seen, scale=ONE)
        memory.enter(state, block, keys, values, tokens.past(t0, "CHUNK"))
        b.set(dq, dq * SCALE)
        b.set(dq, layer.features.leave(loaded, dq))
        b.store("dq", (B, t, H, *part, d), Cast(dq, IO))
    with second_look(b, doubt_of_state(b, memory, state)):
        layer.walk(b, FIRST).query_gradients(part)
    return _program(
        layer,
        b,
        "query_gradients",
        "The gradients of the queries of one segment, first to last.",
        (_in_parts("dq", layer, blocks),),
    )


def key_gradients(layer: Layer, blocks: int) -> Program:
    """dk, in such parts, and dv of one segment, and the state's gradient before the first token."""
    b, part = Builder(), PART if blocks > 1 else ()
    segment, memory, block, mirrored = _begin(b, layer)
    tokens, d, u = segment.sequence, memory.d, memory.u
    total = layer.user_states("total_", "TOTAL")
    with b.loop("t0", segment.first, segment.end, "CHUNK", backwards=True) as t0:
        t = b.let("t", tokens.tile(t0, "CHUNK"))
        loaded, keys = memory.load("K", "k", t)
        values, queries = memory.values(t), memory.scaled_queries(t)
        gradients = memory.gradients(t)
        dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
        dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
        memory.read_by_key(dk, dv, keys, values, block, mirrored)
        seen = column(t) <= row(t)
        memory.pair_by_key(dk, dv, keys, values, queries, gradients, seen, scale=ONE)
        memory.enter(mirrored, block, queries, gradients.g, tokens.past(t0, "CHUNK"))
        b.set(dk, layer.features.leave(loaded, dk))
        b.store("dk", (B, t, H, *part, d), Cast(dk, IO))
        b.store("dv", (B, t, H, u), Cast(dv, IO))
    with b.when("TOTAL"):
        mirrored.store(total)
    with second_look(b, doubt_of_state(b, memory, mirrored)):
        layer.walk(b, FIRST).key_gradients(part)
    return _program(
        layer,
        b,
        "key_gradients",
        "The gradients of the keys and values of one segment, last to first.",
        (_in_parts("dk", layer, blocks), layer.values("dv", strided=False), *total),
        ("TOTAL",),
    )


def _begin(b: Builder, layer: Layer) -> tuple[Segment, Sums, Block, State]:
    """The state with which a program's segment begins: all of its features, in one tile."""
    segment = Segment.of_program(b)
    b.let("d", Span(wrap(0), layer.width))
    b.let("u", Span(FIRST, "VALUES"))
    memory = layer.memory(b, sequence=segment.sequence)
    block = memory.block(wrap(0))
    state = memory.zeros(block.f)
    with b.when("INITIAL"):
        state.restore(layer.user_states("initial_", "INITIAL"), "_initial")
    with b.when("SEGMENTED"):
        state.restore(layer.segment_states("SEGMENTED"), "_before", segment.number)
    layer.segment_length(b)
    return segment, memory, block, state


def _program(
    layer: Layer, b: Builder, name: str, summary: str, made: tuple[Tensor, ...], flags: tuple[str, ...] = ()
) -> Program:
    return layer.program(
        name,
        summary,
        (Axis("segment", Var("segments")), Axis("value_block", cdiv(layer.v, "VALUES"))),
        (
            layer.queries("q"),
            *layer.keys(),
            layer.gradients(),
            *layer.user_states("initial_", "INITIAL"),
            *layer.segment_states("SEGMENTED"),
            *made,
        ),
        b,
        ("SEGMENT", "CHUNK"),
        whole_values=False,
        flags=("INITIAL", "SEGMENTED", *flags),
        does=(GRADIENTS,),
        ragged=True,
    )


def _in_parts(name: str, layer: Layer, blocks: int) -> Tensor:
    return Tensor(name, (*ROWS, *((blocks,) if blocks > 1 else ()), layer.qk), IO)
