"""Sums of features: the memory of linear attention (Based, arXiv 2402.18668).

    S = Σ_j Φ(w_j) v_jᵀ      z = Σ_j Φ(w_j)

A key and its value *enter* S and z; a query *reads* them, o = Φ(u)ᵀ S and n = Φ(u)·z; a query and a key that
are too close for the state *pair up* with weight A = f(scale · u·w), which is what S and z would give.  Each
has its adjoint.  Mirrored sums, of queries with the gradients that their outputs have, Σ_i Φ(u_i) g_iᵀ and
Σ_i e_i Φ(u_i), are the same memory: backward, a key reads them.

All of it is linear in S, so a memory that *fades* differs in these places alone.  A state is multiplied by a
factor before later tokens enter it (`State.add` and `State.pass_by`), a tile's tokens enter by what will be
left of them at its end (`enter`), queries read by what is left of the state (`fade_got`, `fade_rows`), and
the weight of a pair by what is left in between (`_weights` and `_slopes`).  `fade.py` has the factors; they
are None where nothing fades.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    Cast,
    Dot,
    Expr,
    Load,
    Sum,
    Transpose,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..lower.features import SCALE
from .fade import Logs, pairs
from .states import B, Block, H, State, Stored
from .sums_read import Answer as Answer  # who imports this module takes it from here
from .sums_read import Reading


@dataclass(frozen=True)
class Gradients:
    """What backward a tile of queries brings: g as an operand, and e if the layer normalises.

    e is one number a row, 0 past the end of the sequence; a `Load` is done where it is needed.
    """

    g: Var
    e: Var | Load | None

    def read_e(self, b: Builder) -> Var | None:
        return b.let("E", self.e) if isinstance(self.e, Load) else self.e


class Sums(Reading):
    """The memory of one program, backward too."""

    # Adjoints

    def gradients(self, t: Var) -> Gradients:
        """g and e of a tile of queries, from where they were stored."""
        return Gradients(
            self.b.let("G", Load("g" if self.normalizes else "do", (B, t, H, self.u), OPERAND)),
            Load("e", (B, H, t), ACC) if self.normalizes else None,
        )

    def own_gradients(self, t: Var) -> Gradients:
        """g and e of a tile of queries, from the gradient of o; stored for other programs."""
        if not self.normalizer:
            return self.gradients(t)
        b, u = self.b, self.u
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        n = b.let("N", Load("n", (B, H, t), ACC, fill=1.0))
        products = b.let("products", do * b.let("O", Load("o", (B, t, H, u), ACC)))
        e = b.let("E", -b.let("total", Sum(products, 1)) / (n + self.normalizer.eps))
        b.store("e", (B, H, t), e)
        g = b.let("G", Cast(do / column(n + self.normalizer.eps), OPERAND))
        b.store("g", (B, t, H, u), g)
        return Gradients(g, e)

    def read_by_query(
        self,
        dq: Var,
        queries: Var,
        gradients: Gradients,
        block: Block,
        state: State | Stored,
        owed: Var | None = None,
        scale: Expr = SCALE,
    ) -> None:
        """The adjoint of `read`: add to dq, of queries as operands, what they owe to a state.

        Here and below `owed` gets the sums of dA A over a token's pairs, which its weights owe to G, and
        `scale` is 1 if queries have it in them.
        """
        b = self.b
        weights = self.features.weights if scale == SCALE else self.features.fixed_weights
        weight = weights(b, block.f, block.selection)
        by_feature = b.let("dP", Dot(gradients.g, Transpose(state.operand())))
        if e := gradients.read_e(b):
            b.add(by_feature, column(e) * row(state.numbers()))
        if weight:
            b.set(by_feature, by_feature * row(weight))
        if owed:
            features = self.features.features(b, "P", queries, block.selection)
            b.add(owed, Sum(b.let("P_dP", features * by_feature), 1))
        self.features.adjoint(b, by_feature, queries, block.selection, into=dq)

    def read_by_key(
        self,
        dk: Var,
        dv: Var | None,
        keys: Var,
        values: Var,
        block: Block,
        mirrored: State | Stored,
        owed: Var | None = None,
    ) -> None:
        """The adjoint of `enter`: add to dk and dv what keys and values owe to the sums of later queries.

        Here and in `pair_by_key` dv may be left out.
        """
        b = self.b
        features = self.features.features(b, "P", keys, block.selection)
        matrix = b.let("P_operand", Cast(features, OPERAND))
        state = mirrored.operand()
        if dv:
            b.add(dv, Dot(matrix, state))
        by_feature = b.let("dP", Dot(values, Transpose(state)))
        if self.normalizer:
            b.add(by_feature, row(mirrored.numbers()))
        if owed:
            b.add(owed, Sum(b.let("P_dP", features * by_feature), 1))
        self.features.adjoint(b, by_feature, keys, block.selection, into=dk)

    def read_rest(self, into: Var, operand: Var, rows: Var, block: Block, state: State) -> None:
        """Add to dq or dk what `read_by_query` or `read_by_key` lack since the state is rounded.

        `operand` has what is differentiated by, `rows` what the state is multiplied with.
        """
        by_feature = self.b.let("dP_rest", Dot(rows, Transpose(state.rest())))
        self.features.adjoint(self.b, by_feature, operand, block.selection, into=into)

    def pair_by_query(
        self,
        dq: Var,
        queries: Var,
        gradients: Gradients,
        keys: Var,
        values: Var,
        seen: Expr,
        logs: Logs = None,
        owed: Var | None = None,
        scale: Expr = SCALE,
    ) -> None:
        """An adjoint of `pair`: add to dq, from tiles with a row a query."""
        b = self.b
        products = b.let("R", Dot(queries, Transpose(keys)))
        by_kernel = b.let("dA", Dot(gradients.g, Transpose(values)))
        if e := gradients.read_e(b):
            b.add(by_kernel, column(e))
        seen, kept = b.let("seen", seen), pairs(logs)
        if owed:
            weights = b.let("A", self._weights(products, seen, scale, kept))
            b.add(owed, Sum(b.let("A_dA", Where(seen, weights * by_kernel, wrap(0.0))), 1))
        by_product = b.let("dR", Cast(self._slopes(products, seen, by_kernel, scale, kept), OPERAND))
        b.add(dq, Dot(by_product, keys, among=seen))

    def pair_by_key(
        self,
        dk: Var,
        dv: Var | None,
        keys: Var,
        values: Var,
        queries: Var,
        gradients: Gradients,
        seen: Expr,
        logs: Logs = None,
        owed: Var | None = None,
        scale: Expr = SCALE,
    ) -> None:
        """An adjoint of `pair`: add to dk and dv, from tiles with a row a key."""
        b = self.b
        products = b.let("R", Dot(keys, Transpose(queries)))
        seen = b.let("seen", seen)
        kept = pairs(logs, by_key=True)
        exact = self._weights(products, seen, scale, kept)
        if owed:
            exact = b.let("A_exact", exact)
        if dv:
            weights = b.let("A", Cast(exact, OPERAND))
            b.add(dv, Dot(weights, gradients.g, among=seen))
        by_kernel = b.let("dA", Dot(values, Transpose(gradients.g)))
        if e := gradients.read_e(b):
            b.add(by_kernel, row(e))
        if owed:
            b.add(owed, Sum(b.let("A_dA", Where(seen, exact * by_kernel, wrap(0.0))), 1))
        by_product = b.let("dR", Cast(self._slopes(products, seen, by_kernel, scale, kept), OPERAND))
        b.add(dk, Dot(by_product, queries, among=seen))

    def _slopes(self, products: Var, seen: Expr, by_kernel: Var, scale: Expr, kept: Expr | None) -> Expr:
        """The gradient by the products of a tile of pairs, given the one by their weights."""
        slopes = by_kernel * self.features.slope(products, scale)
        return Where(seen, slopes * kept if kept else slopes, wrap(0.0))
