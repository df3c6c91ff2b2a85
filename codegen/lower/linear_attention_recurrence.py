"""Linear attention in one pass over the sequence, with the state in registers.

For a chunk of queries, older keys are read from the state and the chunk's own keys directly; then the
chunk's keys enter the state.  Where batch and heads alone do not fill a GPU the sequence is cut into
segments, each of which starts from the sum of those before it.
"""

from __future__ import annotations

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
    Transpose,
    Var,
    Where,
    cdiv,
    column,
    minimum,
    row,
    wrap,
)
from ..ir.traits import RECURS
from .feature_maps import Sums
from .linear_attention_parts import B, H, Layer, T

FLAGS = ("INITIAL", "SEGMENTED", "FINAL")


def recurrence(layer: Layer) -> Program:
    """o and n of one segment, chunk after chunk."""
    b = Builder()
    features = layer.features
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    normalizer = _normalizer(layer, b)
    tiles = ("f", "first", "second", "weight", "S", *(("z",) if normalizer else ()))

    def read(name: str, suffix: str, index: tuple[Expr, ...], f: Var) -> None:
        """Load S and z of one block from a stored state."""
        b.set(Var("S"), b.let(f"S_{suffix}", Load(f"{name}state", (*index, f, u), ACC)))
        if normalizer:
            normalizer.set(b.let(f"z_{suffix}", Load(f"{name}normalizer", (*index, f), ACC)))

    with b.blocks("f0", features.rows, features.block, tiles) as f0:
        f = layer.features_at(b, f0)
        selection = features.select(b, f)
        weight = features.fixed_weights(b, f)
        state = b.let("S", Full((features.block, "VALUES"), 0.0))
        if normalizer:
            normalizer.start()
        with b.when("INITIAL"):
            read("initial_", "initial", (B, H), f)
        with b.when("SEGMENTED"):
            read("", "before", (B, H, Var("segment")), f)
    length = layer.segment_length(b)
    start = Var("segment") * length
    with b.loop("t0", start, minimum(start + length, T), "CHUNK") as t0:
        t = b.let("t", Span(t0, "CHUNK"))
        queries = features.load_scaled(b, "Q", "q", (B, t, H, d))
        _, keys = features.load(b, "K", "k", (B, t, H, d))
        values = b.let("Y", Load("v", (B, t, H, u), OPERAND))
        b.comment("The chunk's own keys, directly.")
        products = b.let("R", Dot(queries, Transpose(keys)))
        seen = features.kernel(products, wrap(1.0))
        attention = b.let("A", Where(column(t) >= row(t), seen, wrap(0.0)))
        matrix = b.let("A_operand", Cast(attention, OPERAND))
        out = b.let("O", Dot(matrix, values))
        if normalizer:
            normalizer.sum_rows(matrix)
        b.comment("Older keys, through the state; then the chunk's keys enter it.")
        with b.blocks("f0", features.rows, features.block, tiles):
            plain = features.features(b, "P", queries, selection, weight)
            matrix = b.let("P_operand", Cast(plain, OPERAND))
            earlier = b.let("S_operand", Cast(state, OPERAND))
            b.add(out, Dot(matrix, earlier))
            if normalizer:
                normalizer.read(plain, matrix)
            sums = normalizer.sums(state, t0) if normalizer else Sums(state, None, wrap(0))
            features.accumulate(b, keys, f, selection, values, sums)
            if normalizer:
                normalizer.accumulate(keys)
        if normalizer:
            b.store("n", (B, H, t), normalizer.of_rows())
            b.set(out, out / normalizer.divisor())
        b.store("o", (B, t, H, u), Cast(out, IO))
    with b.when("FINAL"), b.blocks("f0", features.rows, features.block, tiles):
        b.store("final_state", (B, H, f, u), Cast(state, STATE))
        if normalizer:
            b.store("final_normalizer", (B, H, f), normalizer.value())
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.user_states("initial_", "INITIAL"),
        *layer.segment_states("SEGMENTED"),
        layer.values("o", strided=False),
        *layer.row_sums("n"),
        *layer.user_states("final_", "FINAL"),
    )
    return layer.program(
        "recurrence",
        "The outputs of one segment, with the state in registers.",
        (Axis("segment", Var("segments")), Axis("value_block", cdiv(layer.v, "VALUES"))),
        tensors,
        b,
        ("SEGMENT", "CHUNK"),
        whole_values=False,
        flags=FLAGS,
        does=(RECURS,),
    )


class _Vector:
    """The normaliser as it is: z has a number for each feature, n one for each row."""

    def __init__(self, layer: Layer, b: Builder) -> None:
        self.layer, self.b, self.z, self.n = layer, b, Var("z"), Var("N")

    def start(self) -> None:
        self.b.let("z", Full((self.layer.features.block,), 0.0))

    def set(self, z: Var) -> None:
        self.b.set(self.z, z)

    def sum_rows(self, matrix: Var) -> None:
        # As rounded as what o sums, or a row of few terms is off as a whole.
        self.b.let("N", Sum(self.b.let("A_rounded", Cast(matrix, ACC)), 1))

    def read(self, features: Var, matrix: Var) -> None:
        self.b.add(self.n, Sum(self.b.let("Pz", features * row(self.z)), 1))

    def sums(self, state: Var, t0: Expr) -> Sums:
        return Sums(state, self.z, self.layer.rows_past_end(self.b, t0, "CHUNK"))

    def accumulate(self, keys: Var) -> None:
        """Done with the state's sums."""

    def of_rows(self) -> Var:
        return self.n

    def divisor(self) -> Expr:
        return column(self.n + self.layer.spec.eps)

    def value(self) -> Var:
        return self.z


class _Matrix(_Vector):
    """The normaliser as one more state, of values that are all 1: every column of z and of n is the same.

    Sums over a tile's rows or columns pass through all threads of a block; these are products instead, and n
    stands where it divides.  It needs as many registers as the state, so the state must be small.
    """

    def __init__(self, layer: Layer, b: Builder) -> None:
        super().__init__(layer, b)
        self.ones = b.let("ones", Cast(Full(("CHUNK", "VALUES"), 1.0), OPERAND))

    def start(self) -> None:
        self.b.let("z", Full((self.layer.features.block, "VALUES"), 0.0))

    def set(self, z: Var) -> None:
        self.b.set(self.z, Full((self.layer.features.block, "VALUES"), 0.0) + column(z))

    def sum_rows(self, matrix: Var) -> None:
        self.b.let("N", Dot(matrix, self.ones))

    def read(self, features: Var, matrix: Var) -> None:
        self.b.add(self.n, Dot(matrix, self.b.let("z_operand", Cast(self.z, OPERAND))))

    def sums(self, state: Var, t0: Expr) -> Sums:
        return Sums(state, None, wrap(0))

    def accumulate(self, keys: Var) -> None:
        self.b.add(self.z, Dot(Transpose(keys), self.ones))

    def of_rows(self) -> Var:
        return self._column("n_rows", self.n)

    def divisor(self) -> Expr:
        return self.n + self.layer.spec.eps

    def value(self) -> Var:
        return self._column("z_rows", self.z)

    def _column(self, name: str, tile: Var) -> Var:
        place = self.b.let("place", Span(wrap(0), "VALUES"))
        first = self.b.let(f"{name}_first", Where(row(place).equals(0), tile, wrap(0.0)))
        return self.b.let(name, Sum(first, 1))


def _normalizer(layer: Layer, b: Builder) -> _Vector | None:
    if not layer.spec.normalize:
        return None
    return _Matrix(layer, b) if layer.features.block == "QK" else _Vector(layer, b)
