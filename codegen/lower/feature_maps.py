"""Feature maps: the seam along which new kinds of linear attention come in.

Every map here is a kernel ``A = f(scale · u(q)·w(k))`` made of two parts: an elementwise entry ``u = w`` (the
identity for a Taylor map) and a kernel function ``f`` of the dot product.  Inside a chunk a program uses
``f`` itself; between chunks it uses *features* Φ with ``f(scale · u·w) = Σ_r weight_r(scale) Φ_r(u)
Φ_r(w)``.  The weights, and with them the scale, stand on the query's side, so that a recurrent state does not
depend on the scale.

A map that is not here yet is one more class with these methods, and one line in `feature_map`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    Cast,
    Columns,
    Const,
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
from ..mixers.linear_attention import LinearAttention
from ..spec.model import Elementwise, TaylorExp
from .expression import Function
from .sequence import Sequence

SCALE = Var("scale")


@dataclass(frozen=True)
class Across:
    """Features of a tile's rows, laid so that a product sums over the rows."""

    matrix: Var | Transpose
    """``[features, rows]``, an operand."""
    of_rows: Expr
    """The same unrounded, with the rows along `axis`."""
    axis: int
    name: str
    """For what is made of `of_rows`."""

    def by_row(self, numbers: Var) -> Expr:
        """One number a row, as it meets `of_rows`."""
        return row(numbers) if self.axis == 1 else column(numbers)


