"""The gradient programs of hybrid layers; `memory/hybrid.py` says what they compute.

A query meets the keys that it met forward, in the same order.  A key meets queries the other way round:
through the mirrored state those of later segments, directly the others whose window it has left, and last
those that have it in their window.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.heads import members
from ..ir.nodes import ACC, IO, Cast, Full, Load, Sum, Var, Where, cdiv, column, maximum, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, ROW_SUMS, SCANS
from ..memory.hybrid import Owed
from ..memory.states import B, H
from ..memory.window import Keys
from .hybrid_parts import KEY_ROWS, Layer
from .hybrid_tokens import FIRSTS, PADDED, Segments
from .linear_attention_parts import NUMBERS, ROWS, TOKENS
from .ragged import BEGIN, BEGUN, CHUNKS, LENGTH, RAGGED, Segment
from .second_look import doubt_of, second_look

DELTA = Tensor("delta_rows", NUMBERS, ACC)


def query_gradients(layer: Layer) -> Program:
    """dq of one chunk of queries; and g, e and delta."""
    b = Builder()
    _, begin = Segment.of_chunk(b)
    tokens, memory = layer.tokens, layer.both_by_query(b)
    older, window = memory.older, memory.window
    t = b.let("t", tokens.queries.tile(begin, "CHUNK"))
    layer.columns(b)
    first = window.first_key()
    place = b.let("start", window.place(begin))
    youngest = b.let("youngest", memory.youngest(begin))
    segment = Segments(b, layer.dense).of(youngest)
    states = layer.segment_states("STATEFUL")
    queries = memory.tokens("Q", "q", t)
    owed = memory.owed()
    gradients = memory.own_gradients(t, queries.plain, owed)
    of_factors = Owed(None, None) if layer.adds else owed
    dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
    with b.when("STATEFUL"):
        b.comment("Segments that all windows have left, through their state.")
        with older.blocks() as block:
            state = older.stored(states, block.f, segment.number)
            older.read_by_query(dq, queries.mapped, gradients.older, block, state, of_factors.linear)
    b.comment("Later keys that have left a window, directly.")
    stop = tokens.older.until(youngest + "CHUNK")
    with b.loop("j0", segment.first, stop, "KEYS") as j0:
        j = b.let("j", tokens.keys.tile(j0, "KEYS"))
        keys, values = older.keys(j)
        seen = memory.left(t, j, first)
        older.pair_by_query(dq, queries.mapped, gradients.older, keys, values, seen, owed=of_factors.linear)
    b.comment("The keys of the windows.")
    near = memory.near("dQ_near")
    oldest = window.oldest(t, first)
    begins, ends = maximum(youngest + 1, tokens.keys.start), tokens.keys.until(place + "CHUNK")
    highest = memory.highest()
    with b.loop("i0", begins, ends, "KEYS") as i0:
        i = b.let("i", tokens.keys.tile(i0, "KEYS"))
        visible = (row(i) <= column(window.place(t))) & (row(i) >= column(oldest))
        near_keys = window.load_keys("_near", i)
        of_window = gradients.window, near_keys, visible, near, of_factors.window
        products, visible = window.pair_by_query("_near", *of_window)
        if highest:
            highest.look(products, visible, t, i)
    if highest and owed.window:
        b.comment("What the highest keys are owed for the whole window.")
        with b.loop("i0", begins, ends, "KEYS") as i0:
            highest.take(owed.window, near, t, b.let("i", tokens.keys.tile(i0, "KEYS")))
    for numbers in filter(None, (owed.window, owed.linear)):
        # Queries in front of a packed sequence, which nobody reads, may have no key at all.
        with b.when(BEGUN):
            b.set(numbers, Where(t >= BEGIN + layer.window, numbers, wrap(0.0)))
    memory.store_owed(owed, t, highest)
    memory.leave("dq", t, queries.loaded, dq, near)
    with second_look(b, doubt_of(b, dq, near)):
        layer.again_by_query(b, stored=True).query_gradients()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.own(),
        layer.values("do"),
        *layer.factors(),
        *(() if layer.adds else (layer.values("o", strided=False),)),
        *layer.results(),
        *FIRSTS,
        layer.gradients(),
        *layer.row_sums("e"),
        DELTA,
        *layer.highest(),
        *layer.owed(),
        *states,
        *layer.gradients_of("dq", ROWS),
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
    _, begin = Segment.of_chunk(b)
    tokens, memory = layer.tokens, layer.both(b, stored=True)
    older, window = memory.older, memory.window
    j = b.let("j", tokens.keys.tile(begin, "CHUNK"))
    u = layer.columns(b)
    first = window.first_key()
    segment = Segments(b, layer.dense).of(begin)
    states = layer.segment_states("STATEFUL")
    keys = memory.tokens("K", "k", j)
    values = older.values(j)
    dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
    dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
    with b.when("STATEFUL"):
        b.comment("Later segments, through the mirrored state of their queries.")
        with older.blocks() as block:
            mirrored = older.stored(states, block.f, segment.number)
            older.read_by_key(dk, dv, keys.mapped, values, block, mirrored)
        b.comment("Keys that leave no window are in no state.")
        memory.select("entered", j < tokens.older.stop, dk, dv)
    last = tokens.late.until(memory.last_query(segment.first + LENGTH) + 1)
    near = memory.near("dK_near")
    newest = window.newest(j, first)
    with members(b):
        memory.weigh()
        b.comment("Queries of this segment whose window the keys have left, directly.")
        with b.loop("t0", memory.last_query(begin) + 1, last, "QUERIES") as t0:
            t = b.let("t", tokens.queries.tile(t0, "QUERIES"))
            queries, gradients = older.queries(t), older.gradients(t)
            seen = memory.left_by_key(j, t, first)
            older.pair_by_key(dk, dv, keys.mapped, values, queries, gradients, seen)
        b.comment("Queries that have the keys in their window.")
        plain = Keys(keys.plain, values)
        stop = tokens.queries.until(memory.last_query(begin + "CHUNK"))
        with b.loop("i0", maximum(window.query_at(begin), 0), stop, "QUERIES") as i0:
            i = b.let("i", tokens.queries.tile(i0, "QUERIES"))
            at = window.place(i)
            visible = (row(at) >= column(j)) & (row(at) <= column(newest))
            shift = memory.shift("near", i, row(at) - column(j), by_key=True)
            window.pair_by_key("_near", plain, memory.queries(i, "near"), visible, near, dv, shift)
    for flag in (PADDED, BEGUN):
        with b.when(flag):
            memory.select("exists", j >= first, dk, near, dv)
    memory.leave("dk", j, keys.loaded, dk, near)
    b.store("dv", (B, j, H, u), Cast(dv, IO))
    with second_look(b, doubt_of(b, dk, near, dv)):
        layer.again_by_key(b).key_gradients()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.own(),
        layer.values("do"),
        *layer.factors(stored=True),
        Tensor("lse", NUMBERS, ACC),
        *FIRSTS,
        layer.gradients(),
        *layer.row_sums("e"),
        DELTA,
        *layer.highest(),
        *states,
        *layer.gradients_of("dk", KEY_ROWS),
        layer.values("dv", strided=False),
    )
    return layer.program(
        "key_gradients",
        "The gradients of one chunk of keys and values.",
        (Axis("chunk", cdiv(Chosen(RAGGED, Var("places"), Var("Tk")), "CHUNK")),),
        tensors,
        b,
        ("SEGMENT", "CHUNK", "QUERIES", "ROWS"),
        whole_values=True,
        flags=("STATEFUL",),
        does=(GRADIENTS, ROW_SUMS),
        ragged=True,
    )


def factor_gradients() -> Program:
    """The gradient of a factor of each head: a sum over all of its queries."""
    b, i = Builder(), Var("i")
    total = b.let("total", Full(("PARTS",), 0.0))
    with b.loop("i", 0, "B"), b.loop("t0", 0, "T", "PARTS") as t0:
        t = b.let("t", TOKENS.tile(t0, "PARTS"))
        b.add(total, b.let("owed", Load("owed_rows", (i, H, t), ACC)))
    b.store("gradient", (H,), b.let("sum", Sum(total, 0)))
    return Program(
        "factor_gradients",
        "The gradient of a factor of each head.",
        (Axis("h", Var("H"), batch=True),),
        (Tensor("owed_rows", NUMBERS, ACC), Tensor("gradient", ("H",), ACC)),
        ("B", "T", "H"),
        (),
        (),
        ("PARTS",),
        b.body,
        does=frozenset({SCANS}),
    )
