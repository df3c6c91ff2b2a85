"""A window of keys and sums of features, each read under a normaliser of its own, and added.

    o_i = a (Σ_{i-j<W} e^(s_ij) v_j) / (Σ_{i-j<W} e^(s_ij)) + c (Φ(u_i)ᵀ S_i) / (Φ(u_i)·z_i + eps)

Backward, each part is its memory's own, given a do_i and c do_i.  The factors are owed do_i·o_i of the parts.
"""

from __future__ import annotations

from ..ir.nodes import ACC, IO, OPERAND, Cast, Expr, Full, Load, Sum, Var, column
from ..lower.second_look import mend
from . import sums, window
from .highest import Highest
from .hybrid import GIVEN, Gradients, Hybrid, Owed, times
from .states import B, H
from .sums_token import Token
from .window_rows import RowSums


class Added(Hybrid):
    """The memory of one program of a layer that adds its parts."""

    least = None
    apart = True

    def logits(self) -> window.Logits:
        return window.Logits(self.window.scale * window.LOG2_E)

    def begin(self, answer: sums.Answer, t: Var) -> window.Answer:
        b, n = self.b, self._n(answer)
        b.store("n", (B, H, t), n)
        b.set(answer.out, answer.out / column(n + self.eps))
        b.store("o_linear", (B, t, H, self.u), Cast(answer.out, IO))
        out = b.let("O_window", Full(("CHUNK", "VALUES"), 0.0))
        total = b.let("total", Full(("CHUNK",), 0.0))
        return window.Answer(out, b.let("top", Full(("CHUNK",), window.LEAST)), total)

    def finish(self, softmax: window.Answer, answer: sums.Answer, t: Var) -> None:
        b = self.b
        b.store("lse", (B, H, t), softmax.lse())
        mean = b.let("O_mean", softmax.divided())
        b.store("o_window", (B, t, H, self.u), Cast(mean, IO))
        both = times(self.factors.window, mean) + times(self.factors.linear, answer.out)
        b.store("o", (B, t, H, self.u), Cast(both, IO))

    def inverse(self, t: Var) -> Expr:
        return Full(("CHUNK",), 1.0) / (self._sums(t) + self.eps)

    def finish_again(self, near: Var, far: Var, t: Var) -> None:
        b, index = self.b, (B, t, H, self.u)
        for name, part in (("o_window", near), ("o_linear", far)):
            mend(b, name, index, part)
        mend(b, "o", index, times(self.factors.window, near) + times(self.factors.linear, far))

    def begin_row(self, token: Token) -> RowSums:
        return RowSums.start(self.b, self.window.logits)

    def finish_row(self, softmax: Expr, row_sums: RowSums, token: Token) -> Expr:
        older = token.out / (token.sum() + self.eps)
        return times(self.factors.window, softmax) + times(self.factors.linear, older)

    def own_gradients(self, t: Var, queries: Var, owed: Owed) -> Gradients:
        b, u, factors = self.b, self.u, self.factors
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        near = b.let("products", do * b.let("O_window", Load("o_window", (B, t, H, u), ACC)))
        of_window = b.let("delta_window", Sum(near, 1))
        far = b.let("products_linear", do * b.let("O_linear", Load("o_linear", (B, t, H, u), ACC)))
        of_linear = b.let("delta_linear", Sum(far, 1))
        for numbers, delta in ((owed.window, of_window), (owed.linear, of_linear)):
            if numbers is not None:
                b.set(numbers, delta)
        weight = b.let("inverse", times(factors.linear, Full(("CHUNK",), 1.0)) / (self._sums(t) + self.eps))
        older = self._older_gradients(t, do, of_linear, weight)
        delta = b.let("delta", times(factors.window, of_window))
        b.store("delta_rows", (B, H, t), delta)
        operand = b.let("dO_operand", Cast(times(factors.window, do), OPERAND))
        return Gradients(older, window.Queries(queries, operand, self._lse("lse_own", t), delta))

    def store_owed(self, owed: Owed, t: Var, highest: Highest | None = None) -> None:
        for name in self.names:
            numbers = owed.of(name)
            assert numbers is not None
            with self.b.when(GIVEN[name]):
                self.b.store(f"{name}_rows", (B, H, t), numbers)

    def _sums(self, t: Var) -> Var:
        return self.b.let("N", Load("n", (B, H, t), ACC, fill=1.0))

    def _do(self, name: str, t: Var) -> Var:
        if self.factors.window is None:
            return super()._do(name, t)
        return self.b.let(f"dO_{name}", Cast(self.exact_do(f"dO_{name}_exact", t), OPERAND))

    def exact_do(self, name: str, t: Var) -> Expr:
        return times(self.factors.window, super().exact_do(name, t))