class FeatureMap(Protocol):
    """What a lowering asks of a feature map.  Tiles are ``[rows, qk]`` unless said otherwise."""

    rows: int
    """How many features the state keeps."""

    block: str
    """The constant that says how many of them a program handles at a time."""

    def load(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> tuple[Var, Var]:
        """Load a tile of q or k; returns it as loaded and as the matrix operand it enters products with."""

    def load_scaled(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> Var:
        """Load a tile of q as a matrix operand that has the scale in it."""

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        """f(scale · product), elementwise."""

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        """The derivative of `kernel` by the product."""

    def select(self, b: Builder, f: Var) -> tuple[Var, ...]:
        """Index tiles that name, for each feature of the block `f`, the columns it is made of."""

    def weights(self, b: Builder, f: Var) -> Var:
        """The query-side weight of each feature of the block `f`, a vector; 0 past the last feature."""

    def fixed_weights(self, b: Builder, f: Var) -> Var | None:
        """`weights` for a scale of 1; None if all of them are 1."""

    def features(
        self, b: Builder, name: str, operand: Var, selection: tuple[Var, ...], weight: Var | None = None
    ) -> Var:
        """Features of every row, ``[rows, block]``, times `weight` where it is given."""

    def across(self, b: Builder, operand: Var, selection: tuple[Var, ...]) -> Across:
        """Unweighted features of every row, as they enter sums over rows."""

    def constant(self, f: Var) -> Expr | None:
        """Which features are 1 even of a row that is 0, as past the end of a sequence; None if none."""

    def adjoint(self, b: Builder, gradient: Var, operand: Var, selection: tuple[Var, ...], into: Var) -> None:
        """Add to `into` the gradient by the operand, given the gradient by its (unweighted) features.

        The program's index tile ``d`` names the operand's columns.
        """

    def leave(self, loaded: Var, gradient: Var) -> Expr:
        """The gradient by the tile as loaded, given the gradient by the operand."""

    def row_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: tuple[Var, ...]
    ) -> Var:
        """Features of one row, a vector ``[block]``; `index` names the row, features past the last are 0."""


class Taylor:
    """exp(scale · q·k) to first or second order (the linear attention of Based, arXiv 2402.18668).

    With the homogeneous coordinates x̂ = (x, 1) the features of order 2 are the symmetric square of x̂: every
    product x̂_a x̂_c once, so (d+1)(d+2)/2 of them, 153 for d = 16.  First come the d(d+1)/2 products of two
    components, ordered by rotation: feature f pairs a = f mod d with c = (a + f div d) mod d, which needs no
    table.  The d components themselves follow, and the constant.
    """

    block = "FEATURES"

    def __init__(self, spec: TaylorExp, qk: int) -> None:
        self.order, self.qk = spec.order, qk
        self.pairs = 0 if spec.order == 1 else qk * (qk + 1) // 2
        self.rows = spec.features(qk)

    def load(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> tuple[Var, Var]:
        tile = b.let(name, Load(tensor, index, OPERAND))
        return tile, tile

    def load_scaled(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> Var:
        tile = b.let(name, Load(tensor, index, ACC))
        return b.let(f"{name}_scaled", Cast(tile * SCALE, OPERAND))

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        s = _times(scale, product)
        return 1.0 + s if self.order == 1 else 1.0 + s * (1.0 + 0.5 * s)

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return scale if self.order == 1 else _times(scale, 1.0 + _times(scale, product))

    def select(self, b: Builder, f: Var) -> tuple[Var, ...]:
        if self.order == 1:
            return (f,)
        first = b.let("first", Where(f < self.pairs, f % self.qk, f - self.pairs))
        rotated = (f % self.qk + f // self.qk) % self.qk
        second = b.let("second", Where(f < self.pairs, rotated, wrap(self.qk)))
        return first, second

    def weights(self, b: Builder, f: Var) -> Var:
        weight: Expr = Where(f < self.pairs + self.qk, SCALE, wrap(1.0))
        if self.order == 2:
            weight = Where(f < self.pairs, SCALE * SCALE * self._halved(f), weight)
        return b.let("weight", Where(f < self.rows, weight, wrap(0.0)))

    def fixed_weights(self, b: Builder, f: Var) -> Var | None:
        halved = self._halved(f) if self.order == 2 else wrap(1.0)
        return b.let("weight", Where(f < self.rows, halved, wrap(0.0)))

    def _halved(self, f: Var) -> Expr:
        return Where(f < self.qk, wrap(0.5), wrap(1.0))  # squares come first, and only once

    def features(
        self, b: Builder, name: str, operand: Var, selection: tuple[Var, ...], weight: Var | None = None
    ) -> Var:
        factors = [
            b.let(f"{operand.name}_{index.name}", Columns(operand, index, self.qk, fill=1.0, weight=factor))
            for index, factor in zip(selection, (weight, None), strict=False)
        ]
        if self.order == 1:
            return b.let(name, Cast(factors[0], ACC))
        return b.let(name, Cast(factors[0], ACC) * Cast(factors[1], ACC))

    def across(self, b: Builder, operand: Var, selection: tuple[Var, ...]) -> Across:
        factors = [
            b.let(
                f"{operand.name}T_{index.name}", Columns(operand, index, self.qk, fill=1.0, transposed=True)
            )
            for index in selection
        ]
        product: Expr = Cast(factors[0], ACC)
        for factor in factors[1:]:
            product = product * Cast(factor, ACC)
        features = b.let("F", product)
        return Across(b.let("F_operand", Cast(features, OPERAND)), features, 1, "F_e")

    def constant(self, f: Var) -> Expr | None:
        return f.equals(self.rows - 1)

    def adjoint(self, b: Builder, gradient: Var, operand: Var, selection: tuple[Var, ...], into: Var) -> None:
        d = Var("d")
        factors = [gradient]
        if self.order == 2:
            others = [
                b.let(f"{operand.name}_{index.name}", Columns(operand, index, self.qk, fill=1.0))
                for index in reversed(selection)
            ]
            factors = [
                b.let(f"{gradient.name}_{index.name}", gradient * Cast(other, ACC))
                for index, other in zip(selection, others, strict=True)
            ]
        for index, factor in zip(selection, factors, strict=True):
            scatter = b.let(f"to_{index.name}", Cast(column(index).equals(row(d)), OPERAND))
            part = b.let(f"{factor.name}_operand", Cast(factor, OPERAND))
            b.add(into, Dot(part, scatter))

    def leave(self, loaded: Var, gradient: Var) -> Expr:
        return gradient

    def row_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: tuple[Var, ...]
    ) -> Var:
        factors = [b.let(f"{name}_{i.name}", Load(tensor, (*index, i), ACC, fill=1.0)) for i in selection]
        product: Expr = factors[0] if self.order == 1 else factors[0] * factors[1]
        return b.let(name, Where(f < self.rows, product, wrap(0.0)))


class ElementwiseMap:
    """A = scale · φ(q)·φ(k) with φ applied to every component: the features are φ(x) themselves."""

    block = "QK"

    def __init__(self, source: str, qk: int) -> None:
        self.qk = self.rows = qk
        self._map = Function(source)
        self.keeps_zero = self._map.keeps_zero
        """Whether φ(0) is 0, so that what lies outside a tensor, loaded as 0, adds nothing."""

    def of(self, x: Expr) -> Expr:
        """φ(x)."""
        return self._map.of(x)

    def load(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> tuple[Var, Var]:
        tile = b.let(name, Load(tensor, index, ACC))
        return tile, b.let(f"{name}_features", Cast(self._mapped(tile, index, sequence), OPERAND))

    def load_scaled(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> Var:
        tile = b.let(name, Load(tensor, index, ACC))
        return b.let(f"{name}_features", Cast(self._mapped(tile, index, sequence) * SCALE, OPERAND))

    def _mapped(self, tile: Var, index: tuple[Expr, ...], sequence: Sequence) -> Expr:
        mapped = self.of(tile)
        if self.keeps_zero:
            return mapped
        # What lies outside is loaded as 0 and must stay out of every product.
        _, t, _, d = index
        return Where(sequence.holds(column(t)) & (row(d) < self.qk), mapped, wrap(0.0))

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return _times(scale, product)

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return scale

    def select(self, b: Builder, f: Var) -> tuple[Var, ...]:
        return ()

    def weights(self, b: Builder, f: Var) -> Var:
        return b.let("weight", Full((self.block,), 1.0) * SCALE)

    def fixed_weights(self, b: Builder, f: Var) -> Var | None:
        return None

    def features(
        self, b: Builder, name: str, operand: Var, selection: tuple[Var, ...], weight: Var | None = None
    ) -> Var:
        return b.let(name, Cast(operand, ACC))

    def across(self, b: Builder, operand: Var, selection: tuple[Var, ...]) -> Across:
        return Across(Transpose(operand), Cast(operand, ACC), 0, "F")

    def constant(self, f: Var) -> Expr | None:
        return None

    def adjoint(self, b: Builder, gradient: Var, operand: Var, selection: tuple[Var, ...], into: Var) -> None:
        b.add(into, gradient)

    def leave(self, loaded: Var, gradient: Var) -> Expr:
        return self._map.gradient(loaded, gradient)

    def row_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: tuple[Var, ...]
    ) -> Var:
        values = b.let(f"{name}_values", Load(tensor, (*index, f), ACC))
        return b.let(name, Where(f < self.qk, self.of(values), wrap(0.0)))


def _times(scale: Expr, product: Expr) -> Expr:
    return product if scale == Const(1.0) else scale * product


def feature_map(spec: LinearAttention) -> FeatureMap:
    """The feature map of a layer, ready to be lowered."""
    match spec.feature_map:
        case TaylorExp() as taylor:
            return Taylor(taylor, spec.head_dims.qk)
        case Elementwise(expression=source):
            return ElementwiseMap(source, spec.head_dims.qk)
