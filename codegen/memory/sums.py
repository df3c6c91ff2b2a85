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
    Sum,
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
from .states import B, Block, H, Kept, Part, State, Stored, left


@dataclass(frozen=True)
class Answer:
    """o and n of a tile of queries, as they grow; no n if the layer does not normalise."""

    out: Var
    n: Var | None


@dataclass(frozen=True)
class Gradients:
    """What backward a tile of queries brings: g as an operand, and e if the layer normalises.

    e is one number a row, 0 past the end of the sequence; a `Load` is done where it is needed.
    """

    g: Var
    e: Var | Load | None

    def read_e(self, b: Builder) -> Var | None:
        return b.let("E", self.e) if isinstance(self.e, Load) else self.e


class Sums(Fading):
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
