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

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    IO,
    OPERAND,
    Axis,
    Cast,
    Dot,
    Expr,
    Full,
    Load,
    Program,
    Span,
    Sum,
    Tensor,
    Transpose,
    Unary,
    Var,
    Where,
    cdiv,
    column,
    maximum,
    minimum,
    row,
    wrap,
)
from ..ir.traits import GRADIENTS, ROW_SUMS
from .sliding_window_parts import (
    KEY_ROWS,
    LOG2_E,
    LOGIT,
    NUMBERS,
    QUERY_ROWS,
    TK,
    B,
    H,
    KeyTile,
    Layer,
    T,
    load_keys,
    place,
)

UNREACHED = 1.0e30
"""The lse of a row outside the sequence: no probability survives it."""


@dataclass(frozen=True)
class _Queries:
    """A tile of queries, and what the outputs' gradients leave of them."""

    q: Var
    do: Var
    lse: Var
    delta: Var


def gradients(layer: Layer) -> Program:
    """dq, dk and dv of one chunk."""
    b = Builder()
    start = b.let("start", Var("chunk") * "CHUNK")
    next_query = b.let("next_query", start + "CHUNK" - (TK - T))
    j = b.let("j", Span(start, "CHUNK"))
    t = b.let("t", Span(start - (TK - T), "CHUNK", before=True))
    before = b.let("before", Span(start - "KEYS", "KEYS", before=True))
    after = b.let("after", Span(next_query, "QUERIES", before=True))
    d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
    keys, keys_before = load_keys(b, "", j, d, u), load_keys(b, "_before", before, d, u)
    queries, queries_after = _load_queries(b, "", t, d, u), _load_queries(b, "_after", after, d, u)
    first = layer.first_key(b)

    b.comment("The queries of the chunk: its own keys, then the keys before it.")
    dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
    oldest = layer.oldest(b, t, first)
    _by_query(b, "", queries, keys, (row(j) <= column(place(t))) & (row(j) >= column(oldest)), dq)
    _by_query(b, "_before", queries, keys_before, row(before) >= column(oldest), dq)
    with layer.further(b, start, d, u) as (further, earlier, keys_further):
        _by_query(b, "_further", queries, keys_further, earlier & (row(further) >= column(oldest)), dq)
    b.store("dq", (B, t, H, d), Cast(dq * Var("scale"), IO))

    b.comment("The keys of the chunk: its own queries, then the queries after it.")
    dk, dv = b.let("dK", Full(("CHUNK", "QK"), 0.0)), b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
    newest = b.let("newest", Where(j >= first, j + (layer.window - 1), wrap(-1)))
    visible = (row(place(t)) >= column(j)) & (row(place(t)) <= column(newest))
    _by_key(b, "", keys, queries, visible, dk, dv)
    _by_key(b, "_after", keys, queries_after, row(place(after)) <= column(newest), dk, dv)
    with b.when("FURTHER"):
        end = minimum(next_query + (layer.window - 1), T)
        with b.loop("t0", maximum(next_query + "QUERIES", 0), end, "QUERIES") as t0:
            later = b.let("later", Span(t0, "QUERIES"))
            queries = _load_queries(b, "_later", later, d, u)
            _by_key(b, "_later", keys, queries, row(place(later)) <= column(newest), dk, dv)
    b.store("dk", (B, j, H, d), Cast(dk * Var("scale"), IO))
    b.store("dv", (B, j, H, u), Cast(dv, IO))
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
        ("CHUNK", "KEYS", "QUERIES"),
        (GRADIENTS, ROW_SUMS),
    )


def _load_queries(b: Builder, suffix: str, t: Var, d: Var, u: Var) -> _Queries:
    queries = b.let(f"Q{suffix}", Load("q", (B, t, H, d), OPERAND))
    do = b.let(f"dO{suffix}", Load("do", (B, t, H, u), OPERAND))
    o = b.let(f"O{suffix}", Load("o", (B, t, H, u), ACC))
    lse = b.let(f"lse_row{suffix}", Load("lse", (B, H, t), ACC, fill=UNREACHED))
    products = b.let(f"products{suffix}", Cast(do, ACC) * o)
    return _Queries(queries, do, lse, b.let(f"delta{suffix}", Sum(products, 1)))


def _by_query(b: Builder, suffix: str, queries: _Queries, keys: KeyTile, visible: Expr, dq: Var) -> None:
    """Add dS k to dq, from tiles with a row a query."""
    products = b.let(f"R{suffix}", Dot(queries.q, Transpose(keys.k)))
    weights = b.let(f"P{suffix}", _probabilities(visible, products, column(queries.lse)))
    by_weight = b.let(f"dP{suffix}", Dot(queries.do, Transpose(keys.v)))
    by_product = b.let(f"dR{suffix}", Cast(weights * (by_weight - column(queries.delta)), OPERAND))
    b.add(dq, Dot(by_product, keys.k))


def _by_key(
    b: Builder, suffix: str, keys: KeyTile, queries: _Queries, visible: Expr, dk: Var, dv: Var
) -> None:
    """Add dSᵀ q to dk and Pᵀ do to dv, from tiles with a row a key."""
    products = b.let(f"R_by_key{suffix}", Dot(keys.k, Transpose(queries.q)))
    weights = b.let(f"P_by_key{suffix}", _probabilities(visible, products, row(queries.lse)))
    matrix = b.let(f"P_operand{suffix}", Cast(weights, OPERAND))
    b.add(dv, Dot(matrix, queries.do))
    by_weight = b.let(f"dP_by_key{suffix}", Dot(keys.v, Transpose(queries.do)))
    by_product = b.let(f"dR_by_key{suffix}", Cast(weights * (by_weight - row(queries.delta)), OPERAND))
    b.add(dk, Dot(by_product, queries.q))


def _probabilities(visible: Expr, products: Var, lse: Expr) -> Expr:
    return Where(visible, Unary("exp2", products * LOGIT - lse * LOG2_E), wrap(0.0))
