"""A window of keys and sums of features, read together: the memory of hybrid layers.

    o_i = (a Σ_{i-j<W} e^(s_ij) v_j + c Φ(u_i)ᵀ S_i) / (a Σ_{i-j<W} e^(s_ij) + c Φ(u_i)·z_i + eps)

S_i and z_i are sums over the keys that have left the window of query i; a and c are factors of its head, 1
where a layer has none.  Both parts are the memories that they are elsewhere; what is said here is how they go
together.  A query reads sums of features first, as they are.  Then it sees the keys of its window, as a
softmax that has begun with these sums and with a highest score of 0: so all of them are relative to m =
max(0, the highest score), and neither part leaves the range of numbers.  m cancels.

Backward, with L_i the logarithm of the divisor, P_ij = a e^(s_ij - L_i) and delta_i = do_i·o_i:

    in the window    dS_ij = P_ij (do_i·v_j - delta_i)
    of older keys    dA_ij = g_i·v_j + e_i,   g_i = c do_i e^(-L_i),   e_i = -c delta_i e^(-L_i)

which is a window's with L for lse, and that of sums of features with these g and e.  The factors are owed
Σ_ij dS_ij / a and Σ_ij A_ij dA_ij / c.

`hybrid_added.py` divides each part by its own sum, and `hybrid_windowed.py` rescales the window alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    IO,
    OPERAND,
    Binary,
    Cast,
    Expr,
    Full,
    Load,
    Sum,
    Unary,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..lower.features import SCALE, FeatureMap
from ..lower.second_look import mend
from ..lower.sequence import Sequence
from . import sums, window
from .highest import Highest
from .states import B, H
from .sums_token import Token
from .window import UNREACHED
from .window_rows import RowSums

WINDOW_FACTOR, LINEAR_FACTOR = "window_factor", "linear_factor"
"""The tensors of factors, one a head."""
GIVEN = {WINDOW_FACTOR: "WINDOW_WEIGHED", LINEAR_FACTOR: "LINEAR_WEIGHED"}
"""The flags under which they are there."""
SMALLEST = 1e-30
"""What smaller factors count as under one normaliser, so that their logarithms and inverses are numbers."""


@dataclass(frozen=True)
class From(Sequence):
    """A sequence of which tokens before the `first` do not exist."""

    first: Expr = wrap(0)

    def holds(self, token: Expr) -> Expr:
        return super().holds(token) & (token >= self.first)


class Older(sums.Sums):
    """Sums of features of keys that are older than the window.

    Queries and keys are not the same tokens.  Of keys before `first`, which are none and 0, nothing enters a
    state.
    """

    def __init__(
        self,
        b: Builder,
        features: FeatureMap,
        keys: Sequence,
        queries: Sequence,
        eps: float,
        size: str | None = None,
        first: Var | None = None,
    ) -> None:
        super().__init__(b, features, keys, eps, size)
        self.of_queries, self.first = queries, first
        self.existing = keys if first is None else From(keys.axis, keys.start, keys.end, first=first)

    def load(self, name: str, tensor: str, t: Var) -> tuple[Var, Var]:
        sequence = self.of_queries if tensor == "q" else self.existing
        return self.features.load(self.b, name, tensor, (B, t, H, self.d), sequence)

    def left_of_tile(self, name: str, t: Var, log: Var | None, later: bool) -> Var | None:
        """1 for each key of a tile that is a token, and 0 for the others."""
        if self.first is None:
            return None
        return self.b.let(name, Where(self.existing.holds(t), wrap(1.0), wrap(0.0)))


class Recent(window.Window):
    """The window of a hybrid; `own` is the width of its queries and keys, if it has its own.

    The columns of these are the program's index tile `w`.
    """

    first = "ring_start"  # a Taylor map has tiles called first

    def __init__(
        self, b: Builder, width: int, queries: Sequence, keys: Sequence, own: int | None = None
    ) -> None:
        super().__init__(b, width, queries, keys)
        self.own, self.size = own, "QK"
        self.scale: Expr = SCALE
        if own:
            self.d, self.q, self.k, self.size = Var("w"), "q_window", "k_window", "WINDOW_QK"
            self.scale = wrap(own**-0.5)

    def _by_score(self, visible: Expr, weights: Expr, by_weight: Expr) -> Expr:
        """By a select: rows of tiles that are spoilt by others can then be told from these alone."""
        return Where(visible, super()._by_score(visible, weights, by_weight), wrap(0.0))


@dataclass(frozen=True)
class Factors:
    """What the parts of a head are multiplied by; None where the layer has no such factor."""

    window: Var | None
    linear: Var | None

    @staticmethod
    def load(b: Builder, names: tuple[str, ...], least: float | None) -> Factors:
        """Those of the program's head, 1 where a call gives none and at least `least`."""

        def factor(name: str) -> Var | None:
            if name not in names:
                return None
            used = b.let(f"{name}_used", Full((), 1.0))
            with b.when(GIVEN[name]):
                given = b.let(f"{name}_given", Load(name, (H,), ACC))
                b.set(used, given if least is None else Binary("max_or_nan", given, wrap(least)))
            return used

        return Factors(factor(WINDOW_FACTOR), factor(LINEAR_FACTOR))


