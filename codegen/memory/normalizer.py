"""The normaliser of sums of features: z of the state, n of a tile of queries, in either of two forms."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    Cast,
    Dim,
    Dot,
    Expr,
    Full,
    Span,
    Sum,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..lower.features import Across
from .states import Part


class Vector:
    """The normaliser as it is: z has a number for each feature, n one for each row."""

    of_states = True
    """Whether a block of features has its part of z."""

    def __init__(self, b: Builder, block: str, eps: float) -> None:
        self.b, self.block, self.eps = b, block, eps

    def zeros(self, f: Var, suffix: str) -> Part:
        """z before any token."""
        return Part(self.b, self.b.let(f"z{suffix}", Full((self.block,), 0.0)), (f,))

    def nothing(self) -> Var:
        """n before any weight."""
        return self.b.let("N", Full(("CHUNK",), 0.0))

    def by_row(self, numbers: Expr) -> Expr:
        """One number a row, as it meets n."""
        return numbers

    def of_weights(self, matrix: Var) -> Expr:
        """What the weights of a tile of pairs add to n."""
        # As rounded as what o sums, or a row of few terms is off as a whole.
        return Sum(self.b.let("A_rounded", Cast(matrix, ACC)), 1)

    def of_features(self, features: Var, matrix: Var, z: Var) -> Expr:
        """What a state adds to n, read by the features of a tile of queries, also given as an operand."""
        return Sum(self.b.let("Pz", features * row(z)), 1)

    def enter(
        self, z: Var, features: Across, constant: Expr | None, past: Expr, factors: Expr | None
    ) -> None:
        """Add the features of a tile's rows, each times its factor if it has one.

        Factors are 0 past the end of the sequence.  Where there are none, features that are `constant`, 1
        even of a row that is 0, have counted the rows `past` the end and are put right.
        """
        b, rows = self.b, features.of_rows
        if factors is not None:
            rows = rows * features.by_row(b.let("E", factors))
        tile = rows if isinstance(rows, Var) else b.let(features.name, rows)
        b.add(z, Sum(tile, features.axis))
        if factors is None and constant is not None:
            b.add(z, Where(constant, -Cast(past, ACC), wrap(0.0)))

    def rows(self, n: Var) -> Var:
        """n, one number a row."""
        return n

    def divisor(self, n: Var) -> Expr:
        """What a matrix of values is divided by."""
        return column(n + self.eps)


class Matrix(Vector):
    """The normaliser as one more state, of values that are all 1: every column of z and of n is the same.

    Sums over a tile's rows or columns pass through all threads of a block; these are products instead, and n
    stands where it divides.  It needs as many registers as the state, so the state must be small.
    """

    columns: Dim = "VALUES"
    each = 1.0
    """What a column holds of the whole."""

    def __init__(self, b: Builder, block: str, eps: float) -> None:
        super().__init__(b, block, eps)
        self.ones = b.let("ones", Cast(Full(("CHUNK", self.columns), self.each), OPERAND))

    def zeros(self, f: Var, suffix: str) -> Part:
        shape = (self.block, self.columns)
        return _Wide(self.b, self.b.let(f"z{suffix}", Full(shape, 0.0)), (f,), shape)

    def nothing(self) -> Var:
        return self.b.let("N", Full(("CHUNK", self.columns), 0.0))

    def by_row(self, numbers: Expr) -> Expr:
        return column(numbers)

    def of_weights(self, matrix: Var) -> Expr:
        return Dot(matrix, self.ones)

    def of_features(self, features: Var, matrix: Var, z: Var) -> Expr:
        return Dot(matrix, self.b.let("z_operand", Cast(z, OPERAND)))

    def enter(
        self, z: Var, features: Across, constant: Expr | None, past: Expr, factors: Expr | None
    ) -> None:
        ones = self.ones
        if factors is not None:
            ones = self.b.let("factors", Cast(Cast(ones, ACC) * column(factors), OPERAND))
        self.b.add(z, Dot(features.matrix, ones))

    def rows(self, n: Var) -> Var:
        return _first_column(self.b, "n_rows", n)

    def divisor(self, n: Var) -> Expr:
        return n + self.eps


@dataclass(frozen=True)
class _Wide(Part):
    """z with the same number in every column."""

    shape: tuple[str, Dim]

    def set(self, loaded: Var) -> None:
        self.b.set(self.tile, Full(self.shape, 0.0) + column(loaded))

    def value(self) -> Var:
        return _first_column(self.b, "z_rows", self.tile)


class Eighths(Matrix):
    """The same in eight columns, the fewest that a warpgroup multiplies, each of which holds an eighth.

    A sum along such a row is within four lanes, and so n is one number a row.
    """

    columns = 8
    each = 0.125

    def zeros(self, f: Var, suffix: str) -> Part:
        shape = (self.block, self.columns)
        return _Shared(self.b, self.b.let(f"z{suffix}", Full(shape, 0.0)), (f,), shape)

    def rows(self, n: Var) -> Var:
        return self.b.let("n_rows", Sum(n, 1))

    def divisor(self, n: Var) -> Expr:
        return column(Var("n_rows") + self.eps)


class OfPairs(Eighths):
    """Eighths of the weights of pairs alone: what older keys add is summed for all features at once, beside
    the state (`quadratic.py`).
    """

    of_states = False


class _Shared(_Wide):
    """z of which each column holds an eighth."""

    def set(self, loaded: Var) -> None:
        self.b.set(self.tile, Full(self.shape, 0.0) + column(loaded * Eighths.each))

    def value(self) -> Var:
        return self.b.let("z_rows", Sum(self.tile, 1))


def _first_column(b: Builder, name: str, tile: Var) -> Var:
    place = b.let("place", Span(wrap(0), "VALUES"))
    first = b.let(f"{name}_first", Where(row(place).equals(0), tile, wrap(0.0)))
    return b.let(name, Sum(first, 1))
