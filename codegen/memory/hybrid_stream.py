"""A window and a state of which a program goes through all chunks: the memory of a hybrid in one pass.

A window is as long as a chunk.  So of the chunk before its own a query has some keys still in its window, and
the others have left it; and what is older is in the state.  Those that have left it stand in the tile of
scores where the chunk's own keys have the later ones: the two tiles of products become one of exponentials
and one of the feature map's weights, which meet the older values in one product.
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
    Max,
    Sum,
    Unary,
    Var,
    Where,
    column,
    maximum,
    row,
    wrap,
)
from ..lower.sequence import Sequence
from .hybrid import Recent
from .states import B, H
from .sums import Sums
from .window import Answer, Keys, score
from .window_stream import NOTHING, WindowStream


@dataclass(frozen=True)
class Weights:
    """What a chunk's queries give to its own values and to those of the chunk before it, as operands.

    All is relative to the highest score, or to 0 if that is higher; `fall` is what that leaves of 1.
    """

    own: Var
    old: Var
    top: Var
    total: Var
    fall: Var


class HybridStream(WindowStream):
    """The memory of one program over chunks that are as long as a window; `sums` are those of older keys."""

    first = Recent.first

    def __init__(self, b: Builder, window: int, queries: Sequence, keys: Sequence, sums: Sums) -> None:
        super().__init__(b, window, queries, keys, window)
        self.sums = sums

    def queries_of(self, t: Var) -> tuple[Var, Var]:
        """A tile of queries as they are, and with the scale in them."""
        b = self.b
        plain = b.let("Q", Load(self.q, (B, t, H, self.d), OPERAND))
        return plain, b.let("Q_scaled", Cast(Cast(plain, ACC) * Var("scale"), OPERAND))

    def weigh(self, t0: Expr, t: Var, first: Var, queries: Var) -> tuple[Weights, Keys, Keys]:
        """The weights of the chunk from `t0` on, its keys, and those of the chunk before."""
        b = self.b
        j, own_keys = self._tile("", t0, 0)
        j_old, old_keys = self._tile("_old", t0, 1)
        own = b.let("own", column(t) >= row(t))
        products = self._products("R", own, queries, own_keys.k, old_keys.k)
        scores = b.let("scores", self.logits.of(products))
        left = b.let("A", Where(own, self.sums.features.kernel(Var("R_old")), wrap(0.0)))
        with self._where_some_are_hidden(t0, first):
            b.set(scores, score(scores, Where(own, row(j), row(j_old)) >= first))
            b.set(left, Where(row(j_old) >= first, left, wrap(0.0)))
        # Not below 0, so that neither part leaves the range of numbers.
        top = b.let("top", maximum(b.let("own_top", Max(scores, 1)), 0.0))
        weights = b.let("W", Unary("exp2", scores - column(top)))
        fall = b.let("fall", Unary("exp2", -top))
        b.set(left, left * column(fall))
        total = b.let("total", Sum(weights, 1))
        b.add(total, b.let("total_left", Sum(left, 1)))
        matrix = b.let("W_operand", Cast(weights, OPERAND))
        of_own = b.let("W_own", Where(own, matrix, NOTHING))
        of_old = b.let("W_old", Cast(Where(own, left, weights), OPERAND))
        return Weights(of_own, of_old, top, total, fall), own_keys, old_keys

    def finish(self, out: Var, older: Var, weights: Weights, own: Keys, old: Keys) -> Answer:
        """What queries get of all keys, given what they have read of the state, `older` of them in all."""
        b, fall, total = self.b, weights.fall, weights.total
        assert self.sums.normalizer is not None
        b.set(out, out * column(fall))
        b.add(out, Dot(weights.own, own.v))
        b.add(out, Dot(weights.old, old.v))
        b.add(total, b.let("total_older", (older + self.sums.normalizer.eps) * fall))
        return Answer(out, weights.top, total)
