"""The normaliser of maps whose features are products of two components, as a quadratic form.

n = count + z·q + qᵀ Z q / 2, with Z = Σ k kᵀ, z = Σ k and the number of keys; mirrored, for the gradients of
keys, Σ e q qᵀ, Σ e q and Σ e.  That is far less than a sum over all features, and of no block of them.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    Load,
    Span,
    Sum,
    Transpose,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..lower.exchanged import Exchanged
from .states import H, Kept


@dataclass(frozen=True)
class Quadratic:
    """Z, z and the count of one program, as they grow; every row of the tile `z` is z."""

    b: Builder
    features: Exchanged
    Z: Var
    z: Var
    count: Var
    """Of tokens before the program's own."""
    ones: Var
    terms: Var | None
    """What the count sums: None for the number of keys."""

    @staticmethod
    def zeros(b: Builder, features: Exchanged, factors: bool) -> Quadratic:
        """No tokens yet; they will have `factors`, or all count as 1."""
        width = features.extent
        ones = b.let("all_ones", Cast(Full(("CHUNK", "CHUNK"), 1.0), OPERAND))
        Z, z = b.let("Z", Full((width, width), 0.0)), b.let("z", Full(("CHUNK", width), 0.0))
        terms = b.let("terms", Full(("CHUNK",), 0.0)) if factors else None
        return Quadratic(b, features, Z, z, b.let("count", Full((), 0.0)), ones, terms)

    def restore(self, kept: Mapping[str, tuple[Kept, tuple[Expr, ...]]]) -> None:
        """Go on from a state that was kept, and where, by the flag that says so."""
        b, features = self.b, self.features
        a, c, i = self._indices("_kept")
        pairs = b.let("Z_kept_place", features.row_of_coordinates(column(a), row(c)))
        singles = b.let("z_kept_place", row(features.row_of_single(c)) + column(i * 0))
        for flag, (state, index) in kept.items():
            name, place = state.tensors[1].name, (state.first, H, *index)
            with b.when(flag):
                b.set(self.Z, b.let(f"Z_{name}", Load(name, (*place, pairs), ACC)))
                b.set(self.z, b.let(f"z_{name}", Load(name, (*place, singles), ACC)))
                last = wrap(features.rows - 1)
                b.set(self.count, b.let(f"count_{name}", Load(name, (*place, last), ACC)))

    def read(self, queries: Var, tokens: Expr) -> Var:
        """What the form gives of each row of a tile, the program's own first `tokens` among its keys."""
        b = self.b
        # Z is its own transpose, and that lies in registers as the right side of a product does.
        products = b.let("QZ", Dot(queries, Transpose(b.let("Z_operand", Cast(self.Z, OPERAND)))))
        terms = b.let("QZQ", Cast(queries, ACC) * (products * 0.5 + self.z))
        older = b.let("n_older", Sum(terms, 1))
        b.set(older, older + (self.count + Cast(tokens, ACC)))
        return older

    def enter(self, rows: Var, factors: Var | None) -> None:
        """Add a tile's rows, each times its factor if it has one."""
        weighted = rows
        if factors is not None and self.terms:
            weighted = self.b.let(f"{rows.name}_e", Cast(Cast(rows, ACC) * column(factors), OPERAND))
            self.b.add(self.terms, factors)
        self.b.add(self.Z, Dot(Transpose(rows), weighted))
        self.b.add(self.z, Dot(self.ones, weighted))

    def store(self, state: Kept, index: tuple[Expr, ...], count: Expr, squares: float = 1.0) -> None:
        """As the normaliser of a stored state, in which squares weigh `squares`; `count` is of what is 1."""
        b, features, name, place = self.b, self.features, state.tensors[1].name, (state.first, H, *index)
        outside = wrap(features.rows)
        a, c, i = self._indices()
        pairs = features.row_of_coordinates(column(a), row(c))
        once = b.let("Z_place", Where(column(a) <= row(c), pairs, outside))
        value: Expr = self.Z
        if squares != 1.0:
            value = b.let("Z_weighted", Where(column(a).equals(row(c)), value * squares, value))
        b.store(name, (*place, once), value)
        first = b.let("z_place", Where(column(i) < 1, features.row_of_single(row(c)), outside))
        b.store(name, (*place, first), self.z)
        number = b.let("count_after", Sum(self.terms, 0) if self.terms else count)
        b.store(name, (*place, wrap(features.rows - 1)), number)

    def _indices(self, suffix: str = "") -> tuple[Var, Var, Var]:
        """Index tiles of both coordinates of a pair, and of the rows of `z`."""
        width: Dim = self.features.extent
        a, c, i = (
            self.b.let(f"{name}{suffix}", Span(wrap(0), size))
            for name, size in zip("aci", (width, width, "CHUNK"), strict=True)
        )
        return a, c, i
