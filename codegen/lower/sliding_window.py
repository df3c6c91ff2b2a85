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

from math import log

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    Axis,
    Cast,
    Dot,
    Expr,
    Full,
    Load,
    Max,
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
    row,
    wrap,
)
from ..ir.traits import SOFTMAX, TOKEN
from ..mixers.sliding_window import SlidingWindow
from .sliding_window_backward import gradients
from .sliding_window_parts import (
    BATCH_AXES,
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

HIDDEN = -1.0e30
"""The score of a key that a query does not see: finite, so that a tile with no visible key makes no NaN."""


def programs(spec: SlidingWindow) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = Layer(spec)
    return outputs(layer), gradients(layer), step(layer)


def outputs(layer: Layer) -> Program:
    """o and lse of one chunk of queries."""
    b = Builder()
    start = b.let("start", Var("chunk") * "CHUNK" + (TK - T))
    t, j = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK")), b.let("j", Span(start, "CHUNK"))
    before = b.let("before", Span(start - "KEYS", "KEYS", before=True))
    d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
    queries = b.let("Q", Load("q", (B, t, H, d), OPERAND))
    keys, keys_before = load_keys(b, "", j, d, u), load_keys(b, "_before", before, d, u)
    oldest = layer.oldest(b, t, layer.first_key(b))

    b.comment("The keys at which the queries stand.")
    products = b.let("R", Dot(queries, Transpose(keys.k)))
    visible = (row(j) <= column(place(t))) & (row(j) >= column(oldest))
    scores = b.let("scores", Where(visible, products * LOGIT, wrap(HIDDEN)))
    top = b.let("top", Max(scores, 1))
    weights = b.let("P", Unary("exp2", scores - column(top)))
    total = b.let("total", Sum(weights, 1))
    matrix = b.let("P_operand", Cast(weights, OPERAND))
    out = b.let("O", Dot(matrix, keys.v))

    def attend(suffix: str, keys: KeyTile, visible: Expr) -> None:
        """Add earlier keys to the sums, which stay relative to the highest score so far."""
        products = b.let(f"R{suffix}", Dot(queries, Transpose(keys.k)))
        scores = b.let(f"scores{suffix}", Where(visible, products * LOGIT, wrap(HIDDEN)))
        tile_top = b.let("tile_top", Max(scores, 1))
        new_top = b.let("new_top", maximum(top, tile_top))
        weights = b.let(f"P{suffix}", Unary("exp2", scores - column(new_top)))
        correction = b.let("correction", Unary("exp2", top - new_top))
        tile_total = b.let("tile_total", Sum(weights, 1))
        b.set(total, total * correction + tile_total)
        b.set(out, out * column(correction))
        matrix = b.let(f"P{suffix}_operand", Cast(weights, OPERAND))
        b.add(out, Dot(matrix, keys.v))
        b.set(top, new_top)

    b.comment("The keys before them.")
    attend("_before", keys_before, row(before) >= column(oldest))
    with layer.further(b, start, d, u) as (further, earlier, keys):
        attend("_further", keys, earlier & (row(further) >= column(oldest)))
    b.store("lse", (B, H, t), (top + Unary("log2", total)) * log(2.0))
    b.store("o", (B, t, H, u), Cast(out / column(total), IO))
    tensors = (*layer.inputs(), Tensor("o", (*QUERY_ROWS, layer.v), IO), Tensor("lse", NUMBERS, ACC))
    return layer.program(
        "outputs",
        "The outputs of one chunk of queries.",
        Axis("chunk", cdiv("T", "CHUNK")),
        tensors,
        b,
        ("CHUNK", "KEYS"),
    )


def step(layer: Layer) -> Program:
    """One token: its key and value replace the oldest of the ring, then it attends to the ring."""
    b = Builder()
    zero = wrap(0)
    d, u = b.let("d", Span(zero, "QK")), b.let("u", Span(zero, "VALUES"))
    query = b.let("query", Load("q", (B, zero, H, d), ACC))
    key = b.let("key", Load("k", (B, zero, H, d), ACC))
    value = b.let("value", Load("v", (B, zero, H, u), ACC))
    position = b.let("place", Load("position", (B, H), INDEX))
    slot = b.let("slot", position % layer.window)
    out = b.let("O", Full(("VALUES",), 0.0))
    top = b.let("top", Full((), HIDDEN))
    total = b.let("total", Full((), 0.0))
    with b.loop("j0", 0, layer.window, "KEYS") as j0:
        j = b.let("j", Span(j0, "KEYS"))
        old_keys = b.let("old_K", Load("ring_k", (B, H, j, d), ACC))
        old_values = b.let("old_Y", Load("ring_v", (B, H, j, u), ACC))
        b.comment("The new token's slot is read from registers, not from the memory that is about to change.")
        is_new = column(j.equals(slot))
        keys = b.let("K", Where(is_new, row(key), old_keys))
        values = b.let("Y", Where(is_new, row(value), old_values))
        terms = b.let("terms", keys * row(query))
        products = b.let("R", Sum(terms, 1))
        seen = (j <= position) & (j < layer.window)
        scores = b.let("scores", Where(seen, products * LOGIT, wrap(HIDDEN)))
        tile_top = b.let("tile_top", Max(scores, 0))
        new_top = b.let("new_top", maximum(top, tile_top))
        weights = b.let("P", Unary("exp2", scores - new_top))
        correction = b.let("correction", Unary("exp2", top - new_top))
        tile_total = b.let("tile_total", Sum(weights, 0))
        b.set(total, total * correction + tile_total)
        weighted = b.let("weighted", column(weights) * values)
        tile_out = b.let("tile_out", Sum(weighted, 0))
        b.set(out, out * correction + tile_out)
        b.set(top, new_top)
    b.store("o", (B, zero, H, u), Cast(out / total, IO))
    b.store("ring_k", (B, H, slot, d), Cast(key, IO))
    b.store("ring_v", (B, H, slot, u), Cast(value, IO))
    b.store("position", (B, H), position + 1)
    tensors = (
        Tensor("q", (*QUERY_ROWS, layer.qk), IO, strided=True),
        Tensor("k", (*QUERY_ROWS, layer.qk), IO, strided=True),
        Tensor("v", (*QUERY_ROWS, layer.v), IO, strided=True),
        Tensor("ring_k", ("B", "H", layer.window, layer.qk), IO),
        Tensor("ring_v", ("B", "H", layer.window, layer.v), IO),
        Tensor("position", ("B", "H"), INDEX),
        Tensor("o", (*QUERY_ROWS, layer.v), IO),
    )
    return Program(
        "token",
        "One token: it enters the ring and attends to it.",
        BATCH_AXES,
        tensors,
        ("B", "T", "H"),
        ("scale",),
        (),
        ("KEYS", "QK", "VALUES"),
        b.body,
        {"QK": layer.qk, "VALUES": layer.v},
        frozenset({SOFTMAX, TOKEN}),
    )
