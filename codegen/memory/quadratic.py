"""The normaliser of maps whose features are products of two components, as a quadratic form.

n = count + z·q + qᵀ Z q / 2, with Z = Σ k kᵀ, z = Σ k and the number of keys; mirrored, for the gradients of
keys, Σ e q qᵀ, Σ e q and Σ e.  That is far less than a sum over all features, and of no block of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    Cast,
    Dot,
    Expr,
    Full,
    Span,
    Sum,
    Transpose,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..ir.program import Tensor
from ..lower.exchanged import Exchanged
from .states import B, H


@dataclass(frozen=True)
class Quadratic:
    """Z, z and the count of one program, as they grow; every row of the tile `z` is z."""

    b: Builder
    features: Exchanged
    Z: Var
    z: Var
    ones: Var
    terms: Var | None
    """What the count sums: None for the number of keys."""

    @staticmethod
    def zeros(b: Builder, features: Exchanged, factors: bool) -> Quadratic:
        """No tokens yet; they will have `factors`, or all count as 1."""
        width = features.extent
        ones = b.let("ones", Cast(Full(("CHUNK", "CHUNK"), 1.0), OPERAND))
        Z, z = b.let("Z", Full((width, width), 0.0)), b.let("z", Full(("CHUNK", width), 0.0))
        return Quadratic(b, features, Z, z, ones, b.let("terms", Full(("CHUNK",), 0.0)) if factors else None)

    def enter(self, rows: Var, factors: Var | None) -> None:
        """Add a tile's rows, each times its factor if it has one."""
        weighted = rows
        if factors is not None and self.terms:
            weighted = self.b.let(f"{rows.name}_e", Cast(Cast(rows, ACC) * column(factors), OPERAND))
            self.b.add(self.terms, factors)
        self.b.add(self.Z, Dot(Transpose(rows), weighted))
        self.b.add(self.z, Dot(self.ones, weighted))

    def store(self, tensor: Tensor, segment: Expr, count: Expr, squares: float) -> None:
        """As the normaliser of a stored state, in which squares weigh `squares`; `count` is of what is 1."""
        b, features, place = self.b, self.features, (B, H, segment)
        outside, width = wrap(features.rows), features.extent
        a, c = (b.let(name, Span(wrap(0), width)) for name in "ac")
        i = b.let("i", Span(wrap(0), "CHUNK"))
        pairs = features.row_of_coordinates(column(a), row(c))
        once = b.let("Z_place", Where(column(a) <= row(c), pairs, outside))
        value: Expr = self.Z
        if squares != 1.0:
            value = b.let("Z_weighted", Where(column(a).equals(row(c)), value * squares, value))
        b.store(tensor.name, (*place, once), value)
        first = b.let("z_place", Where(column(i) < 1, features.row_of_single(row(c)), outside))
        b.store(tensor.name, (*place, first), self.z)
        number = b.let("count", Sum(self.terms, 0) if self.terms else Cast(count, ACC))
        b.store(tensor.name, (*place, wrap(features.rows - 1)), number)
