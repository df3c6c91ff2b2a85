"""A window and sums of features with single keys, queries and features in place of tiles: a second look.

Every sum selects its terms, as in `sums_singles.py`.  What a row is divided by was right at the first look,
which leaves pairs out of it, so it is read from where it was stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from ..ir.heads import members
from ..ir.nodes import ACC, Doubt, Expr, Full, Load, Sum, Unary, Var, column, maximum, row
from ..lower.second_look import mend
from ..lower.sequence import Sequence
from . import sums_singles
from .hybrid import Hybrid
from .states import B, H
from .sums_singles import Chunk
from .window import LOG2_E, UNREACHED, shifted


class Singles(sums_singles.Singles):
    """The rows of one chunk of a memory; `first` is the first key that exists.

    Keys meet queries from `late` on through the mirrored state.
    """

    def __init__(self, memory: Hybrid, chunk: Chunk, first: Var, late: Expr | None = None) -> None:
        super().__init__(memory.older, chunk)
        self.both, self.window, self.first, self.late = memory, memory.window, first, late
        self.w = self.window.d

    def outputs(self) -> None:
        """o of the chunk's queries."""
        b, t, u, both = self.b, self.t, self.u, self.both
        with self._keys_spoil({"v": u}):
            _, queries = self._own("q")
            plain = self._plain("plain_own", self.window.q, t)
            far = b.let("far_own", Full(("CHUNK", "VALUES"), 0.0))
            near = b.let("near_own", Full(("CHUNK", "VALUES"), 0.0))
            lse = b.let("lse_own", Load("lse", (B, H, t), ACC, fill=UNREACHED))
            with self._states() as (f, selection, state, _):
                features = self.features.column_features(b, "P_one", "q", (B, t, H), f, selection)
                weighted = b.let("P_weighted", features * self.features.weight(f, selection))
                b.add(far, column(weighted) * row(state))
            with b.loop("j_one", self.chunk.first, self.chunk.stop) as j:
                value = b.let("v_one", Load("v", (B, j, H, u), ACC))
                _, key = self._one("k", j)
                weights = b.let("A_one", self.features.kernel(self._products(queries, key)))
                self._add_selected(far, b.let("far_one", self._is_far(t, j)), weights, value)
                probabilities = self._probabilities(plain, self._plain("key_one", self.window.k, j), lse)
                self._add_selected(near, b.let("near_one", self._is_near(t, j)), probabilities, value)
            b.set(far, far * column(both.inverse(t)))
            both.finish_again(near, far, t)

    def query_gradients(self) -> None:
        """dq of the chunk's queries, from the gradients that were stored."""
        b, t, u, both = self.b, self.t, self.u, self.both
        spoilers = {"k": self.d, self.window.k: self.w}
        with self._keys_spoil(spoilers):
            loaded, queries = self._own("q")
            plain = self._plain("plain_own", self.window.q, t)
            e = b.let("e_own", Load("e", (B, H, t), ACC))
            lse = b.let("lse_own", Load("lse", (B, H, t), ACC, fill=UNREACHED))
            delta = b.let("delta_own", Load("delta_rows", (B, H, t), ACC))
            far = b.let("far_own", Full(("CHUNK", "QK"), 0.0))
            near = b.let("near_own", Full(("CHUNK", self.window.size), 0.0))
            with self._states() as (f, selection, state, z):
                by_feature = self._products_of_gradients(state)
                assert z is not None
                b.add(by_feature, e * z)
                b.set(by_feature, by_feature * self.features.weight(f, selection))
                self.features.column_adjoint(b, by_feature, "q", (B, t, H), f, selection, far)
            with b.loop("j_one", self.chunk.first, self.chunk.stop) as j:
                value = b.let("v_one", Load("v", (B, j, H, u), ACC))
                _, key = self._one("k", j)
                by_kernel = self._products_of_gradients(value)
                b.add(by_kernel, e)
                slope = self.features.slope(self._products(queries, key))
                by_product = b.let("dR_one", by_kernel * slope)
                self._add_selected(far, b.let("far_one", self._is_far(t, j)), by_product, key)
                near_key = self._plain("key_one", self.window.k, j)
                probabilities = self._probabilities(plain, near_key, lse)
                do = b.let("do_own", both.exact_do("do_exact", t))
                by_weight = b.let("do_products", Sum(b.let("do_terms", do * row(value)), 1))
                shift = both.shift("own", t, self.window.place(t) - j)
                by_score = b.let("dS_one", shifted(probabilities * (by_weight - delta), shift))
                self._add_selected(near, b.let("near_one", self._is_near(t, j)), by_score, near_key)
            both.leave("dq", t, loaded, far, near, again=True)

    def key_gradients(self) -> None:
        """dk and dv of the chunk's keys."""
        b, j, u, both, late = self.b, self.t, self.u, self.both, self.late
        assert late is not None
        spoilers = {"q": self.d, self.window.q: self.w, "do": u}
        with self._queries_spoil(spoilers):
            loaded, keys = self._own("k")
            plain = self._plain("plain_own", self.window.k, j)
            values = b.let("v_own", Load("v", (B, j, H, u), ACC))
            far = b.let("far_own", Full(("CHUNK", "QK"), 0.0))
            near = b.let("near_own", Full(("CHUNK", self.window.size), 0.0))
            dv = b.let("dv_own", Full(("CHUNK", "VALUES"), 0.0))
            with self._states() as (f, selection, state, z):
                features = self.features.column_features(b, "P_one", "k", (B, j, H), f, selection)
                b.add(dv, column(features) * row(state))
                by_feature = b.let("dP_one", Sum(b.let("S_products", values * row(state)), 1))
                assert z is not None
                b.add(by_feature, z)
                self.features.column_adjoint(b, by_feature, "k", (B, j, H), f, selection, far)
            both.select("entered", (j < self.chunk.first) & (j >= self.first), far, dv)
            with members(b):
                both.weigh()
                with b.loop(
                    "i_one", maximum(self.window.query_at(self.chunk.start), 0), self.chunk.stop
                ) as i:
                    _, query = self._one("q", i)
                    gradient = b.let("g_one", Load("g", (B, i, H, u), ACC))
                    products = self._products(keys, query)
                    seen = b.let("far_one", self._is_far(i, j) & (i < late))
                    self._add_selected(dv, seen, b.let("A_one", self.features.kernel(products)), gradient)
                    by_kernel = b.let("dA_one", Sum(b.let("v_products", values * row(gradient)), 1))
                    b.add(by_kernel, b.let("e_one", Load("e", (B, H, i), ACC)))
                    by_product = b.let("dR_one", by_kernel * self.features.slope(products))
                    self._add_selected(far, seen, by_product, query)
                    near_query = self._plain("query_one", self.window.q, i)
                    lse = b.let("lse_one", Load("lse", (B, H, i), ACC))
                    probabilities = self._probabilities(plain, near_query, lse)
                    do = b.let("do_one", both.exact_do("do_one_exact", i))
                    visible = b.let("near_one", self._is_near(i, j))
                    self._add_selected(dv, visible, probabilities, do)
                    by_weight = b.let("do_products", Sum(b.let("do_terms", values * row(do)), 1))
                    delta = b.let("delta_one", Load("delta_rows", (B, H, i), ACC))
                    shift = both.shift("one", i, self.window.place(i) - j)
                    by_score = b.let("dS_one", shifted(probabilities * (by_weight - delta), shift))
                    self._add_selected(near, visible, by_score, near_query)
            both.leave("dk", j, loaded, far, near, again=True)
            mend(b, "dv", (B, j, H, u), dv)

    # Pieces

    def _keys_spoil(self, tensors: Mapping[str, Var]) -> AbstractContextManager[None]:
        """Statements that run if keys in one tile with those of the windows may have spoilt rows.

        All rows see the keys up to the first row's own, and later ones that they share a tile with are within
        two tiles.  Where each part is on its own, what one sees can spoil the other.
        """
        keys, place = self.window.keys, self.window.place(self.chunk.start)
        finish = keys.until(place + "CHUNK" + "KEYS")
        if self._apart:
            begin = maximum(self.both.youngest(self.chunk.start) + 1, keys.start)
            return self.b.when(Doubt(self._any(tensors, keys, begin, finish)))
        return self.b.when(Doubt(self._unlike(tensors, keys, place, place, finish)))

    def _queries_spoil(self, tensors: Mapping[str, Var]) -> AbstractContextManager[None]:
        """The same of queries that stand at the chunk's keys; the last of these sees all of them."""
        queries, end = self.window.queries, self.chunk.start + "CHUNK"
        begin = maximum(self.window.query_at(self.chunk.start), 0)
        if self._apart:
            finish = queries.until(self.both.last_query(end) + "QUERIES")
            spoilt = self._any({**tensors, "g": self.u}, queries, begin, finish, of_queries=True)
            return self.b.when(Doubt(spoilt))
        finish = maximum(self.window.query_at(self.window.keys.until(end)), 0)
        edge = maximum(finish - 1, 0)
        return self.b.when(Doubt(self._unlike(tensors, queries, edge, begin, finish, of_queries=True)))

    @property
    def _apart(self) -> bool:
        """Whether a query may see a key in one part without what is not finite there reaching the other."""
        return self.both.apart or self.window.own is not None

    def _any(
        self,
        tensors: Mapping[str, Var],
        sequence: Sequence,
        begin: Expr,
        finish: Expr,
        of_queries: bool = False,
    ) -> Var:
        """Something that is not 0 if anything is not finite."""
        b = self.b
        doubt = b.let("doubt_rows", Full((), 0.0))
        with members(b) if of_queries else nullcontext():
            for name, columns in tensors.items():
                with b.loop("t_tile", begin, finish, "ROWS") as first:
                    t = b.let("t_rows", sequence.tile(first, "ROWS"))
                    rows = b.let(f"{name}_rows", Load(name, (B, t, H, columns), ACC))
                    nothing = b.let(f"{name}_nothing", Unary("nothing", rows))
                    b.add(doubt, Sum(b.let(f"{name}_nothing_of_rows", Sum(nothing, 1)), 0))
        return doubt

    def _is_far(self, t: Expr, j: Expr) -> Expr:
        """Whether a key has left the window of a query; one of them is a tile."""
        return (j <= self.both.youngest(t)) & (j >= self.first)

    def _is_near(self, t: Expr, j: Expr) -> Expr:
        """Whether a key is in the window of a query."""
        return (j <= self.window.place(t)) & (j > self.both.youngest(t)) & (j >= self.first)

    def _plain(self, name: str, tensor: str, t: Var) -> Var:
        """Rows or one row of the window's queries or keys."""
        return self.b.let(name, Load(tensor, (B, t, H, self.w), ACC))

    def _probabilities(self, tile: Var, vector: Var, lse: Var) -> Var:
        """Of each row of a tile with one row, without regard to what it sees."""
        b = self.b
        products = b.let("near_products", Sum(b.let("near_terms", tile * row(vector)), 1))
        return b.let("probability", Unary("exp2", self.window.logits.of(products) - lse * LOG2_E))
