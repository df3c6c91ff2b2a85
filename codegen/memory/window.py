"""A window of keys: the memory of sliding-window attention.

    P_ij = exp(scale · q_i·k_j - lse_i)      o_i = Σ_j P_ij v_j      (as in Based, arXiv 2402.18668)

Nothing enters it and nothing fades: the keys stay where they are, and a query and a key *pair up* where the
query stands at the key or less than `window` keys after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.nodes import (
    ACC,
    INDEX,
    OPERAND,
    Cast,
    Const,
    Dot,
    Expr,
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
from ..lower import ragged
from ..lower.sequence import Sequence
from .states import LOG2_E, B, H

LOGIT = Var("scale") * LOG2_E
"""What makes of a product q·k the power of 2 that is its weight before normalisation."""
HIDDEN, LEAST = -3.0e38, -1.0e30
"""The score of a key that a query does not see, and the least that the highest score of a row counts as.

Both are finite, so that a tile with no visible key makes no NaN; and so far apart that a hidden key has no
weight even where all visible ones are at minus infinity, in which case a row is 0 / 0.
"""
UNREACHED = 1.0e30
"""The lse of a row outside the sequence: no probability survives it."""


@dataclass(frozen=True)
class Logits:
    """Powers of 2 that are the weights of products q·k: a factor, and what is added."""

    factor: Expr = LOGIT
    bias: Var | None = None

    def of(self, products: Expr) -> Expr:
        scaled = products * self.factor
        return scaled if self.bias is None else scaled + self.bias


PLAIN = Logits()
"""Of a window with the call's scale and no more."""


@dataclass(frozen=True)
class Keys:
    """A tile of keys and its values."""

    k: Var
    v: Var


@dataclass(frozen=True)
class Queries:
    """A tile of queries, and what the outputs' gradients leave of them."""

    q: Var
    do: Var
    lse: Var
    delta: Var


@dataclass(frozen=True)
class Answer:
    """The sums of a tile of queries, relative to the highest score of each so far."""

    out: Var
    top: Var
    total: Var

    def lse(self) -> Expr:
        return (self.top + Unary("log2", self.total)) * log(2.0)

    def divided(self) -> Expr:
        """o."""
        return self.out / column(self.total)


