"""Linear attention: five chunk programs and a step, for any feature map.

With A_ij = f(scale · u_i·w_j) for j <= i, o_i = Σ_j A_ij v_j / (Σ_j A_ij + eps)  (Based, equation 2).  The
sequence is cut into *segments*.  Keys of earlier segments reach a query through the recurrent state S = Σ_j
Φ(w_j) v_jᵀ and its normaliser z = Σ_j Φ(w_j); keys of the query's own segment reach it directly, tile by
tile, as in exact attention.  The one dial, the segment's length, moves a kernel between the purely recurrent
and the purely quadratic form.

Backward, with g_i = do_i / (n_i + eps) and e_i = -(do_i·o_i) / (n_i + eps), where n_i = Σ_j A_ij:

    dA_ij = g_i·v_j + e_i      dv_j = Σ_{i>=j} A_ij g_i

and, across segments, the same through the state of earlier keys (for q) and the mirrored state Σ_i Φ(u_i)
g_iᵀ of later queries (for k and v).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    IO,
    OPERAND,
    STATE,
    Axis,
    Cast,
    Dot,
    Expr,
    Full,
    Load,
    Program,
    Span,
    Sum,
    Tensor,
    Transpose,
    Var,
    Where,
    cdiv,
    column,
    minimum,
    row,
    wrap,
)
from ..spec.model import LinearAttention
from .feature_maps import FeatureMap, feature_map
from .prefix import prefix

B, H, T = Var("b"), Var("h"), Var("T")
ROWS = ("B", "T", "H")
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
CHUNK_AXIS = Axis("chunk", cdiv("T", "CHUNK"))
SIZES = ("B", "T", "H", "segments")


def programs(spec: LinearAttention) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    features = feature_map(spec)
    lowering = _Lowering(spec, features)
    chunked = (
        lowering.states("states", of_queries=False),
        prefix("prefix", reverse=False),
        lowering.outputs(),
        *((lowering.output_gradients(),) if spec.normalize else ()),
        lowering.states("query_states", of_queries=True),
        prefix("suffix", reverse=True),
        lowering.query_gradients(),
        lowering.key_gradients(),
    )
    return (*chunked, lowering.step())


class _Lowering:
    """The programs of one layer; the methods share its widths and its feature map."""

    def __init__(self, spec: LinearAttention, features: FeatureMap) -> None:
        self.spec, self.features = spec, features
        self.qk, self.v = spec.head_dims.qk, spec.head_dims.v

    # Parameters

    def _queries(self, name: str) -> Tensor:
        return Tensor(name, (*ROWS, self.qk), IO, strided=True)

    def _values(self, name: str, strided: bool = True) -> Tensor:
        return Tensor(name, (*ROWS, self.v), IO, strided)

    def _segment_states(self, flag: str | None = None) -> tuple[Tensor, ...]:
        state = Tensor("state", ("B", "H", "segments", self.features.rows, self.v), ACC, optional=flag)
        normalizer = Tensor("normalizer", ("B", "H", "segments", self.features.rows), ACC, optional=flag)
        return (state, normalizer) if self.spec.normalize else (state,)

    def _row_sums(self, *names: str) -> tuple[Tensor, ...]:
        return tuple(Tensor(name, ROWS, ACC) for name in names) if self.spec.normalize else ()

    def _program(
        self,
        name: str,
        summary: str,
        axes: tuple[Axis, ...],
        tensors: tuple[Tensor, ...],
        b: Builder,
        constants: tuple[str, ...],
        whole_values: bool,
        flags: tuple[str, ...] = (),
        scaled: bool = True,
    ) -> Program:
        bounds = {"QK": self.qk} | ({"VALUES": self.v} if whole_values else {})
        block = () if self.features.block == "QK" else ("FEATURES",)
        return Program(
            name,
            summary,
            (*BATCH_AXES, *axes),
            tensors,
            SIZES,
            ("scale",) if scaled else (),
            flags,
            (*constants, "QK", *block, "VALUES"),
            b.body,
            bounds,
        )

    # Pieces

    def _gradient_tile(self, b: Builder, t: Var, u: Var) -> Var:
        """g = do / (n + eps) as a matrix operand, one row a token."""
        if not self.spec.normalize:
            return b.let("G", Load("do", (B, t, H, u), OPERAND))
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        n = b.let("N", Load("n", (B, t, H), ACC, fill=1.0))
        return b.let("G", Cast(do / column(n + self.spec.eps), OPERAND))

    def _weighted_features(self, b: Builder, name: str, operand: Var, selection: tuple[Var, ...]) -> Var:
        plain = self.features.features(b, f"{name}_plain", operand, selection)
        weight = self.features.weights(b, selection)
        return b.let(name, plain * row(weight))

    def _feature_loop(self, b: Builder) -> AbstractContextManager[Var]:
        return b.loop("f0", 0, self.features.rows, self.features.block)

    def _features_at(self, b: Builder, f0: Expr) -> Var:
        return b.let("f", Span(f0, self.features.block))

    # Programs

    def states(self, name: str, of_queries: bool) -> Program:
        """The state that one segment adds: keys with values, or (mirrored) queries with output gradients."""
        b = Builder()
        normalize = self.spec.normalize
        f = self._features_at(b, Var("feature_block") * self.features.block)
        u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
        d = b.let("d", Span(wrap(0), "QK"))
        selection = self.features.select(b, f)
        b.let("S", Full((self.features.block, "VALUES"), 0.0))
        if normalize:
            b.comment("Summed row by row; the reduction over rows waits until the end.")
            b.let("Z", Full(("CHUNK", self.features.block), 0.0))
        start = Var("segment") * "SEGMENT"
        with b.loop("t0", start, minimum(start + "SEGMENT", T), "CHUNK") as t0:
            t = b.let("t", Span(t0, "CHUNK"))
            _, operand = self.features.load(b, "X", "q" if of_queries else "k", (B, t, H, d))
            if of_queries:
                values = self._gradient_tile(b, t, u)
                plain = self._weighted_features(b, "P", operand, selection)
            else:
                values = b.let("Y", Load("v", (B, t, H, u), OPERAND))
                plain = self.features.features(b, "P", operand, selection)
            b.comment("Rows past the end of the sequence have features too (a constant 1): take them out.")
            features = b.let("F", Where(column(t < T), plain, wrap(0.0)))
            matrix = b.let("F_operand", Cast(features, OPERAND))
            b.add(Var("S"), Dot(Transpose(matrix), values))
            if normalize and of_queries:
                e = b.let("E", Load("e", (B, t, H), ACC))
                b.add(Var("Z"), features * column(e))
            elif normalize:
                b.add(Var("Z"), features)
        b.store("state", (B, H, Var("segment"), f, u), Var("S"))
        if normalize:
            z = b.let("z", Sum(Var("Z"), 0))
            b.store("normalizer", (B, H, Var("segment"), f), z)
        inputs = (
            (self._queries("q"), self._values("do"), *self._row_sums("n", "e"))
            if of_queries
            else (self._queries("k"), self._values("v"))
        )
        axes = (
            Axis("segment", Var("segments")),
            Axis("feature_block", cdiv(self.features.rows, self.features.block)),
            Axis("value_block", cdiv(self.v, "VALUES")),
        )
        what = "queries and their output gradients" if of_queries else "keys and values"
        return self._program(
            name,
            f"The sum of outer products of the {what} of each segment.",
            axes,
            (*inputs, *self._segment_states()),
            b,
            ("SEGMENT", "CHUNK"),
            whole_values=False,
            scaled=of_queries,
        )

    def outputs(self) -> Program:
        """o and n of one chunk of queries."""
        b = Builder()
        normalize = self.spec.normalize
        t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
        d = b.let("d", Span(wrap(0), "QK"))
        u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
        segment = b.let("segment", Var("chunk") * "CHUNK" // "SEGMENT")
        _, queries = self.features.load(b, "Q", "q", (B, t, H, d))
        out = b.let("O", Full(("CHUNK", "VALUES"), 0.0))
        if normalize:
            b.let("N", Full(("CHUNK",), 0.0))
        with b.when("STATEFUL"):
            b.comment("Earlier segments, through their state.")
            with self._feature_loop(b) as f0:
                f = self._features_at(b, f0)
                selection = self.features.select(b, f)
                features = self._weighted_features(b, "P", queries, selection)
                matrix = b.let("P_operand", Cast(features, OPERAND))
                state = b.let("S", Load("state", (B, H, segment, f, u), OPERAND))
                b.add(out, Dot(matrix, state))
                if normalize:
                    z = b.let("z", Load("normalizer", (B, H, segment, f), ACC))
                    products = b.let("Pz", features * row(z))
                    b.add(Var("N"), Sum(products, 1))
        b.comment("This segment, directly.")
        end = minimum(Var("chunk") * "CHUNK" + "CHUNK", T)
        with b.loop("j0", segment * "SEGMENT", end, "KEYS") as j0:
            j = b.let("j", Span(j0, "KEYS"))
            _, keys = self.features.load(b, "K", "k", (B, j, H, d))
            values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
            products = b.let("R", Dot(queries, Transpose(keys)))
            attention = b.let("A", Where(column(t) >= row(j), self.features.kernel(products), wrap(0.0)))
            matrix = b.let("A_operand", Cast(attention, OPERAND))
            b.add(out, Dot(matrix, values))
            if normalize:
                b.add(Var("N"), Sum(attention, 1))
        if normalize:
            b.store("n", (B, t, H), Var("N"))
            b.set(out, out / column(Var("N") + self.spec.eps))
        b.store("o", (B, t, H, u), Cast(out, IO))
        tensors = (
            self._queries("q"),
            self._queries("k"),
            self._values("v"),
            *self._segment_states("STATEFUL"),
            self._values("o", strided=False),
            *self._row_sums("n"),
        )
        axes = (CHUNK_AXIS, Axis("value_block", cdiv(self.v, "VALUES")))
        return self._program(
            "outputs",
            "The outputs of one chunk of queries.",
            axes,
            tensors,
            b,
            ("SEGMENT", "CHUNK", "KEYS"),
            whole_values=False,
            flags=("STATEFUL",),
        )

    def output_gradients(self) -> Program:
        """e = -(do·o) / (n + eps): what every A_ij of a row owes to the normaliser."""
        b = Builder()
        t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
        u = b.let("u", Span(wrap(0), "VALUES"))
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        o = b.let("O", Load("o", (B, t, H, u), ACC))
        n = b.let("N", Load("n", (B, t, H), ACC, fill=1.0))
        products = b.let("products", do * o)
        total = b.let("total", Sum(products, 1))
        b.store("e", (B, t, H), -total / (n + self.spec.eps))
        tensors = (self._values("do"), self._values("o", strided=False), *self._row_sums("n", "e"))
        return Program(
            "output_gradients",
            "The gradient that reaches every A_ij of a row through the normaliser.",
            (*BATCH_AXES, CHUNK_AXIS),
            tensors,
            SIZES,
            (),
            (),
            ("CHUNK", "VALUES"),
            b.body,
            {"VALUES": self.v},
        )

    def query_gradients(self) -> Program:
        """dq of one chunk of queries."""
        b = Builder()
        normalize = self.spec.normalize
        t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
        d = b.let("d", Span(wrap(0), "QK"))
        u = b.let("u", Span(wrap(0), "VALUES"))
        segment = b.let("segment", Var("chunk") * "CHUNK" // "SEGMENT")
        loaded, queries = self.features.load(b, "Q", "q", (B, t, H, d))
        gradients = self._gradient_tile(b, t, u)
        if normalize:
            b.let("E", Load("e", (B, t, H), ACC))
        dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
        with b.when("STATEFUL"):
            b.comment("Earlier segments, through their state.")
            with self._feature_loop(b) as f0:
                f = self._features_at(b, f0)
                selection = self.features.select(b, f)
                weight = self.features.weights(b, selection)
                state = b.let("S", Load("state", (B, H, segment, f, u), OPERAND))
                by_feature = b.let("dP", Dot(gradients, Transpose(state)))
                if normalize:
                    z = b.let("z", Load("normalizer", (B, H, segment, f), ACC))
                    b.add(by_feature, column(Var("E")) * row(z))
                b.set(by_feature, by_feature * row(weight))
                self.features.adjoint(b, by_feature, queries, selection, into=dq)
        b.comment("This segment, directly.")
        end = minimum(Var("chunk") * "CHUNK" + "CHUNK", T)
        with b.loop("j0", segment * "SEGMENT", end, "KEYS") as j0:
            j = b.let("j", Span(j0, "KEYS"))
            _, keys = self.features.load(b, "K", "k", (B, j, H, d))
            values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
            products = b.let("R", Dot(queries, Transpose(keys)))
            by_kernel = b.let("dA", Dot(gradients, Transpose(values)))
            if normalize:
                b.add(by_kernel, column(Var("E")))
            by_product = b.let(
                "dR",
                Cast(
                    Where(column(t) >= row(j), by_kernel * self.features.slope(products), wrap(0.0)), OPERAND
                ),
            )
            b.add(dq, Dot(by_product, keys))
        b.store("dq", (B, t, H, d), Cast(self.features.leave(loaded, dq), IO))
        tensors = (
            self._queries("q"),
            self._queries("k"),
            self._values("v"),
            self._values("do"),
            *self._row_sums("n", "e"),
            *self._segment_states("STATEFUL"),
            Tensor("dq", (*ROWS, self.qk), IO),
        )
        return self._program(
            "query_gradients",
            "The gradient of one chunk of queries.",
            (CHUNK_AXIS,),
            tensors,
            b,
            ("SEGMENT", "CHUNK", "KEYS"),
            whole_values=True,
            flags=("STATEFUL",),
        )

    def key_gradients(self) -> Program:
        """dk and dv of one chunk of keys."""
        b = Builder()
        normalize = self.spec.normalize
        j = b.let("j", Span(Var("chunk") * "CHUNK", "CHUNK"))
        d = b.let("d", Span(wrap(0), "QK"))
        u = b.let("u", Span(wrap(0), "VALUES"))
        segment = b.let("segment", Var("chunk") * "CHUNK" // "SEGMENT")
        loaded, keys = self.features.load(b, "K", "k", (B, j, H, d))
        values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
        dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
        dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
        with b.when("STATEFUL"):
            b.comment("Later segments, through the mirrored state of their queries.")
            with self._feature_loop(b) as f0:
                f = self._features_at(b, f0)
                selection = self.features.select(b, f)
                features = self.features.features(b, "P", keys, selection)
                matrix = b.let("P_operand", Cast(features, OPERAND))
                state = b.let("S", Load("state", (B, H, segment, f, u), OPERAND))
                b.add(dv, Dot(matrix, state))
                by_feature = b.let("dP", Dot(values, Transpose(state)))
                if normalize:
                    z = b.let("z", Load("normalizer", (B, H, segment, f), ACC))
                    b.add(by_feature, row(z))
                self.features.adjoint(b, by_feature, keys, selection, into=dk)
        b.comment("This segment, directly.")
        end = minimum(segment * "SEGMENT" + "SEGMENT", T)
        start = Var("chunk") * "CHUNK" // "QUERIES" * "QUERIES"
        with b.loop("t0", start, end, "QUERIES") as t0:
            t = b.let("t", Span(t0, "QUERIES"))
            _, queries = self.features.load(b, "Q", "q", (B, t, H, d))
            gradients = self._gradient_tile(b, t, u)
            products = b.let("R", Dot(keys, Transpose(queries)))
            seen = column(j) <= row(t)
            attention = b.let("A", Cast(Where(seen, self.features.kernel(products), wrap(0.0)), OPERAND))
            b.add(dv, Dot(attention, gradients))
            by_kernel = b.let("dA", Dot(values, Transpose(gradients)))
            if normalize:
                e = b.let("E", Load("e", (B, t, H), ACC))
                b.add(by_kernel, row(e))
            by_product = b.let(
                "dR", Cast(Where(seen, by_kernel * self.features.slope(products), wrap(0.0)), OPERAND)
            )
            b.add(dk, Dot(by_product, queries))
        b.store("dk", (B, j, H, d), Cast(self.features.leave(loaded, dk), IO))
        b.store("dv", (B, j, H, u), Cast(dv, IO))
        tensors = (
            self._queries("q"),
            self._queries("k"),
            self._values("v"),
            self._values("do"),
            *self._row_sums("n", "e"),
            *self._segment_states("STATEFUL"),
            Tensor("dk", (*ROWS, self.qk), IO),
            self._values("dv", strided=False),
        )
        return self._program(
            "key_gradients",
            "The gradients of one chunk of keys and values.",
            (CHUNK_AXIS,),
            tensors,
            b,
            ("SEGMENT", "CHUNK", "QUERIES"),
            whole_values=True,
            flags=("STATEFUL",),
        )

    def step(self) -> Program:
        """One token: update the state in place and read the output from it."""
        b = Builder()
        normalize, block, zero = self.spec.normalize, self.features.block, wrap(0)
        u = b.let("u", Span(zero, "VALUES"))
        values = b.let("y", Load("v", (B, zero, H, u), ACC))
        out = b.let("out", Full(("VALUES",), 0.0))
        if normalize:
            b.let("products", Full((block,), 0.0))
        with self._feature_loop(b) as f0:
            f = self._features_at(b, f0)
            selection = self.features.select(b, f)
            keys = self.features.row_features(b, "key", "k", (B, zero, H), f, selection)
            weight = self.features.weights(b, selection)
            plain = self.features.row_features(b, "query", "q", (B, zero, H), f, selection)
            state = b.let("S", Load("state", (B, H, f, u), ACC))
            b.add(state, column(keys) * row(values))
            b.store("state", (B, H, f, u), Cast(state, STATE))
            query = b.let("weighted_query", plain * weight)
            read = b.let("read", column(query) * state)
            b.add(out, Sum(read, 0))
            if normalize:
                z = b.let("z", Load("normalizer", (B, H, f), ACC))
                b.add(z, keys)
                b.store("normalizer", (B, H, f), Cast(z, STATE))
                b.add(Var("products"), query * z)
        if normalize:
            n = b.let("N", Sum(Var("products"), 0))
            b.set(out, out / (n + self.spec.eps))
        b.store("o", (B, zero, H, u), Cast(out, IO))
        rows = self.features.rows
        state_tensors = (
            Tensor("state", ("B", "H", rows, self.v), STATE),
            Tensor("normalizer", ("B", "H", rows), STATE),
        )
        tensors = (
            Tensor("q", (*ROWS, self.qk), IO, strided=True),
            Tensor("k", (*ROWS, self.qk), IO, strided=True),
            self._values("v"),
            *state_tensors[: 2 if normalize else 1],
            self._values("o", strided=False),
        )
        constants = (block, "VALUES")
        bounds = {"VALUES": self.v} | ({"QK": self.qk} if block == "QK" else {})
        return Program(
            "token",
            "One token: the state is updated in place and read.",
            BATCH_AXES,
            tensors,
            ("B", "T", "H"),
            ("scale",),
            (),
            constants,
            b.body,
            bounds,
        )
