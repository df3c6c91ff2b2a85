"""Exact softmax attention in a sliding window: query i sees its own key and the window - 1 before it.

    P_ij = exp(scale · q_i·k_j - lse_i)      o_i = Σ_j P_ij v_j      (as in Based, arXiv 2402.18668)

The keys may reach further back than the queries: with Tk keys and T queries, query i stands at key i + (Tk -
T), so a prompt can be fed in pieces by putting the last keys of the previous piece in front.  ``first[b,
h]``, where given, is the first of those keys that exists.

Backward recomputes P from lse; with delta_i = do_i·o_i:  dS_ij = P_ij (do_i·v_j - delta_i).
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
    minimum,
    row,
    wrap,
)
from ..spec.model import SlidingWindow

B, H, T, TK = Var("b"), Var("h"), Var("T"), Var("Tk")
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
QUERY_ROWS, KEY_ROWS = ("B", "T", "H"), ("B", "Tk", "H")
SIZES = ("B", "T", "Tk", "H")
LOG2_E = 1.0 / log(2.0)
HIDDEN = -1.0e30
"""The score of a key that a query does not see: finite, so that a tile with no visible key makes no NaN."""
UNREACHED = 1.0e30
"""The lse of a row past the end: no probability survives it."""


def programs(spec: SlidingWindow) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    lowering = _Lowering(spec)
    return (
        lowering.outputs(),
        lowering.deltas(),
        lowering.query_gradients(),
        lowering.key_gradients(),
        lowering.step(),
    )


class _Lowering:
    """The programs of one layer; the methods share its widths."""

    def __init__(self, spec: SlidingWindow) -> None:
        self.window, self.qk, self.v = spec.window, spec.head_dims.qk, spec.head_dims.v

    # Parameters

    def _inputs(self) -> tuple[Tensor, ...]:
        return (
            Tensor("q", (*QUERY_ROWS, self.qk), IO, strided=True),
            Tensor("k", (*KEY_ROWS, self.qk), IO, strided=True),
            Tensor("v", (*KEY_ROWS, self.v), IO, strided=True),
        )

    def _program(
        self,
        name: str,
        summary: str,
        axes: tuple[Axis, ...],
        tensors: tuple[Tensor, ...],
        b: Builder,
        constants: tuple[str, ...],
    ) -> Program:
        first = Tensor("first", ("B", "H"), INDEX, optional="PADDED")
        return Program(
            name,
            summary,
            (*BATCH_AXES, *axes),
            (*tensors, first),
            SIZES,
            ("scale",),
            ("PADDED",),
            (*constants, "QK", "VALUES"),
            b.body,
            {"QK": self.qk, "VALUES": self.v},
        )

    # Pieces

    def _visible(self, place: Expr, j: Expr, first: Var) -> Expr:
        """Which keys `j` a query that stands at key `place` sees."""
        return (j <= place) & (j > place - self.window) & (j >= first)

    def _first(self, b: Builder) -> Var:
        first = b.let("first_key", wrap(0))
        with b.when("PADDED"):
            b.set(first, Load("first", (B, H), INDEX))
        return first

    def _aligned(self, start: Expr, step: str) -> Expr:
        """The last multiple of a tile at or before `start`, and not before 0."""
        return maximum(start, 0) // step * step

    def _probabilities(self, b: Builder, scores: Var, lse: Expr, visible: Expr) -> Var:
        logits = scores * (Var("scale") * LOG2_E) - lse * LOG2_E
        return b.let("P", Where(visible, Unary("exp2", logits), wrap(0.0)))

    # Programs

    def outputs(self) -> Program:
        """o and lse of one chunk of queries."""
        b = Builder()
        t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
        d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
        queries = b.let("Q", Load("q", (B, t, H, d), OPERAND))
        out = b.let("O", Full(("CHUNK", "VALUES"), 0.0))
        top = b.let("top", Full(("CHUNK",), HIDDEN))
        total = b.let("total", Full(("CHUNK",), 0.0))
        first = self._first(b)
        place0 = b.let("place", Var("chunk") * "CHUNK" + TK - T)
        end = minimum(place0 + "CHUNK", TK)
        with b.loop("j0", self._aligned(place0 - self.window + 1, "KEYS"), end, "KEYS") as j0:
            j = b.let("j", Span(j0, "KEYS"))
            keys = b.let("K", Load("k", (B, j, H, d), OPERAND))
            values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
            products = b.let("R", Dot(queries, Transpose(keys)))
            place = column(t) + (TK - T)
            scores = b.let(
                "scores",
                Where(self._visible(place, row(j), first), products * (Var("scale") * LOG2_E), wrap(HIDDEN)),
            )
            tile_top = b.let("tile_top", Max(scores, 1))
            new_top = b.let("new_top", maximum(top, tile_top))
            weights = b.let("P", Unary("exp2", scores - column(new_top)))
            correction = b.let("correction", Unary("exp2", top - new_top))
            tile_total = b.let("tile_total", Sum(weights, 1))
            b.set(total, total * correction + tile_total)
            b.set(out, out * column(correction))
            matrix = b.let("P_operand", Cast(weights, OPERAND))
            b.add(out, Dot(matrix, values))
            b.set(top, new_top)
        b.store("lse", (B, t, H), (top + Unary("log2", total)) * log(2.0))
        b.store("o", (B, t, H, u), Cast(out / column(total), IO))
        tensors = (*self._inputs(), Tensor("o", (*QUERY_ROWS, self.v), IO), Tensor("lse", QUERY_ROWS, ACC))
        return self._program(
            "outputs",
            "The outputs of one chunk of queries.",
            (Axis("chunk", cdiv("T", "CHUNK")),),
            tensors,
            b,
            ("CHUNK", "KEYS"),
        )

    def deltas(self) -> Program:
        """delta = do·o, what every score of a row owes to the softmax's normaliser."""
        b = Builder()
        t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
        u = b.let("u", Span(wrap(0), "VALUES"))
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        o = b.let("O", Load("o", (B, t, H, u), ACC))
        products = b.let("products", do * o)
        total = b.let("total", Sum(products, 1))
        b.store("delta", (B, t, H), total)
        tensors = (
            Tensor("do", (*QUERY_ROWS, self.v), IO, strided=True),
            Tensor("o", (*QUERY_ROWS, self.v), IO),
            Tensor("delta", QUERY_ROWS, ACC),
        )
        return Program(
            "deltas",
            "The dot product of each output with its gradient.",
            (*BATCH_AXES, Axis("chunk", cdiv("T", "CHUNK"))),
            tensors,
            ("B", "T", "H"),
            (),
            (),
            ("CHUNK", "VALUES"),
            b.body,
            {"VALUES": self.v},
        )

    def query_gradients(self) -> Program:
        """dq of one chunk of queries."""
        b = Builder()
        t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
        d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
        queries = b.let("Q", Load("q", (B, t, H, d), OPERAND))
        gradients = b.let("dO", Load("do", (B, t, H, u), OPERAND))
        lse = b.let("lse_row", Load("lse", (B, t, H), ACC, fill=UNREACHED))
        delta = b.let("delta_row", Load("delta", (B, t, H), ACC))
        dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
        first = self._first(b)
        place0 = b.let("place", Var("chunk") * "CHUNK" + TK - T)
        end = minimum(place0 + "CHUNK", TK)
        with b.loop("j0", self._aligned(place0 - self.window + 1, "KEYS"), end, "KEYS") as j0:
            j = b.let("j", Span(j0, "KEYS"))
            keys = b.let("K", Load("k", (B, j, H, d), OPERAND))
            values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
            products = b.let("R", Dot(queries, Transpose(keys)))
            visible = self._visible(column(t) + (TK - T), row(j), first)
            weights = self._probabilities(b, products, column(lse), visible)
            by_weight = b.let("dP", Dot(gradients, Transpose(values)))
            by_product = b.let("dR", Cast(weights * (by_weight - column(delta)), OPERAND))
            b.add(dq, Dot(by_product, keys))
        b.store("dq", (B, t, H, d), Cast(dq * Var("scale"), IO))
        tensors = (
            *self._inputs(),
            Tensor("do", (*QUERY_ROWS, self.v), IO, strided=True),
            Tensor("lse", QUERY_ROWS, ACC),
            Tensor("delta", QUERY_ROWS, ACC),
            Tensor("dq", (*QUERY_ROWS, self.qk), IO),
        )
        return self._program(
            "query_gradients",
            "The gradient of one chunk of queries.",
            (Axis("chunk", cdiv("T", "CHUNK")),),
            tensors,
            b,
            ("CHUNK", "KEYS"),
        )

    def key_gradients(self) -> Program:
        """dk and dv of one chunk of keys."""
        b = Builder()
        j = b.let("j", Span(Var("chunk") * "CHUNK", "CHUNK"))
        d, u = b.let("d", Span(wrap(0), "QK")), b.let("u", Span(wrap(0), "VALUES"))
        keys = b.let("K", Load("k", (B, j, H, d), OPERAND))
        values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
        dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
        dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
        first = self._first(b)
        # Key j is seen by the queries that stand at j ... j + window - 1.
        start = b.let("start", Var("chunk") * "CHUNK" - (TK - T))
        with b.loop(
            "t0", self._aligned(start, "QUERIES"), minimum(start + "CHUNK" + (self.window - 1), T), "QUERIES"
        ) as t0:
            t = b.let("t", Span(t0, "QUERIES"))
            queries = b.let("Q", Load("q", (B, t, H, d), OPERAND))
            gradients = b.let("dO", Load("do", (B, t, H, u), OPERAND))
            lse = b.let("lse_row", Load("lse", (B, t, H), ACC, fill=UNREACHED))
            delta = b.let("delta_row", Load("delta", (B, t, H), ACC))
            products = b.let("R", Dot(keys, Transpose(queries)))
            visible = self._visible(row(t) + (TK - T), column(j), first)
            weights = self._probabilities(b, products, row(lse), visible)
            matrix = b.let("P_operand", Cast(weights, OPERAND))
            b.add(dv, Dot(matrix, gradients))
            by_weight = b.let("dP", Dot(values, Transpose(gradients)))
            by_product = b.let("dR", Cast(weights * (by_weight - row(delta)), OPERAND))
            b.add(dk, Dot(by_product, queries))
        b.store("dk", (B, j, H, d), Cast(dk * Var("scale"), IO))
        b.store("dv", (B, j, H, u), Cast(dv, IO))
        tensors = (
            *self._inputs(),
            Tensor("do", (*QUERY_ROWS, self.v), IO, strided=True),
            Tensor("lse", QUERY_ROWS, ACC),
            Tensor("delta", QUERY_ROWS, ACC),
            Tensor("dk", (*KEY_ROWS, self.qk), IO),
            Tensor("dv", (*KEY_ROWS, self.v), IO),
        )
        return self._program(
            "key_gradients",
            "The gradients of one chunk of keys and values.",
            (Axis("chunk", cdiv("Tk", "CHUNK")),),
            tensors,
            b,
            ("CHUNK", "QUERIES"),
        )

    def step(self) -> Program:
        """One token: its key and value replace the oldest of the ring, then it attends to the ring."""
        b = Builder()
        zero = wrap(0)
        d, u = b.let("d", Span(zero, "QK")), b.let("u", Span(zero, "VALUES"))
        query = b.let("query", Load("q", (B, zero, H, d), ACC))
        key = b.let("key", Load("k", (B, zero, H, d), ACC))
        value = b.let("value", Load("v", (B, zero, H, u), ACC))
        position = b.let("place", Load("position", (B, H), INDEX))
        slot = b.let("slot", position % self.window)
        out = b.let("O", Full(("VALUES",), 0.0))
        top = b.let("top", Full((), HIDDEN))
        total = b.let("total", Full((), 0.0))
        with b.loop("j0", 0, self.window, "KEYS") as j0:
            j = b.let("j", Span(j0, "KEYS"))
            old_keys = b.let("old_K", Load("ring_k", (B, H, j, d), ACC))
            old_values = b.let("old_Y", Load("ring_v", (B, H, j, u), ACC))
            b.comment(
                "The new token's slot is read from registers, not from the memory that is about to change."
            )
            is_new = column(j.equals(slot))
            keys = b.let("K", Where(is_new, row(key), old_keys))
            values = b.let("Y", Where(is_new, row(value), old_values))
            terms = b.let("terms", keys * row(query))
            products = b.let("R", Sum(terms, 1))
            seen = (j <= position) & (j < self.window)
            scores = b.let("scores", Where(seen, products * (Var("scale") * LOG2_E), wrap(HIDDEN)))
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
            Tensor("q", (*QUERY_ROWS, self.qk), IO, strided=True),
            Tensor("k", (*QUERY_ROWS, self.qk), IO, strided=True),
            Tensor("v", (*QUERY_ROWS, self.v), IO, strided=True),
            Tensor("ring_k", ("B", "H", self.window, self.qk), IO),
            Tensor("ring_v", ("B", "H", self.window, self.v), IO),
            Tensor("position", ("B", "H"), INDEX),
            Tensor("o", (*QUERY_ROWS, self.v), IO),
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
            {"QK": self.qk, "VALUES": self.v},
        )
