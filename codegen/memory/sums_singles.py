"""Sums of features with single keys, queries and features in place of tiles: a second look at a chunk.

The products of `sums.py` become sums of outer products, each of which selects the rows that take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from ..ir.heads import members
from ..ir.nodes import (
    ACC,
    Doubt,
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
from ..lower.ragged import Dense, Segment
from ..lower.second_look import mend
from ..lower.sequence import Sequence
from .states import B, H, Kept, Sources, left
from .sums import Sums


@dataclass(frozen=True)
class Chunk:
    """The chunk of a program, from the token `start` on, in a segment of tokens `first` to `stop` - 1.

    The state of what is before or after the segment is one of `sources`.
    """

    start: Expr
    first: Expr
    stop: Expr
    sources: Sources
    segment: Segment | Dense


class Singles:
    """The rows of one chunk of a memory."""

    def __init__(self, memory: Sums, chunk: Chunk) -> None:
        self.memory, self.b, self.features, self.chunk = memory, memory.b, memory.features, chunk
        self.d, self.u, self.normalizer = memory.d, memory.u, memory.normalizer
        self.t = self.b.let("t_own", memory.sequence.tile(chunk.start, "CHUNK"))
        self.end = self.b.let("end_token", memory.sequence.until(chunk.start + "CHUNK"))
        self.gradients = "g" if self.normalizer else "do"
        self.origin = memory.moment("own_origin", chunk.start)
        self.log = memory.since("own_log", self.t, self.origin)

    def outputs(self) -> None:
        """o of the chunk's queries."""
        b, t, u = self.b, self.t, self.u
        with self._spoilt({"v": u}, "KEYS"):
            _, queries = self._own("q")
            out = b.let("o_own", Full(("CHUNK", "VALUES"), 0.0))
            n = b.let("n_own", Full(("CHUNK",), 0.0))
            with self._states() as (f, selection, state, z):
                plain = self.features.column_features(b, "P_one", "q", (B, t, H), f, selection)
                weighted = b.let("P_weighted", plain * self.features.weight(f, selection))
                b.add(out, column(weighted) * row(state))
                if z:
                    b.add(n, weighted * z)
            self._fade_since_segment(out, n)
            with b.loop("j_one", self.chunk.first, self.end) as j:
                _, key = self._one("k", j)
                value = b.let("v_one", Load("v", (B, j, H, u), ACC))
                products = self._products(queries, key)
                seen = b.let("seen_one", t >= j)
                kernel = self._faded(self.features.kernel(products), self._kept(j))
                weights = b.let("A_one", Where(seen, kernel, wrap(0.0)))
                self._add_selected(out, seen, weights, value)
                if self.normalizer:
                    b.add(n, weights)
            if self.normalizer:
                b.set(out, out / column(n + self.normalizer.eps))
            mend(b, "o", (B, t, H, u), out)

    def query_gradients(self) -> None:
        """dq of the chunk's queries, from the gradients that were stored."""
        b, t, u = self.b, self.t, self.u
        with self._spoilt({"k": self.d}, "KEYS"):
            loaded, queries = self._own("q")
            e = b.let("e_own", Load("e", (B, H, t), ACC)) if self.normalizer else None
            dq = b.let("dq_own", Full(("CHUNK", "QK"), 0.0))
            with self._states() as (f, selection, state, z):
                by_feature = self._products_of_gradients(state)
                if z and e:
                    b.add(by_feature, e * z)
                b.set(by_feature, by_feature * self.features.weight(f, selection))
                self.features.column_adjoint(b, by_feature, "q", (B, t, H), f, selection, dq)
            self._fade_since_segment(dq)
            with b.loop("j_one", self.chunk.first, self.end) as j:
                _, key = self._one("k", j)
                value = b.let("v_one", Load("v", (B, j, H, u), ACC))
                slope = self.features.slope(self._products(queries, key))
                by_kernel = self._products_of_gradients(value)
                if e:
                    b.add(by_kernel, e)
                kept = self._kept(j)
                seen = b.let("seen_one", t >= j)
                by_product = b.let("dR_one", self._faded(by_kernel * slope, kept))
                self._add_selected(dq, seen, by_product, key)
            mend(b, "dq", (B, t, H, self.d), self.features.leave(loaded, dq))

    def key_gradients(self) -> None:
        """dk and dv of the chunk's keys."""
        b, t, u = self.b, self.t, self.u
        with self._spoilt({"q": self.d, self.gradients: u}, "QUERIES", backwards=True):
            loaded, keys = self._own("k")
            values = b.let("v_own", Load("v", (B, t, H, u), ACC))
            dk = b.let("dk_own", Full(("CHUNK", "QK"), 0.0))
            dv = b.let("dv_own", Full(("CHUNK", "VALUES"), 0.0))
            with self._states() as (f, selection, state, z):
                features = self.features.column_features(b, "P_one", "k", (B, t, H), f, selection)
                b.add(dv, column(features) * row(state))
                by_feature = b.let("dP_one", Sum(b.let("S_products", values * row(state)), 1))
                if z:
                    b.add(by_feature, z)
                self.features.column_adjoint(b, by_feature, "k", (B, t, H), f, selection, dk)
            self._fade_to_segment(dk, dv)
            with members(b), b.loop("i_one", self.chunk.start, self.chunk.stop) as i:
                _, query = self._one("q", i)
                gradient = b.let("g_one", Load(self.gradients, (B, i, H, u), ACC))
                products = self._products(keys, query)
                seen, kept = b.let("seen_one", t <= i), self._kept(i, earlier=False)
                weights = b.let("A_one", self._faded(self.features.kernel(products), kept))
                self._add_selected(dv, seen, weights, gradient)
                by_kernel = b.let("dA_one", Sum(b.let("v_products", values * row(gradient)), 1))
                if self.normalizer:
                    b.add(by_kernel, b.let("e_one", Load("e", (B, H, i), ACC)))
                by_product = b.let("dR_one", self._faded(by_kernel * self.features.slope(products), kept))
                self._add_selected(dk, seen, by_product, query)
            mend(b, "dk", (B, t, H, self.d), self.features.leave(loaded, dk))
            mend(b, "dv", (B, t, H, u), dv)

    # Pieces

    def _kept(self, other: Var, earlier: bool = True) -> Expr | None:
        """What is left of one earlier token at each of the chunk's; or of each of these at one later."""
        log = self.memory.since("other_log", other, self.origin)
        if log is None or self.log is None:
            return None
        return left(self.log - log if earlier else log - self.log)

    def _faded(self, weights: Expr, kept: Expr | None) -> Expr:
        return weights * kept if kept else weights

    def _fade_since_segment(self, tile: Var, n: Var | None = None) -> None:
        """What queries have read of the state before the segment, by what is left of it."""
        before = self.memory.moment("first_moment", self.chunk.first)
        log = self.memory.since("log_in_segment", self.t, before)
        self.memory.fade_rows(tile, log)
        if log and n:
            self.b.set(n, n * left(log))

    def _fade_to_segment(self, *tiles: Var) -> None:
        """The same of keys, from the mirrored state after the segment."""
        log = self.memory.since("log_in_segment", self.t, self.memory.moment("stop_moment", self.chunk.stop))
        log = self.b.let("log_to_end", -log) if log else None
        for tile in tiles:
            self.memory.fade_rows(tile, log)

    @contextmanager
    def _spoilt(self, tensors: Mapping[str, Var], size: str, backwards: bool = False) -> Iterator[None]:
        """Statements that run if `tensors` may have spoilt rows of the chunk.

        Each tensor comes with the index tile of its columns.  A row is spoilt by a later one (an earlier one,
        if `backwards`) that was in one tile of `size` with it.  So none is, if in no column the first (last)
        row is finite and another is not: then all of that column is what it should be.  A sequence of NaN
        takes no time in this way.
        """
        start, sequence, segment = self.chunk.start, self.memory.sequence, self.chunk.segment
        edge, begin = start, start
        finish = sequence.until(segment.tiles_until(start + "CHUNK", size))
        if backwards:
            edge, begin, finish = self.end - 1, segment.tile_of(start, size), self.end
        with self.b.when(Doubt(self._unlike(tensors, sequence, edge, begin, finish, backwards))):
            yield

    def _unlike(
        self,
        tensors: Mapping[str, Var],
        sequence: Sequence,
        edge: Expr,
        begin: Expr,
        finish: Expr,
        of_queries: bool = False,
    ) -> Var:
        """Something that is not 0 if in some column the row at the `edge` is finite, and another is not."""
        b = self.b
        doubt = b.let("doubt_rows", Full((), 0.0))
        with members(b) if of_queries else nullcontext():
            for name, columns in tensors.items():
                row_at_edge = b.let(f"{name}_edge", Load(name, (B, edge, H, columns), ACC))
                sums = b.let(f"{name}_sums", Unary("nothing", row_at_edge))
                finite = b.let(f"{name}_nothing_at_edge", Unary("nothing", row_at_edge)).equals(0.0)
                with b.loop("t_tile", begin, finish, "ROWS") as first:
                    t = b.let("t_rows", sequence.tile(first, "ROWS"))
                    rows = b.let(f"{name}_rows", Load(name, (B, t, H, columns), ACC))
                    b.add(sums, Sum(b.let(f"{name}_nothing", Unary("nothing", rows)), 0))
                b.add(doubt, Sum(b.let(f"{name}_spoils", Where(finite, sums, wrap(0.0))), 0))
        return doubt

    @contextmanager
    def _states(self) -> Iterator[tuple[Var, tuple[Var, ...], Var, Var | None]]:
        """A loop over the features, one at a time: its index and selection, its row of S, and z."""
        b = self.b
        (flag, only), *more = self.chunk.sources.items()
        with nullcontext() if more else b.when(flag), b.loop("f_one", 0, self.features.rows) as f:
            selection = self.features.select(b, f, "_one", alone=True)
            if not more:
                yield f, selection, *self._row_of(only, f)
                return
            sums = b.let("S_one", Full(("VALUES",), 0.0))
            z = b.let("z_one", Full((), 0.0)) if self.normalizer else None
            for flag, source in self.chunk.sources.items():
                with b.when(flag):
                    found, number = self._row_of(source, f, f"_{flag.lower()}")
                    b.set(sums, found)
                    if z and number:
                        b.set(z, number)
            yield f, selection, sums, z

    def _row_of(
        self, source: tuple[Kept, tuple[Expr, ...]], f: Var, suffix: str = ""
    ) -> tuple[Var, Var | None]:
        """One row of S, and its number of z, from where they are kept."""
        b, ((state, *normalizer), index) = self.b, source
        sums = b.let(f"S_one{suffix}", Load(state.name, (B, H, *index, f, self.u), ACC))
        z = [b.let(f"z_one{suffix}", Load(tensor.name, (B, H, *index, f), ACC)) for tensor in normalizer]
        return sums, z[0] if z else None

    def _own(self, tensor: str) -> tuple[Var, Var]:
        """The chunk's own rows of q or k."""
        return self.features.exact(self.b, f"{tensor}_own", tensor, (B, self.t, H, self.d), row(self.d))

    def _one(self, tensor: str, t: Var) -> tuple[Var, Var]:
        """One row of q or k."""
        return self.features.exact(self.b, f"{tensor}_one", tensor, (B, t, H, self.d), self.d)

    def _products(self, tile: Var, vector: Var) -> Var:
        """Products of each row of a tile with one row."""
        return self.b.let("products_one", Sum(self.b.let("terms_one", tile * row(vector)), 1))

    def _products_of_gradients(self, vector: Var) -> Var:
        """The same with each row of the gradients: loaded anew, since kept they take too many registers."""
        gradients = self.b.let("g_own", Load(self.gradients, (B, self.t, H, self.u), ACC))
        return self.b.let("g_products", Sum(self.b.let("g_terms", gradients * row(vector)), 1))

    def _add_selected(self, sums: Var, seen: Var, weights: Var, vector: Var) -> None:
        """Add one row, weighted, to those that see it."""
        self.b.add(sums, Where(column(seen), column(weights) * row(vector), wrap(0.0)))
