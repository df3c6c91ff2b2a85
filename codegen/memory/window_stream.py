"""A window of which a program goes through all chunks: keys stay where they are for the chunks after theirs.

A window is a ring.  Of a chunk's own keys a query sees those up to its own, of the oldest tile in reach those
after it: never both in one place.  So the two tiles of products become one tile of scores, and 64 keys take
64 exponentials, not 128.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    OPERAND,
    Cast,
    Const,
    Dot,
    Expr,
    Full,
    Load,
    Max,
    Sum,
    Transpose,
    Unary,
    Var,
    Where,
    column,
    maximum,
    row,
    wrap,
)
from ..lower.sequence import Sequence
from .states import B, H
from .window import LEAST, Answer, Keys, Window, score

NOTHING = Cast(Const(0.0), OPERAND)


@dataclass(frozen=True)
class KeyGradients:
    """Gradients of the keys and values of the chunk before a round's own, which the round completes."""

    dk: Var
    dv: Var


class WindowStream(Window):
    """The memory of one program over chunks of so many tokens; a window reaches back over one or two."""

    def __init__(self, b: Builder, window: int, queries: Sequence, keys: Sequence, chunk: int) -> None:
        super().__init__(b, window, queries, keys)
        self.past = Const(0) if queries == keys else b.let("keys_before", self.past)
        self.older = -(-window // chunk)
        """How many chunks the oldest tile of keys lies before a query's own."""
        self.whole = window == self.older * chunk
        """Whether a query sees all places of the ring, once there are so many keys."""

    def answer(self, t0: Expr, t: Var, first: Var) -> Answer:
        """What the queries of the chunk from `t0` on get of the keys that they see, from the `first` on."""
        b = self.b
        queries = b.let("Q", Load(self.q, (B, t, H, self.d), OPERAND))
        j, own_keys = self._tile("", t0, 0)
        between = self._tile("_between", t0, 1) if self.older > 1 else None
        j_old, old_keys = self._tile("_old", t0, self.older)
        own = b.let("own", column(t) >= row(t))
        scores = b.let("scores", self.logits.of(self._products("R", own, queries, own_keys.k, old_keys.k)))
        oldest = column(self.oldest(t, first))
        seen = {scores: Where(own, row(j), row(j_old)) >= oldest}
        if between:
            products = b.let("R_between", Dot(queries, Transpose(between[1].k)))
            more = b.let("scores_between", self.logits.of(products))
            seen[more] = row(between[0]) >= oldest
        with self._where_some_are_hidden(t0, first):
            for tile, visible in seen.items():
                b.set(tile, score(tile, visible))
        top = b.let("top", maximum(b.let("own_top", Max(scores, 1)), LEAST))
        if between:
            b.set(top, maximum(top, b.let("top_between", Max(more, 1))))
        weights = b.let("P", Unary("exp2", scores - column(top)))
        total = b.let("total", Sum(weights, 1))
        of_own, of_old = self._parted("P", weights, own)
        out = b.let("O", Dot(of_own, own_keys.v))
        b.add(out, Dot(of_old, old_keys.v))
        if between:
            weights = b.let("P_between", Unary("exp2", more - column(top)))
            b.add(total, Sum(weights, 1))
            b.add(out, Dot(b.let("P_between_operand", Cast(weights, OPERAND)), between[1].v))
        return Answer(out, top, total)

    def carried(self) -> KeyGradients:
        """What there is of gradients before the first round."""
        dk, dv = (self.b.let(name, Full(("CHUNK", size), 0.0)) for name, size in CARRIED.items())
        return KeyGradients(dk, dv)

    def gradients(self, t0: Expr, t: Var, first: Var, carried: KeyGradients) -> tuple[Var, KeyGradients]:
        """dq of the chunk from `t0` on, and what it leaves of gradients of its own keys and values.

        Those that are `carried` get what the chunk's queries add, and are complete.
        """
        b = self.b
        rows = self.load_queries("", t, unreached=0.0)  # whose gradients are 0, so that they add nothing
        j, own_keys = self._tile("", t0, 0)
        j_old, old_keys = self._tile("_old", t0, self.older)
        own = b.let("own", column(t) >= row(t))
        products = self._products("R", own, rows.q, own_keys.k, old_keys.k)
        weights = b.let("P", self._probability(products, column(rows.lse)))
        oldest = column(self.oldest(t, first))
        of_pairs = [own]
        if self.whole:
            with self._where_some_are_hidden(t0, first):
                b.set(weights, Where(Where(own, row(j), row(j_old)) >= oldest, weights, wrap(0.0)))
        else:  # an older key that is seen stands in the place of a later one
            of_pairs = [b.let("own_seen", own & (row(j) >= oldest)), b.let("old_seen", row(j_old) >= oldest)]
        of_own, of_old = self._parted("P", weights, *of_pairs)
        by_weight = self._products("dP", own, rows.do, own_keys.v, old_keys.v)
        by_score = b.let("dS", self._by_score(own, weights, by_weight - column(rows.delta)))
        by_own, by_old = self._parted("dS", by_score, *of_pairs)
        b.add(carried.dk, Dot(Transpose(by_old), rows.q))
        b.add(carried.dv, Dot(Transpose(of_old), rows.do))
        dq = b.let("dQ", Dot(by_own, own_keys.k))
        b.add(dq, Dot(by_old, old_keys.k))
        dk = b.let("dK", Dot(Transpose(by_own), rows.q))
        return dq, KeyGradients(dk, b.let("dV", Dot(Transpose(of_own), rows.do)))

    # Pieces

    def _tile(self, suffix: str, t0: Expr, back: int) -> tuple[Var, Keys]:
        """A tile of keys so many chunks before the queries from `t0` on, and its indices."""
        start = self.place(t0)
        tile = self.keys.tile(start - Const(back) * "CHUNK" if back else start, "CHUNK", before=True)
        j = self.b.let(f"j{suffix}", tile)
        return j, self.load_keys(suffix, j)

    def _products(self, name: str, own: Var, rows: Var, of_own: Var, of_old: Var) -> Expr:
        """Products with the chunk's own keys or values, and with the oldest in the places of later ones."""
        b = self.b
        products = b.let(name, Dot(rows, Transpose(of_own)))
        return Where(own, products, b.let(f"{name}_old", Dot(rows, Transpose(of_old))))

    def _parted(self, name: str, tile: Var, own: Var, old: Var | None = None) -> tuple[Var, Var]:
        """A tile of pairs as matrix operands, those with own keys and those with older ones apart.

        The latter are all others, if nothing else says which.
        """
        b = self.b
        matrix = b.let(f"{name}_operand", Cast(tile, OPERAND))
        of_own = b.let(f"{name}_own", Where(own, matrix, NOTHING))
        of_old = Where(old, matrix, NOTHING) if old else Where(own, NOTHING, matrix)
        return of_own, b.let(f"{name}_old", of_old)

    @contextmanager
    def _where_some_are_hidden(self, t0: Expr, first: Var) -> Iterator[None]:
        """Statements that are needed where a query does not see all places of the ring."""
        few = self.place(t0) - first < self.window - 1
        with self.b.when(few, each=True) if self.whole else nullcontext():
            yield


CARRIED: Mapping[str, str] = {"dK_carried": "QK", "dV_carried": "VALUES"}
"""The columns of gradients that a round leaves to the next."""