class Window:
    """The memory of one program, whose index tiles `d` and `u` are the columns of keys and of values.

    The sequence of keys may begin before that of queries; both end together.  Under RAGGED keys and queries
    are of one of several sequences, and lie at the same places.
    """

    d, u = Var("d"), Var("u")
    first, q, k = "first", "q", "k"
    """The tensors that have the first key that exists, queries and keys."""

    def __init__(self, b: Builder, window: int, queries: Sequence, keys: Sequence) -> None:
        self.b, self.window, self.queries, self.keys, self.logits = b, window, queries, keys, PLAIN
        self.past = self._past()
        """How many keys come before the first query."""

    # Which keys a query sees

    def place(self, t: Expr) -> Expr:
        """The key at which query `t` stands: the last that it sees."""
        return t if self.past == Const(0) else t + self.past

    def query_at(self, j: Expr) -> Expr:
        """The query that stands at key `j`."""
        return j if self.past == Const(0) else j - self.past

    def _past(self) -> Expr:
        keys, queries = (ragged.under(x.stop, False) for x in (self.keys, self.queries))
        if isinstance(self.keys.stop, Chosen):
            return Chosen(ragged.RAGGED, Const(0), keys - queries)
        return keys - queries

    def first_key(self) -> Var:
        """The first key that exists."""
        b = self.b
        first = b.let("first_key", ragged.under(self.keys.start, False))
        with b.when("PADDED"):
            b.set(first, Load(self.first, (B, H), INDEX))
        if isinstance(self.keys.start, Chosen):
            with b.when(ragged.RAGGED):
                b.set(first, self.keys.start.x)
            with b.when(ragged.BEGUN):
                kept = b.let("first_kept", Load("first_of_sequences", (ragged.NUMBER, H), INDEX))
                b.set(first, self.keys.start.x + kept)
        return first

    def oldest(self, t: Var, first: Var) -> Var:
        """Of each query, the first key that it sees."""
        return self.b.let("oldest", maximum(self.place(t) - (self.window - 1), first))

    def newest(self, j: Var, first: Var) -> Var:
        """Of each key, the last place from which it is seen."""
        return self.b.let("newest", Where(j >= first, j + (self.window - 1), wrap(-1)))

    @contextmanager
    def further(self, start: Expr) -> Iterator[tuple[Var, Expr, Keys]]:
        """A loop over the keys that come before the tile of keys before `start`, where a chunk begins.

        Yields their indices, which of them do come before that tile, and their own tiles.
        """
        b, end = self.b, start - "KEYS"
        begin = maximum(start - (self.window - 1), self.keys.start)
        with b.when("FURTHER"), b.loop("j0", begin, end, "KEYS") as j0:
            j = b.let("further", self.keys.tile(j0, "KEYS"))
            yield j, row(j) < end, self.load_keys("_further", j)

    # Tiles, whose names end in `suffix`

    def load_keys(self, suffix: str, j: Var) -> Keys:
        keys = self.b.let(f"K{suffix}", Load(self.k, (B, j, H, self.d), OPERAND))
        return Keys(keys, self.b.let(f"Y{suffix}", Load("v", (B, j, H, self.u), OPERAND)))

    def load_queries(self, suffix: str, t: Var, unreached: float = UNREACHED) -> Queries:
        b = self.b
        queries = b.let(f"Q{suffix}", Load("q", (B, t, H, self.d), OPERAND))
        do = b.let(f"dO{suffix}", Load("do", (B, t, H, self.u), OPERAND))
        o = b.let(f"O{suffix}", Load("o", (B, t, H, self.u), ACC))
        lse = b.let(f"lse_row{suffix}", Load("lse", (B, H, t), ACC, fill=unreached))
        products = b.let(f"products{suffix}", Cast(do, ACC) * o)
        return Queries(queries, do, lse, b.let(f"delta{suffix}", Sum(products, 1)))

    # Pair up

    def pair(self, queries: Var, keys: Keys, visible: Expr) -> Answer:
        """What queries get from the first tile of keys."""
        b = self.b
        scores, visible = self._scores("", queries, keys, visible)
        top = b.let("top", maximum(b.let("own_top", Max(scores, 1)), LEAST))
        weights = b.let("P", Unary("exp2", scores - column(top)))
        total = b.let("total", Sum(weights, 1))
        matrix = b.let("P_operand", Cast(weights, OPERAND))
        return Answer(b.let("O", Dot(matrix, keys.v, among=visible)), top, total)

    def pair_more(self, suffix: str, answer: Answer, queries: Var, keys: Keys, visible: Expr) -> None:
        """Add what they get from more keys."""
        b, top, total, out = self.b, answer.top, answer.total, answer.out
        scores, visible = self._scores(suffix, queries, keys, visible)
        tile_top = b.let("tile_top", Max(scores, 1))
        new_top = b.let("new_top", maximum(top, tile_top))
        weights = b.let(f"P{suffix}", Unary("exp2", scores - column(new_top)))
        correction = b.let("correction", Unary("exp2", top - new_top))
        tile_total = b.let("tile_total", Sum(weights, 1))
        b.set(total, total * correction + tile_total)
        b.set(out, out * column(correction))
        matrix = b.let(f"P{suffix}_operand", Cast(weights, OPERAND))
        b.add(out, Dot(matrix, keys.v, among=visible))
        b.set(top, new_top)

    def _scores(self, suffix: str, queries: Var, keys: Keys, visible: Expr) -> tuple[Var, Var]:
        """Scores of all pairs, and which of these there are."""
        b = self.b
        products = b.let(f"R{suffix}", Dot(queries, Transpose(keys.k)))
        named = b.let(f"visible{suffix}", visible)
        return b.let(f"scores{suffix}", score(self.logits.of(products), named)), named

    # Adjoints

    def pair_by_query(
        self, suffix: str, queries: Queries, keys: Keys, visible: Expr, dq: Var, owed: Var | None = None
    ) -> tuple[Var, Var]:
        """Add dS k to dq, from tiles with a row a query; and to what each row is `owed`, its sum of dS.

        Returns the products of all pairs, and which of these there are.
        """
        b = self.b
        products = b.let(f"R{suffix}", Dot(queries.q, Transpose(keys.k)))
        visible = b.let(f"visible{suffix}", visible)
        weights = b.let(f"P{suffix}", self._probabilities(visible, products, column(queries.lse)))
        by_weight = b.let(f"dP{suffix}", Dot(queries.do, Transpose(keys.v)))
        by_score = self._by_score(visible, weights, by_weight - column(queries.delta))
        if owed:
            by_score = b.let(f"dS{suffix}", by_score)
            b.add(owed, Sum(by_score, 1))
        by_product = b.let(f"dR{suffix}", Cast(by_score, OPERAND))
        b.add(dq, Dot(by_product, keys.k, among=visible))
        return products, visible

    def pair_by_key(
        self,
        suffix: str,
        keys: Keys,
        queries: Queries,
        visible: Expr,
        dk: Var,
        dv: Var,
        shift: Expr | None = None,
    ) -> None:
        """Add dSᵀ q to dk and Pᵀ do to dv, from tiles with a row a key; dS is less by a `shift`."""
        b = self.b
        products = b.let(f"R_by_key{suffix}", Dot(keys.k, Transpose(queries.q)))
        visible = b.let(f"visible_by_key{suffix}", visible)
        weights = b.let(f"P_by_key{suffix}", self._probabilities(visible, products, row(queries.lse)))
        matrix = b.let(f"P_operand{suffix}", Cast(weights, OPERAND))
        b.add(dv, Dot(matrix, queries.do, among=visible))
        by_weight = b.let(f"dP_by_key{suffix}", Dot(keys.v, Transpose(queries.do)))
        by_score = self._by_score(visible, weights, by_weight - row(queries.delta))
        by_product = b.let(f"dR_by_key{suffix}", Cast(shifted(by_score, shift), OPERAND))
        b.add(dk, Dot(by_product, queries.q, among=visible))

    def _by_score(self, visible: Expr, weights: Expr, by_weight: Expr) -> Expr:
        """dS, where invisible pairs have no weight."""
        return weights * by_weight

    def _probabilities(self, visible: Expr, products: Var, lse: Expr) -> Expr:
        return Where(visible, self._probability(products, lse), wrap(0.0))

    def _probability(self, products: Expr, lse: Expr) -> Expr:
        """P of pairs that there are."""
        return Unary("exp2", self.logits.of(products) - lse * LOG2_E)


def shifted(by_score: Expr, shift: Expr | None) -> Expr:
    """dS, less by a `shift` if there is one."""
    return by_score if shift is None else by_score - shift


def score(logits: Expr, visible: Expr) -> Expr:
    """Scores as powers of 2."""
    return Where(visible, logits, wrap(HIDDEN))
