"""Sums of features token by token, with the state in registers: a second look at a whole segment.

It is what steps do, in a loop.  No token is in the state before it comes, so none reaches what came before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from ..ir.nodes import ACC, Expr, Full, Load, Span, Sum, Var, column, row
from ..lower.second_look import mend
from .states import B, Block, H, Sources
from .sums import Sums


class Walk:
    """The tokens `first` to `stop` - 1 of a memory, one after the other."""

    def __init__(self, memory: Sums, first: Var, stop: Var, sources: Sources) -> None:
        self.memory, self.b, self.features = memory, memory.b, memory.features
        self.first, self.stop = first, stop
        b = self.b
        self.tiles = tuple(f"{name}_row" for name in memory.tiles if name != "weight")
        with self._blocks() as f0:
            f = b.let("f_row", Span(f0, memory.size))
            self.block = Block(f, self.features.select(b, f, "_row"))
            self.state = memory.zeros(f, "_row")
            for flag, (kept, index) in sources.items():
                with b.when(flag):
                    self.state.restore(kept, "_stored", *index)

    def outputs(self) -> None:
        """o of the queries."""
        b, u = self.b, self.memory.u
        with b.loop("t_row", self.first, self.stop) as t:
            value = b.let("v_row", Load("v", (B, t, H, u), ACC))
            out, n = b.let("o_row", Full(("VALUES",), 0.0)), b.let("n_row", Full((), 0.0))
            with self._blocks():
                self._enter(t, value)
                query = self._weighted(t)
                b.add(out, Sum(b.let("S_read", column(query) * self.state.sums), 0))
                if self.memory.normalizer:
                    b.add(n, Sum(b.let("z_read", query * self.state.normalizer()), 0))
            if self.memory.normalizer:
                b.set(out, out / (n + self.memory.normalizer.eps))
            mend(b, "o", (B, t, H, u), out)

    def query_gradients(self, part: tuple[Expr, ...] = ()) -> None:
        """dq of the queries, from the gradients that were stored; of what has parts, this `part`."""
        b, d = self.b, self.memory.d
        with b.loop("t_row", self.first, self.stop) as t:
            value = b.let("v_row", Load("v", (B, t, H, self.memory.u), ACC))
            gradient, e = self._gradient(t)
            loaded, _ = self.features.exact(b, "q_row", "q", (B, t, H, d), d)
            dq = b.let("dq_row", Full(("QK",), 0.0))
            with self._blocks():
                self._enter(t, value)
                by_feature = b.let("dP_row", Sum(b.let("S_read", self.state.sums * row(gradient)), 1))
                if e:
                    b.add(by_feature, self.state.normalizer() * e)
                b.set(by_feature, by_feature * self.features.weight(self.block.f, self.block.selection))
                self._adjoint(by_feature, "q", t, dq)
            mend(b, "dq", (B, t, H, *part, d), self.features.leave(loaded, dq))

    def key_gradients(self, part: tuple[Expr, ...] = ()) -> None:
        """dk, or this `part` of it, and dv, last to first, with the mirrored state of the queries after."""
        b, d, u = self.b, self.memory.d, self.memory.u
        with b.loop("i_row", 0, self.stop - self.first) as i:
            t = b.let("t_row", self.stop - 1 - i)
            value = b.let("v_row", Load("v", (B, t, H, u), ACC))
            gradient, e = self._gradient(t)
            loaded, _ = self.features.exact(b, "k_row", "k", (B, t, H, d), d)
            dk, dv = b.let("dk_row", Full(("QK",), 0.0)), b.let("dv_row", Full(("VALUES",), 0.0))
            with self._blocks():
                query = self._weighted(t)
                self._fade(t + 1)
                b.add(self.state.sums, column(query) * row(gradient))
                by_feature = b.let("dP_row", Sum(b.let("S_products", self.state.sums * row(value)), 1))
                if e:
                    b.add(self.state.normalizer(), query * e)
                    b.add(by_feature, self.state.normalizer())
                key = self._row("key_row", "k", t)
                b.add(dv, Sum(b.let("S_read", column(key) * self.state.sums), 0))
                self._adjoint(by_feature, "k", t, dk)
            mend(b, "dk", (B, t, H, *part, d), self.features.leave(loaded, dk))
            mend(b, "dv", (B, t, H, u), dv)

    # Pieces

    def _blocks(self) -> AbstractContextManager[Var]:
        return self.b.blocks("f0_row", self.features.rows, self.memory.size, self.tiles)

    def _enter(self, t: Var, value: Var) -> None:
        """Let a key and its value enter the state, which fades before that."""
        self._fade(t)
        key = self._row("key_row", "k", t)
        self.b.add(self.state.sums, column(key) * row(value))
        if self.memory.normalizer:
            self.b.add(self.state.normalizer(), key)

    def _fade(self, t: Expr) -> None:
        """What is left of the state after a token of the segment; past that it is as it was found."""
        self.state.fade(self.memory.of_token("row_log", t, self.stop))

    def _weighted(self, t: Var) -> Var:
        plain = self._row("query_row", "q", t)
        return self.b.let("query_weighted", plain * self.features.weight(self.block.f, self.block.selection))

    def _row(self, name: str, tensor: str, t: Var) -> Var:
        """Features of one token."""
        return self.features.row_features(self.b, name, tensor, (B, t, H), self.block.f, self.block.selection)

    def _adjoint(self, gradient: Var, tensor: str, t: Var, into: Var) -> None:
        f, selection = self.block.f, self.block.selection
        self.features.row_adjoint(self.b, gradient, tensor, (B, t, H), f, selection, into)

    def _gradient(self, t: Var) -> tuple[Var, Var | None]:
        """g and e of one token, from where they were stored."""
        normalizes = self.memory.normalizer is not None
        gradient = Load("g" if normalizes else "do", (B, t, H, self.memory.u), ACC)
        e = Load("e", (B, H, t), ACC)
        return self.b.let("g_row", gradient), self.b.let("e_row", e) if normalizes else None
