"""The gradient programs of linear attention; `linear_attention` says what they compute."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import ACC, IO, Cast, Full, Load, Span, column, row, wrap
from ..ir.program import Program, Tensor
from ..ir.traits import GRADIENTS, ROW_SUMS
from ..memory.states import B, H
from .linear_attention_parts import NUMBERS, ROWS, Layer
from .ragged import CHUNKS, Segment, number_of_chunk
from .second_look import doubt_of, second_look


def query_gradients(layer: Layer) -> Program:
    """dq of one chunk of queries; and g, and e, what every A_ij of a row owes to the normaliser."""
    b = Builder()
    segment, start = Segment.of_chunk(b)
    tokens = segment.sequence
    t = b.let("t", tokens.tile(start, "CHUNK"))
    d = b.let("d", Span(wrap(0), "QK"))
    b.let("u", Span(wrap(0), "VALUES"))
    number_of_chunk(b)
    memory, earlier = layer.memory(b, sequence=tokens), layer.segment_states("STATEFUL")
    loaded, queries = memory.load("Q", "q", t)
    gradients = memory.own_gradients(t)
    dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
    origin = memory.moment("origin", start)
    log = memory.since("t_log", t, origin)
    owed = memory.owed()
    with b.when("STATEFUL"):
        b.comment("Earlier segments, through their state.")
        with memory.blocks() as block:
            state = memory.stored(earlier, block.f, segment.number)
            memory.read_by_query(dq, queries, gradients, block, state, owed)
        memory.fade_got((dq,), owed, layer.since_segment(memory, t, segment))
    b.comment("This segment, directly.")
    with b.loop("j0", segment.first, tokens.until(start + "CHUNK"), "KEYS") as j0:
        j = b.let("j", tokens.tile(j0, "KEYS"))
        keys, values = memory.keys(j)
        logs = log, memory.since("j_log", j, origin)
        memory.pair_by_query(dq, queries, gradients, keys, values, column(t) >= row(j), logs, owed)
    b.store("dq", (B, t, H, d), Cast(layer.features.leave(loaded, dq), IO))
    if owed:
        b.store("r", (B, H, t), owed)
    with second_look(b, doubt_of(b, dq)):
        layer.singles(b).query_gradients()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.values("do"),
        *((layer.values("o", strided=False), layer.gradients()) if layer.spec.normalize else ()),
        *layer.row_sums("n", "e"),
        *layer.decays(),
        *((Tensor("r", NUMBERS, ACC),) if memory.fade else ()),
        *earlier,
        Tensor("dq", (*ROWS, layer.qk), IO),
    )
    return layer.program(
        "query_gradients",
        "The gradient of one chunk of queries.",
        (CHUNKS,),
        tensors,
        b,
        ("SEGMENT", "CHUNK", "KEYS", "ROWS"),
        whole_values=True,
        flags=("STATEFUL",),
        does=(GRADIENTS, ROW_SUMS),
        ragged=True,
    )


def key_gradients(layer: Layer) -> Program:
    """dk and dv of one chunk of keys."""
    b = Builder()
    segment, first = Segment.of_chunk(b)
    tokens = segment.sequence
    j = b.let("j", tokens.tile(first, "CHUNK"))
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(wrap(0), "VALUES"))
    number_of_chunk(b)
    memory, later = layer.memory(b, sequence=tokens), layer.segment_states("STATEFUL")
    loaded, keys = memory.load("K", "k", j)
    values = memory.values(j)
    dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
    dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
    origin = memory.moment("origin", first)
    log = memory.since("j_log", j, origin)
    owed = memory.owed()
    with b.when("STATEFUL"):
        b.comment("Later segments, through the mirrored state of their queries.")
        with memory.blocks() as block:
            mirrored = memory.stored(later, block.f, segment.number)
            memory.read_by_key(dk, dv, keys, values, block, mirrored, owed)
        memory.fade_got((dk, dv), owed, layer.to_end_of_segment(memory, j, segment))
    b.comment("This segment, directly.")
    begin = segment.tile_of(first, "QUERIES")
    with members(b), b.loop("t0", begin, segment.end, "QUERIES") as t0:
        t = b.let("t", tokens.tile(t0, "QUERIES"))
        queries, gradients = memory.queries(t), memory.gradients(t)
        logs = memory.since("t_log", t, origin), log
        memory.pair_by_key(dk, dv, keys, values, queries, gradients, column(j) <= row(t), logs, owed)
    b.store("dk", (B, j, H, d), Cast(layer.features.leave(loaded, dk), IO))
    b.store("dv", (B, j, H, u), Cast(dv, IO))
    if owed:
        b.comment("What a token's key owes to G, taken from what its query does.")
        b.store("r", (B, H, j), b.let("r_own", Load("r", (B, H, j), ACC)) - owed)
    with second_look(b, doubt_of(b, dk, dv)):
        layer.singles(b).key_gradients()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.gradients(),
        *layer.row_sums("e"),
        *layer.decays(),
        *((Tensor("r", NUMBERS, ACC),) if memory.fade else ()),
        *later,
        Tensor("dk", (*ROWS, layer.qk), IO),
        layer.values("dv", strided=False),
    )
    return layer.program(
        "key_gradients",
        "The gradients of one chunk of keys and values.",
        (CHUNKS,),
        tensors,
        b,
        ("SEGMENT", "CHUNK", "QUERIES", "ROWS"),
        whole_values=True,
        flags=("STATEFUL",),
        does=(GRADIENTS,),
        ragged=True,
    )
