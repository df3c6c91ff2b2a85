"""Sums of features, one token at a time: it enters a state in place, and its query reads that."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.heads import MEMBER
from ..ir.nodes import ACC, STATE, Cast, Dithered, Expr, Full, Load, Sum, Var, Where, column, row, wrap
from .states import B, Block, H, Kept, Part, left
from .sums import Sums


@dataclass(frozen=True)
class Entering:
    """The key and the value that enter, if they are not the token's own: tensors, and the indices in them."""

    keys: str
    values: str
    index: tuple[Expr, ...]
    exists: Expr
    """Whether there is one."""


class Reading:
    """The answer to the token `t`, as it grows block by block."""

    def __init__(self, memory: Sums, kept: Kept, t: Expr, narrow: str | None) -> None:
        self.memory, self.b, self.kept, self.row, self.narrow = memory, memory.b, kept, (B, t, H), narrow

    def begin(self) -> None:
        """Nothing yet."""
        self.out = self.b.let("out", Full(("VALUES",), 0.0))
        size = self.memory.size
        self.products = self.b.let("products", Full((size,), 0.0)) if self.memory.normalizer else None

    def query(self, block: Block) -> tuple[Var, Var]:
        """The query's features in a block, and their weights."""
        weight = self.memory.features.weights(self.b, block.f, block.selection)
        return self.features("query", "q", self.row, block), weight

    def features(self, name: str, tensor: str, index: tuple[Expr, ...], block: Block) -> Var:
        """Features of one row of a tensor."""
        rows = self.memory.features
        return rows.row_features(self.b, name, tensor, index, block.f, block.selection)

    def rounded(self, state: Part, entered: Var, values: Var, block: Block) -> Expr:
        """A block of the state as it is stored, after features have `entered` with `values`."""
        if not self.narrow:
            return Cast(state.tile, STATE)
        chance = self.b.let("chance", Sum(entered, 0))
        return Dithered(state.tile, self.narrow, chance, row(values), column(block.f))

    def read(self, query: Var, weight: Var, state: Part) -> Var:
        """Add what a block of the state answers; returns the query's features with their weights."""
        b = self.b
        query = b.let("weighted_query", query * weight)
        read = b.let("read", column(query) * state.tile)
        b.add(self.out, Sum(read, 0))
        return query

    def sum(self) -> Var:
        """n, of a layer that normalises."""
        assert self.products is not None
        return self.b.let("N", Sum(self.products, 0))


class Token(Reading):
    """The same where the token enters the state before its query reads that.

    A state of a `narrow` dtype is rounded at random, or it would stand still as soon as a token adds less
    than half of its last digit.  Chance differs from one token to the next because the normaliser, in
    float32, does; without one, because their keys do.
    """

    def __init__(
        self,
        memory: Sums,
        kept: Kept,
        t: Expr,
        narrow: str | None,
        decay: Var | None = None,
        entering: Entering | None = None,
    ) -> None:
        super().__init__(memory, kept, t, narrow)
        self.decay, self.entering = decay, entering
        tensor, index = (entering.values, entering.index) if entering else ("v", self.row)
        self.values = self._existing(self.b.let("y", Load(tensor, (*index, memory.u), ACC)))
        self.begin()

    def enter_and_read(self, block: Block) -> None:
        """Let the token enter the state's block, which fades before that, and read it."""
        b, came = self.b, self.entering
        name, tensor, index = ("entering", came.keys, came.index) if came else ("key", "k", self.row)
        keys = self._existing(self.features(name, tensor, index, block))
        plain, weight = self.query(block)
        plain = self._existing(plain)  # the state is empty until one enters: infinity times nothing is NaN
        state = Part(b, Var("S"), (block.f, self.memory.u))
        state.load(self.kept.tensors[0], (), "")
        self._fade(state)
        b.add(state.tile, self._entering(column(keys) * row(self.values)))
        z = self._entered_normalizer(keys, block.f) if self.products and self.narrow else None
        rounded = self.rounded(state, z.tile if z else keys, self.values, block)
        b.store(self.kept.tensors[0].name, (B, H, *state.place), rounded)
        query = self.read(plain, weight, state)
        if self.products:
            z = z or self._entered_normalizer(keys, block.f)
            z.store(self.kept.tensors[1])
            b.add(self.products, query * z.tile)

    def _existing(self, numbers: Var) -> Var:
        """Numbers of what enters, and of what reads it and all before it; 0 where nothing has entered."""
        if self.entering:
            self.b.set(numbers, Where(self.entering.exists, numbers, wrap(0.0)))
        return numbers

    def _entered_normalizer(self, keys: Var, f: Var) -> Part:
        z = Part(self.b, Var("z"), (f,))
        z.load(self.kept.tensors[1], (), "")
        self._fade(z)
        self.b.add(z.tile, self._entering(keys))
        return z

    def _fade(self, part: Part) -> None:
        if self.decay:
            self.b.set(part.tile, part.tile * left(self._entering(self.decay)))

    def _entering(self, x: Expr) -> Expr:
        """What changes a state: the first query of a group of heads finds it as it was, the others do not."""
        return Where(Var(MEMBER).equals(0), x, wrap(0.0))

    def finish(self) -> Var:
        """o, divided by n where the layer normalises."""
        if self.memory.normalizer:
            self.b.set(self.out, self.out / (self.sum() + self.memory.normalizer.eps))
        return self.out
