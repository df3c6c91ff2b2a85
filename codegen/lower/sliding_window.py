"""Exact softmax attention in a sliding window: query i sees its own key and the window - 1 before it.

    P_ij = exp(scale · q_i·k_j - lse_i)      o_i = Σ_j P_ij v_j      (as in Based, arXiv 2402.18668)

The keys may reach further back than the queries: with Tk keys and T queries, query i stands at key i + (Tk -
T), so a prompt can be fed in pieces by putting the last keys of the previous piece in front.  ``first[b,
h]``, where given, is the first of those keys that exists.

A program takes a chunk of queries.  It loads together what every chunk needs, the queries, the keys at which
they stand and the tile of keys before those, so that it waits for memory once.  Only a window longer than
that tile (`FURTHER`) goes on with a loop.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import ACC, INDEX, IO, OPERAND, Cast, Load, Span, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SOFTMAX, TOKEN
from ..memory.ring import Ring
from ..memory.window import B, H
from ..mixers.sliding_window import SlidingWindow
from .groups import group_sums, over_queries, over_states
from .second_look import doubt_of, second_look
from .sliding_window_backward import gradients
from .sliding_window_parts import BATCH_AXES, NUMBERS, QUERIES, QUERY_ROWS, Layer
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one


def programs(spec: SlidingWindow) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = Layer(spec)
    chunked = (
        over_queries(program(layer), "first", "first_of_sequences") for program in (outputs, gradients)
    )
    return (*chunked, group_sums(), over_states(step(layer)))


def outputs(layer: Layer) -> Program:
    """o and lse of one chunk of queries."""
    b = Builder()
    memory, begin = layer.memory(b), layer.chunk(b)
    start = b.let("start", memory.place(begin))
    t, j = b.let("t", memory.queries.tile(begin, "CHUNK")), b.let("j", memory.keys.tile(start, "CHUNK"))
    before = b.let("before", memory.keys.tile(start - "KEYS", "KEYS", before=True))
    d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
    queries = b.let("Q", Load("q", (B, t, H, d), OPERAND))
    keys, keys_before = memory.load_keys("", j), memory.load_keys("_before", before)
    oldest = memory.oldest(t, memory.first_key())
    b.comment("The keys at which the queries stand.")
    visible = (row(j) <= column(memory.place(t))) & (row(j) >= column(oldest))
    answer = memory.pair(queries, keys, visible)
    b.comment("The keys before them.")
    memory.pair_more("_before", answer, queries, keys_before, row(before) >= column(oldest))
    with memory.further(start) as (further, earlier, keys):
        memory.pair_more("_further", answer, queries, keys, earlier & (row(further) >= column(oldest)))
    b.store("lse", (B, H, t), answer.lse())
    b.store("o", (B, t, H, u), Cast(answer.divided(), IO))
    with second_look(b, doubt_of(b, answer.out)):
        begin = layer.chunk(b, again=True)
        layer.rows(b).outputs(begin, memory.queries.until(begin + "CHUNK"))
    tensors = (*layer.inputs(), Tensor("o", (*QUERY_ROWS, layer.v), IO), Tensor("lse", NUMBERS, ACC))
    return layer.program(
        "outputs",
        "The outputs of one chunk of queries.",
        Axis("chunk", cdiv("T", "CHUNK")),
        tensors,
        b,
        ("CHUNK", "KEYS", "ROWS"),
    )


def step(layer: Layer) -> Program:
    """Tokens one after the other: each replaces the oldest of the ring, then it attends to the ring."""
    b, zero = Builder(), wrap(0)
    d, u = b.let("d", Span(zero, "QK")), b.let("u", Span(zero, "VALUES"))
    with one_by_one(b, QUERIES) as t, members(b):
        query = b.let("query", Load("q", (B, t, H, d), ACC))
        ring = Ring(b, layer.window, t)
        out = b.let("out", ring.read(query))
        b.store("o", (B, t, H, u), Cast(answered(b, out), IO))
        ring.store()
    tensors = (
        Tensor("q", (*QUERY_ROWS, layer.qk), IO, strided=True),
        Tensor("k", (*QUERY_ROWS, layer.qk), IO, strided=True),
        Tensor("v", (*QUERY_ROWS, layer.v), IO, strided=True),
        *in_slots(
            (
                Tensor("ring_k", ("B", "H", layer.window, layer.qk), IO),
                Tensor("ring_v", ("B", "H", layer.window, layer.v), IO),
                Tensor("position", ("B", "H"), INDEX),
            )
        ),
        Tensor("o", (*QUERY_ROWS, layer.v), IO),
    )
    return Program(
        "token",
        "Tokens one after the other: each enters the ring and attends to it.",
        BATCH_AXES,
        tensors,
        ("B", "T", "H", POOLED),
        ("scale",),
        FLAGS,
        ("KEYS", "QK", "VALUES"),
        b.body,
        {"QK": layer.qk, "VALUES": layer.v},
        frozenset({SOFTMAX, TOKEN}),
    )
