"""A window of keys and sums of features under one normaliser, of which the window alone is rescaled.

    o_i = (a Σ_{i-j<W} e^(s_ij - m_i) v_j + c Φ(u_i)ᵀ S_i) / (a Σ_{i-j<W} e^(s_ij - m_i) + c Φ(u_i)·z_i + eps)

with m_i the highest score in the window: LoLCATs' form (arXiv 2410.10254).  The highest key of a window has
the weight a, whatever its score is; so m does not cancel.

Backward, with L_i = m_i + the logarithm of the divisor, P and delta are those of `hybrid.py`.  A higher m
takes weight from the whole window: it is owed -ρ_i, where ρ_i = Σ_j P_ij (do_i·v_j - delta_i), and hands that
on to the score of the highest key, of several the oldest.  The factor of the window is owed ρ_i / a.
"""

from __future__ import annotations

from ..ir.nodes import (
    ACC,
    IO,
    Cast,
    Expr,
    Full,
    Load,
    Var,
    Where,
    column,
    row,
    wrap,
)
from . import sums, window
from .highest import Highest
from .hybrid import Hybrid, Owed, times
from .states import B, H
from .sums_token import Token
from .window_rows import RowSums

SHIFT, AGE = "shift_rows", "age_rows"
"""What the programs of keys read of each query: ρ, and how many tokens before it the highest key is."""


class Windowed(Hybrid):
    """The memory of one program of a layer that rescales its window alone."""

    # Read

    def begin(self, answer: sums.Answer, t: Var) -> window.Answer:
        b = self.b
        out = b.let("O_window", Full(("CHUNK", "VALUES"), 0.0))
        total = b.let("total", Full(("CHUNK",), 0.0))
        return window.Answer(out, b.let("top", Full(("CHUNK",), window.LEAST)), total)

    def finish(self, softmax: window.Answer, answer: sums.Answer, t: Var) -> None:
        b, near, far = self.b, self.factors.window, self.factors.linear
        older = times(far, self._n(answer)) + self.eps
        # A window whose scores are all minus infinity makes NaN, as its softmax alone does.
        divisor = b.let("divisor", (times(near, softmax.total) + older) * (softmax.total / softmax.total))
        b.store("n", (B, H, t), divisor)
        bias = self.window.logits.bias  # part of the highest score, though not of m
        top = softmax.top if bias is None else b.let("highest", softmax.top - bias)
        b.store("lse", (B, H, t), window.Answer(softmax.out, top, divisor).lse())
        both = times(near, softmax.out) + times(far, answer.out)
        b.store("o", (B, t, H, self.u), Cast(both / column(divisor), IO))

    def inverse(self, t: Var) -> Expr:
        divisor = self.b.let("N", Load("n", (B, H, t), ACC, fill=1.0))
        return times(self.factors.linear, Full(("CHUNK",), 1.0)) / divisor

    def begin_row(self, token: Token) -> RowSums:
        return RowSums.start(self.b, self.window.logits)

    def finish_row(self, softmax: Expr, row_sums: RowSums, token: Token) -> Expr:
        near, far = self.factors.window, self.factors.linear
        total = self.b.let("total_of_window", times(near, row_sums.total))
        older = times(far, token.sum()) + self.eps
        return (softmax * total + times(far, token.out)) / (total + older)

    # Adjoints

    def owed(self) -> Owed:
        owed = super().owed()
        return owed if owed.window else Owed(self.b.let("rho", Full(("CHUNK",), 0.0)), owed.linear)

    def highest(self) -> Highest:
        return Highest.start(self.window)

    def store_owed(self, owed: Owed, t: Var, highest: Highest | None = None) -> None:
        assert owed.window is not None and highest is not None
        super().store_owed(owed, t)
        self.b.store(SHIFT, (B, H, t), owed.window)
        self.b.store(AGE, (B, H, t), highest.age)

    def shift(self, name: str, t: Expr, ages: Expr, by_key: bool = False) -> Expr:
        age = self.b.let(f"age_{name}", Load(AGE, (B, H, t), ACC))
        shift = self.b.let(f"shift_{name}", Load(SHIFT, (B, H, t), ACC))
        laid = row if by_key else wrap
        return Where(Cast(ages, ACC).equals(laid(age)), laid(shift), wrap(0.0))

    def _weight_of_older(self, t: Var, lse: Var) -> Expr:
        return self.inverse(t)
