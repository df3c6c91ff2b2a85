"""What enters sums of features, and what queries read of them; `sums.py` has the mathematics and adjoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    Cast,
    Dot,
    Expr,
    Full,
    Load,
    Transpose,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..lower.features import SCALE, FeatureMap
from ..lower.sequence import Sequence
from .fade import Fade, Logs, pairs
from .fading import Fading
from .normalizer import Matrix, Vector
from .states import B, Block, H, Kept, Part, Sources, State, Stored, left

RESTORED = {"INITIAL": "_initial", "SEGMENTED": "_before"}
"""How the names of what was kept end, by the flag under which it is there."""


@dataclass(frozen=True)
class Answer:
    """o and n of a tile of queries, as they grow; no n if the layer does not normalise."""

    out: Var
    n: Var | None


class Reading(Fading):
    """The memory of one program, whose index tiles `d` and `u` are its columns of queries and of values.

    `size` is the constant that says how many features it handles at a time, if not the feature map's own.
    `products`: how it normalises by products, instead of sums over rows and columns, where the state is small
    or has no part in that.
    """

    d, u = Var("d"), Var("u")

    def __init__(
        self,
        b: Builder,
        features: FeatureMap,
        sequence: Sequence,
        eps: float | None,
        size: str | None = None,
        products: type[Matrix] | None = None,
        fade: Fade | None = None,
    ) -> None:
        super().__init__(b, sequence, fade)
        self.features = features
        self.size = size or features.block
        form = products if products and (self.size == "QK" or not products.of_states) else Vector
        self.normalizes = eps is not None
        self.normalizer = None if eps is None else form(b, self.size, eps)
        self.of_states = self.normalizer if self.normalizer and self.normalizer.of_states else None
        """The same where states have a part in it."""

    # Tokens

    def load(self, name: str, tensor: str, t: Var) -> tuple[Var, Var]:
        """A tile of q or k, as loaded and as the operand that it enters products with."""
        return self.features.load(self.b, name, tensor, (B, t, H, self.d), self.sequence)

    def queries(self, t: Var) -> Var:
        """A tile of queries, as an operand."""
        return self.load("Q", "q", t)[1]

    def scaled_queries(self, t: Var) -> Var:
        """A tile of queries that have the scale in them."""
        return self.features.load_scaled(self.b, "Q", "q", (B, t, H, self.d), self.sequence)

    def keys(self, t: Var) -> tuple[Var, Var]:
        """A tile of keys and their values, as operands."""
        return self.load("K", "k", t)[1], self.values(t)

    def values(self, t: Var) -> Var:
        return self.b.let("Y", Load("v", (B, t, H, self.u), OPERAND))

    # States

    def block(self, f0: Expr) -> Block:
        """The features from `f0` on."""
        return Block(*self.features.of_block(self.b, f0, self.size))

    @contextmanager
    def each(self) -> Iterator[Expr]:
        """Statements for each block of a state in registers, all of whose features a program keeps."""
        with self.b.blocks("f0", self.features.rows, self.size, self.tiles, self.features.sizes) as f0:
            yield f0

    @contextmanager
    def blocks(self) -> Iterator[Block]:
        """A loop over all features, one block at a time."""
        with self.b.loop("f0", 0, self.features.rows, self.size) as f0:
            yield self.block(f0)

    @property
    def tiles(self) -> tuple[str, ...]:
        """What a block of features has of its own, where a state is kept in several."""
        names = ("f", *self.features.selected, "weight", "S")
        return (*names, "z") if self.of_states else names

    def zeros(self, f: Var, suffix: str = "") -> State:
        """S and z before any token; the names of the tiles end in `suffix`."""
        sums = self.b.let(f"S{suffix}", Full((self.size, "VALUES"), 0.0))
        parts = (Part(self.b, sums, (f, self.u)),)
        return State((*parts, self.of_states.zeros(f, suffix)) if self.of_states else parts)

    def restored(self, block: Block, sources: Sources) -> State:
        """S and z of a block as they were kept, where there is a source."""
        state = self.zeros(block.f)
        for flag, (kept, index) in sources.items():
            with self.b.when(flag):
                state.restore(self.of_blocks(kept), RESTORED[flag], *index)
        return state

    def of_blocks(self, kept: Kept) -> Kept:
        """Those of the tensors that keep a state of which each block of features has a part."""
        return kept if self.of_states else Kept(kept.tensors[:1], kept.first)

    def stored(self, kept: Kept, f: Var, *index: Expr) -> Stored:
        """A state to be read from tensors."""
        return Stored(self.b, kept, (f, self.u), index)

    # Enter

    def enter(
        self,
        state: State,
        block: Block,
        operand: Var,
        values: Var,
        past: Expr,
        factors: Expr | None = None,
        kept: Var | None = None,
        weight: Var | None = None,
    ) -> None:
        """Add a tile's rows: Σ_t Φ(x_t) y_tᵀ to S and Σ_t e_t Φ(x_t) to z.

        `operand` holds x, `values` holds y; rows `past` the end of the sequence are 0 in both.  `factors` are
        the e_t; None for 1 in every row that exists.  `kept` is what is left of each row in the state, if
        that fades; `weight` is one of each feature.
        """
        past = self.b.let("past", past)
        if kept:
            values = self.faded(values, kept)
            factors = kept if factors is None else self.b.let("E_given", factors) * kept
        across = self.features.across(self.b, operand, block.selection, weight)
        self.b.add(state.sums, Dot(across.matrix, values))
        if self.of_states:
            self.of_states.enter(state.normalizer(), across, self.features.constant(block.f), past, factors)

    def faded(self, operand: Var, kept: Var | None) -> Var:
        """The rows of an operand, each times what is left of it."""
        if kept is None:
            return operand
        return self.b.let(f"{operand.name}_kept", Cast(Cast(operand, ACC) * column(kept), OPERAND))

    def weigh(self, state: State, weight: Var) -> None:
        """Multiply sums of features by the query-side weights of these."""
        for part in state.parts:
            self.b.set(part.tile, part.tile * (column(weight) if len(part.place) > 1 else weight))

    # Read and pair up

    def answer(self) -> Answer:
        """Nothing yet."""
        out = self.b.let("O", Full(("CHUNK", "VALUES"), 0.0))
        return Answer(out, self.normalizer.nothing() if self.normalizer else None)

    def weighted(self, queries: Var, block: Block) -> Var:
        """The query-side features of a tile: the map's own times their weights."""
        plain = self.features.features(self.b, "P_plain", queries, block.selection)
        weight = self.features.weights(self.b, block.f, block.selection)
        return self.b.let("P", plain * row(weight))

    def read(self, answer: Answer, features: Var, state: State | Stored, weight: Var | None = None) -> None:
        """Add what a state gives to queries of these features, which may lack their `weight`."""
        b = self.b
        matrix = b.let("P_operand", Cast(features, OPERAND))
        b.add(answer.out, Dot(matrix, state.operand(weight)))
        if answer.n and self.of_states:
            b.add(answer.n, self.of_states.of_features(features, matrix, state.normalizer()))

    def pair(
        self,
        queries: Var,
        keys: Var,
        values: Var,
        seen: Expr,
        onto: Answer | None = None,
        scale: Expr = SCALE,
        logs: Logs = None,
    ) -> Answer:
        """What queries get from keys directly, of pairs that are `seen`: added to an answer, or a new one.

        `scale` is 1 if queries have it in them.
        """
        b = self.b
        products = b.let("R", Dot(queries, Transpose(keys)))
        seen = b.let("seen", seen)
        weights = b.let("A", self._weights(products, seen, scale, pairs(logs)))
        matrix = b.let("A_operand", Cast(weights, OPERAND))
        if onto is None:
            out = b.let("O", Dot(matrix, values, among=seen))
            n = b.let("N", self.normalizer.of_weights(matrix)) if self.normalizer else None
            return Answer(out, n)
        b.add(onto.out, Dot(matrix, values, among=seen))
        if onto.n and self.normalizer:
            b.add(onto.n, self.normalizer.of_weights(matrix))
        return onto

    def fade_answer(self, answer: Answer, log: Var | None) -> None:
        """What is left, at each query, of what it has got from a state."""
        self.fade_rows(answer.out, log)
        if log and answer.n and self.normalizer:
            self.b.set(answer.n, answer.n * self.normalizer.by_row(left(log)))

    def finish(self, answer: Answer, t: Var, older: Var | None = None) -> None:
        """Divide o by n, and store n, where the layer normalises; `older` is what n lacks of older keys."""
        if answer.n and self.normalizer:
            n, divisor = self.normalizer.rows(answer.n), self.normalizer.divisor(answer.n)
            if older:
                self.b.add(older, n)
                n, divisor = older, column(older + self.normalizer.eps)
            self.b.store("n", (B, H, t), n)
            self.b.set(answer.out, answer.out / divisor)

    def _weights(self, products: Var, seen: Expr, scale: Expr = SCALE, kept: Expr | None = None) -> Expr:
        """A of a tile of pairs, with a row a query or a row a key."""
        weights = self.features.kernel(products, scale)
        return Where(seen, weights * kept if kept else weights, wrap(0.0))
