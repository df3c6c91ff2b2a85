"""Gradients of linear attention as two recurrences, with the states in registers: none is stored.

Queries are read first to last, with the state of the keys before; keys last to first, with the mirrored state
of the queries after.  Each program has one segment, as that of `linear_attention_recurrence.py`, and a block
of values.  What these owe to dq and dk adds up: where there are several, each stores a part.

Weights are products of features, so what those of a token owe to its decay (`decay.py`) needs no weights: it
is the product of the token's features and their gradient.  What queries owe and what keys owe are the same
numbers in another order, of which a segment as long as a sequence sums up the differences: so both programs
round the same operands, and the state is read with all its digits.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.build import Builder
from ..ir.nodes import ACC, IO, Cast, Expr, Full, Load, Span, Sum, Var, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS
from ..memory.normalizer import Eighths
from ..memory.states import B, Block, H, State
from ..memory.sums import Sums
from .features import SCALE
from .linear_attention_parts import NUMBERS, ROWS, Layer
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
        queries, loaded = memory.scaled_queries(t), Var("Q")
        keys, values = memory.keys(t)
        gradients = memory.own_gradients(t)
        log, total = memory.of_tile("t_log", t, t0, tokens.until(t0 + "CHUNK"))
        since, kept = memory.left_of_tile("since", t, log, later=True), memory.until("kept", t, log, total)
        dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
        faded = replace(gradients, g=memory.faded(gradients.g, since))
        memory.read_by_query(dq, queries, faded, block, state, scale=ONE)
        if memory.fade:
            memory.read_rest(dq, queries, faded.g, block, state)
        seen = column(t) >= row(t)
        memory.pair_by_query(dq, queries, gradients, keys, values, seen, (log, log), scale=ONE)
        state.fade(total)
        memory.enter(state, block, keys, values, tokens.past(t0, "CHUNK"), kept=kept)
        if memory.fade:
            b.store("r", (B, H, t), _owed(b, queries, dq))
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
        (_in_parts("dq", layer, blocks), *_debts(layer)),
        own=True,
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
        gradients = replace(gradients, e=gradients.read_e(b))
        log, end = memory.of_tile("t_log", t, t0, tokens.until(t0 + "CHUNK"))
        since, kept = memory.left_of_tile("since", t, log, later=True), memory.until("kept", t, log, end)
        dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
        dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
        faded = memory.faded(values, kept)
        memory.read_by_key(dk, dv, keys, faded, block, mirrored)
        if memory.fade:
            memory.read_rest(dk, keys, faded, block, mirrored)
        if kept:
            b.set(dv, dv * column(kept))
        seen = column(t) <= row(t)
        memory.pair_by_key(dk, dv, keys, values, queries, gradients, seen, (log, log), scale=ONE)
        mirrored.fade(end)
        past = tokens.past(t0, "CHUNK")
        memory.enter(mirrored, block, queries, gradients.g, past, gradients.read_e(b), kept=since)
        if memory.fade:
            b.comment("What a token's key owes to G, taken from what its query does.")
            own = b.let("r_own", Load("r", (B, H, t), ACC))
            b.store("r", (B, H, t), b.let("r_now", own - _owed(b, keys, dk)))
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
        (_in_parts("dk", layer, blocks), layer.values("dv", strided=False), *_debts(layer), *total),
        ("TOTAL",),
    )


def _begin(b: Builder, layer: Layer) -> tuple[Segment, Sums, Block, State]:
    """The state with which a program's segment begins: all of its features, in one tile."""
    segment = Segment.of_program(b)
    b.let("d", Span(wrap(0), layer.width))
    b.let("u", Span(FIRST, "VALUES"))
    memory = layer.memory(b, products=Eighths, sequence=segment.sequence)
    block = memory.block(wrap(0))
    state = memory.restored(block, layer.sources(segment.number))
    layer.segment_length(b)
    return segment, memory, block, state


def _program(
    layer: Layer,
    b: Builder,
    name: str,
    summary: str,
    made: tuple[Tensor, ...],
    flags: tuple[str, ...] = (),
    own: bool = False,
) -> Program:
    """A program over segments; its `own` are g and e, which others read."""
    divided = (layer.values("do"), layer.values("o", strided=False), *layer.row_sums("n"))
    given = divided if own and layer.spec.normalize else ()
    return layer.program(
        name,
        summary,
        (Axis("segment", Var("segments")), Axis("value_block", cdiv(layer.v, "VALUES"))),
        (
            layer.queries("q"),
            *layer.keys(),
            *layer.given_decays(),
            *given,
            layer.gradients(),
            *layer.row_sums("e"),
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


def _owed(b: Builder, operand: Var, gradient: Var) -> Expr:
    """What the weights of each token owe to G."""
    return b.let("owed", Sum(b.let("products", Cast(operand, ACC) * gradient), 1))


def _debts(layer: Layer) -> tuple[Tensor, ...]:
    return (Tensor("r", NUMBERS, ACC),) if layer.spec.decay != "none" else ()


def _in_parts(name: str, layer: Layer, blocks: int) -> Tensor:
    return Tensor(name, (*ROWS, *((blocks,) if blocks > 1 else ()), layer.qk), IO)