def times(factor: Var | None, x: Expr) -> Expr:
    return x if factor is None else x * factor


@dataclass(frozen=True)
class Tokens:
    """A tile of queries or of keys: as loaded, as the feature map's operand, and as the window's."""

    loaded: Var
    mapped: Var
    plain: Var


@dataclass(frozen=True)
class Gradients:
    """What backward a tile of queries brings to either memory."""

    older: sums.Gradients
    window: window.Queries


@dataclass(frozen=True)
class Owed:
    """What the factors of a head are owed by a tile of queries, as it grows; None without a factor."""

    window: Var | None
    linear: Var | None

    def of(self, name: str) -> Var | None:
        return self.window if name == WINDOW_FACTOR else self.linear


class Hybrid:
    """The memory of one program, whose index tiles `d` and `u` are the columns of keys and of values.

    `names` are the factors that the layer has; `weigh` loads them.
    """

    factors: Factors
    least: float | None = SMALLEST
    apart = False
    """Whether each part has a sum of its own."""

    def __init__(self, b: Builder, older: Older, recent: Recent, names: tuple[str, ...]) -> None:
        self.b, self.older, self.window = b, older, recent
        self.d, self.u, self.names = older.d, older.u, names

    def weigh(self) -> None:
        """Find the factors of the head of a program, or of a member of its group, before they are needed."""
        self.factors = Factors.load(self.b, self.names, self.least)
        self.window.logits = self.logits()

    def logits(self) -> window.Logits:
        """The window's weights, with their factor."""
        factor = self.window.scale * window.LOG2_E
        if self.factors.window is None:
            return window.Logits(factor)
        return window.Logits(factor, self.b.let("bias", Unary("log2", self.factors.window)))

    # Which keys a query sees by softmax, and which through the feature map

    def youngest(self, t: Expr) -> Expr:
        """Of each query, the last key that has left its window."""
        return self.window.place(t) - self.window.window

    def last_query(self, j: Expr) -> Expr:
        """Of each key, the last query that has it in its window."""
        return self.window.query_at(j) + (self.window.window - 1)

    def left(self, t: Var, j: Var, first: Var) -> Expr:
        """Which pairs of a query and a key are those of an older key, [queries, keys]."""
        return (row(j) <= column(self.youngest(t))) & (row(j) >= first)

    def left_by_key(self, j: Var, t: Var, first: Var) -> Expr:
        """The same, [keys, queries]."""
        return (column(j) <= row(self.youngest(t))) & (column(j) >= first)

    # Tiles

    def tokens(self, name: str, tensor: str, t: Var) -> Tokens:
        """A tile of q or k; where the feature map's operand is what was loaded, it is the window's too."""
        loaded, mapped = self.older.load(name, tensor, t)
        if loaded == mapped and not self.window.own:
            return Tokens(loaded, mapped, mapped)
        tensor = self.window.q if tensor == "q" else self.window.k
        plain = self.b.let(f"{name}_plain", Load(tensor, (B, t, H, self.window.d), OPERAND))
        return Tokens(loaded, mapped, plain)

    # Read

    def begin(self, answer: sums.Answer, t: Var) -> window.Answer:
        """What queries have got of older keys, as the beginning of their softmax."""
        b, factor = self.b, self.factors.linear
        if factor is not None:
            b.set(answer.out, answer.out * factor)
        total = b.let("total", times(factor, self._n(answer)) + self.eps)
        return window.Answer(answer.out, b.let("top", Full(("CHUNK",), 0.0)), total)

    def finish(self, softmax: window.Answer, answer: sums.Answer, t: Var) -> None:
        """Store o, and what backward needs."""
        self.b.store("lse", (B, H, t), softmax.lse())
        self.b.store("o", (B, t, H, self.u), Cast(softmax.divided(), IO))

    def inverse(self, t: Var) -> Expr:
        """What the second look multiplies sums over older keys by, of a tile of queries that are done."""
        return self._weight_of_older(t, self._lse("lse_again", t))

    def finish_again(self, near: Var, far: Var, t: Var) -> None:
        """Store o, the sum of what the second look has found."""
        mend(self.b, "o", (B, t, H, self.u), near + far)

    def begin_row(self, token: Token) -> RowSums:
        """`begin` of one token."""
        b, factor = self.b, self.factors.linear
        if factor is not None:
            b.set(token.out, token.out * factor)
        total = b.let("total_row", times(factor, token.sum()) + self.eps)
        return RowSums(token.out, b.let("top_row", Full((), 0.0)), total, self.window.logits)

    def finish_row(self, softmax: Expr, row_sums: RowSums, token: Token) -> Expr:
        """o of one token, given what its softmax is, and the sums of that."""
        return softmax

    @property
    def eps(self) -> float:
        assert self.older.normalizer is not None
        return self.older.normalizer.eps

    def _n(self, answer: sums.Answer) -> Var:
        assert answer.n is not None
        return answer.n

    # Adjoints

    def near(self, name: str) -> Var:
        """The gradient by the window's queries or keys without their scale: nothing yet."""
        return self.b.let(name, Full(("CHUNK", self.window.size), 0.0))

    def leave(self, name: str, t: Var, loaded: Var, mapped: Var, near: Var, again: bool = False) -> None:
        """Store the gradient by a tile as loaded, given those by the map's operand and by the window's.

        `again`: of a second look.
        """
        gradient, recent = self.older.features.leave(loaded, mapped), near * self.window.scale
        store = mend if again else _store
        if self.window.own:
            store(self.b, f"{name}_window", (B, t, H, self.window.d), recent)
        else:
            gradient = gradient + recent
        store(self.b, name, (B, t, H, self.d), gradient)

    def owed(self) -> Owed:
        """Nothing yet."""
        tiles = [
            self.b.let(f"{name}_owed", Full(("CHUNK",), 0.0)) if name in self.names else None
            for name in GIVEN
        ]
        return Owed(*tiles)

    def highest(self) -> Highest | None:
        """The highest scores of a tile of queries, if they are owed something."""
        return None

    def shift(self, name: str, t: Expr, ages: Expr, by_key: bool = False) -> Expr | None:
        """What is taken from dS at the highest keys of queries, given the ages of keys.

        These have a row a key and a column a query if `by_key`; else queries or keys are one token.
        """
        return None

    def store_owed(self, owed: Owed, t: Var, highest: Highest | None = None) -> None:
        """Keep what the factors, and highest scores, are owed by every query."""
        for name, factor in ((WINDOW_FACTOR, self.factors.window), (LINEAR_FACTOR, self.factors.linear)):
            numbers = owed.of(name)
            if numbers is not None and factor is not None:
                with self.b.when(GIVEN[name]):
                    self.b.store(f"{name}_rows", (B, H, t), numbers / factor)

    def own_gradients(self, t: Var, queries: Var, owed: Owed) -> Gradients:
        """Of a tile of queries, from the gradient of o; stored for other programs."""
        b, u = self.b, self.u
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        lse = self._lse("lse_own", t)
        delta = b.let("delta", Sum(b.let("products", do * b.let("O", Load("o", (B, t, H, u), ACC))), 1))
        b.store("delta_rows", (B, H, t), delta)
        weight = b.let("inverse", self._weight_of_older(t, lse))
        older = self._older_gradients(t, do, delta, weight)
        operand = b.let("dO_operand", Cast(do, OPERAND))
        return Gradients(older, window.Queries(queries, operand, lse, delta))

    def _weight_of_older(self, t: Var, lse: Var) -> Expr:
        """What sums over older keys are multiplied by, of a tile of queries."""
        return times(self.factors.linear, Unary("exp", -lse))

    def _older_gradients(self, t: Var, do: Var, delta: Var, weight: Var) -> sums.Gradients:
        """g and e, stored."""
        b = self.b
        e = b.let("E", -delta * weight)
        b.store("e", (B, H, t), e)
        g = b.let("G", Cast(do * column(weight), OPERAND))
        b.store("g", (B, t, H, self.u), g)
        return sums.Gradients(g, e)

    def queries(self, t: Var, name: str) -> window.Queries:
        """A tile of queries with what a window's keys need of them, from where it was stored."""
        b = self.b
        queries = b.let(f"Q_{name}", Load(self.window.q, (B, t, H, self.window.d), OPERAND))
        delta = b.let(f"delta_{name}", Load("delta_rows", (B, H, t), ACC))
        return window.Queries(queries, self._do(name, t), self._lse(f"lse_{name}", t), delta)

    def select(self, name: str, rows: Expr, *gradients: Var) -> None:
        """Take back what rows other than these have got, whatever that is."""
        chosen = self.b.let(name, rows)
        for gradient in gradients:
            self.b.set(gradient, Where(column(chosen), gradient, wrap(0.0)))

    def exact_do(self, name: str, t: Var) -> Expr:
        """The gradient by the window's part of o, unrounded."""
        return self.b.let(name, Load("do", (B, t, H, self.u), ACC))

    def _do(self, name: str, t: Var) -> Var:
        return self.b.let(f"dO_{name}", Load("do", (B, t, H, self.u), OPERAND))

    def _lse(self, name: str, t: Var) -> Var:
        return self.b.let(name, Load("lse", (B, H, t), ACC, fill=UNREACHED))


def _store(b: Builder, tensor: str, index: tuple[Expr, ...], value: Expr) -> None:
    b.store(tensor, index, Cast(value, IO))
