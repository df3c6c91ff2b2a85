"""The gradients of sliding-window attention; `sliding_window` says what is differentiated.

P is computed again from lse.  With delta_i = do_i·o_i, what every score of a row owes to the normaliser:

    dS_ij = P_ij (do_i·v_j - delta_i)
    dq_i = scale Σ_j dS_ij k_j      dk_j = scale Σ_i dS_ij q_i      dv_j = Σ_i P_ij do_i

A program takes a chunk of keys together with the queries that stand there.  The pairs among them serve both
sides, once as a tile with a row a query and once as a tile with a row a key: to compute such a tile again
costs less than to transpose it.  The keys before the chunk complete dq, the queries after it dk and dv.  So
every gradient is written once, by one program, in one order.  As in the forward program, what every chunk
needs is loaded together.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import ACC, IO, Cast, Full, Span, Var, cdiv, column, maximum, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, ROW_SUMS
from ..memory.window import B, H
from .second_look import doubt_of, second_look
from .sliding_window_parts import KEY_ROWS, NUMBERS, QUERY_ROWS, Layer


def gradients(layer: Layer) -> Program:
    """dq, dk and dv of one chunk."""
    b = Builder()
    memory = layer.memory(b)
    of_keys, of_queries = memory.keys, memory.queries
    start = b.let("start", layer.chunk(b))
    next_query = b.let("next_query", memory.query_at(start + "CHUNK"))
    j = b.let("j", of_keys.tile(start, "CHUNK"))
    t = b.let("t", of_queries.tile(memory.query_at(start), "CHUNK", before=True))
    before = b.let("before", of_keys.tile(start - "KEYS", "KEYS", before=True))
    after = b.let("after", of_queries.tile(next_query, "QUERIES", before=True))
    d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
    keys, keys_before = memory.load_keys("", j), memory.load_keys("_before", before)
    queries, queries_after = memory.load_queries("", t), memory.load_queries("_after", after)
    first = memory.first_key()

    b.comment("The queries of the chunk: its own keys, then the keys before it.")
    dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
    oldest, at = memory.oldest(t, first), memory.place(t)
    memory.pair_by_query("", queries, keys, (row(j) <= column(at)) & (row(j) >= column(oldest)), dq)
    memory.pair_by_query("_before", queries, keys_before, row(before) >= column(oldest), dq)
    with memory.further(start) as (further, earlier, keys_further):
        visible = earlier & (row(further) >= column(oldest))
        memory.pair_by_query("_further", queries, keys_further, visible, dq)
    b.store("dq", (B, t, H, d), Cast(dq * Var("scale"), IO))
    doubt = doubt_of(b, dq)

    b.comment("The keys of the chunk: its own queries, then the queries after it.")
    dk, dv = b.let("dK", Full(("CHUNK", "QK"), 0.0)), b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
    newest = memory.newest(j, first)
    memory.pair_by_key("", keys, queries, (row(at) >= column(j)) & (row(at) <= column(newest)), dk, dv)
    memory.pair_by_key("_after", keys, queries_after, row(memory.place(after)) <= column(newest), dk, dv)
    with b.when("FURTHER"):
        begin = maximum(next_query + "QUERIES", of_queries.start)
        end = of_queries.until(next_query + (layer.window - 1))
        with b.loop("t0", begin, end, "QUERIES") as t0:
            later = b.let("later", of_queries.tile(t0, "QUERIES"))
            queries = memory.load_queries("_later", later)
            memory.pair_by_key("_later", keys, queries, row(memory.place(later)) <= column(newest), dk, dv)
    b.store("dk", (B, j, H, d), Cast(dk * Var("scale"), IO))
    b.store("dv", (B, j, H, u), Cast(dv, IO))
    with second_look(b, doubt_of(b, dk, dv, onto=doubt)):
        first_key = layer.chunk(b, again=True)
        rows, begin = layer.rows(b), b.let("begin", first_key)
        own = maximum(memory.query_at(begin), of_queries.start)
        rows.query_gradients(own, of_queries.until(memory.query_at(begin + "CHUNK")))
        rows.key_gradients(begin, of_keys.until(begin + "CHUNK"))
    tensors = (
        *layer.inputs(),
        Tensor("do", (*QUERY_ROWS, layer.v), IO, strided=True),
        Tensor("o", (*QUERY_ROWS, layer.v), IO),
        Tensor("lse", NUMBERS, ACC),
        Tensor("dq", (*QUERY_ROWS, layer.qk), IO),
        Tensor("dk", (*KEY_ROWS, layer.qk), IO),
        Tensor("dv", (*KEY_ROWS, layer.v), IO),
    )
    return layer.program(
        "gradients",
        "The gradients of one chunk of keys, and of the queries that stand there.",
        Axis("chunk", cdiv("Tk", "CHUNK")),
        tensors,
        b,
        ("CHUNK", "KEYS", "QUERIES", "ROWS"),
        (GRADIENTS, ROW_SUMS),
    )
