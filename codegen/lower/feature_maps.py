"""Feature maps: the seam along which new kinds of linear attention come in.

Every map here is a kernel ``A = f(scale · u(q)·w(k))`` made of two parts: an elementwise entry ``u = w`` (the
identity for a Taylor map) and a kernel function ``f`` of the dot product.  Inside a chunk a program uses
``f`` itself; between chunks it uses *features* Φ with ``f(scale · u·w) = Σ_r weight_r(scale) Φ_r(u)
Φ_r(w)``.  The weights, and with them the scale, stand on the query's side, so that a recurrent state does not
depend on the scale.

A map that is not here yet is one more class with the methods of `features.FeatureMap`, and one line in
`feature_map`.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    Cast,
    Columns,
    Dot,
    Expr,
    Full,
    Load,
    Sum,
    Transpose,
    Var,
    Where,
    column,
    minimum,
    row,
    wrap,
)
from ..spec.model import Elementwise, TaylorExp
from .expression import Function
from .features import SCALE, Across, FeatureMap, Meaning, Selection, times
from .sequence import Sequence


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

    def exact(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], columns: Expr
    ) -> tuple[Var, Var]:
        loaded = b.let(name, Load(tensor, index, ACC))
        return loaded, loaded

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        s = times(scale, product)
        return 1.0 + s if self.order == 1 else 1.0 + s * (1.0 + 0.5 * s)

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return scale if self.order == 1 else times(scale, 1.0 + times(scale, product))

    def select(self, b: Builder, f: Var, suffix: str = "") -> tuple[Var, ...]:
        if self.order == 1:
            return (f,)
        first = b.let(f"first{suffix}", Where(f < self.pairs, f % self.qk, f - self.pairs))
        rotated = (f % self.qk + f // self.qk) % self.qk
        second = b.let(f"second{suffix}", Where(f < self.pairs, rotated, wrap(self.qk)))
        return first, second

    def weights(self, b: Builder, f: Var) -> Var:
        return b.let("weight", Where(f < self.rows, self.weight(f), wrap(0.0)))

    def weight(self, f: Var) -> Expr:
        weight: Expr = Where(f < self.pairs + self.qk, SCALE, wrap(1.0))
        if self.order == 2:
            weight = Where(f < self.pairs, SCALE * SCALE * self._halved(f), weight)
        return weight

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

    def row_adjoint(
        self,
        b: Builder,
        gradient: Var,
        tensor: str,
        index: tuple[Expr, ...],
        f: Var,
        selection: Selection,
        into: Var,
    ) -> None:
        factors: list[Expr] = [gradient]
        if self.order == 2:
            others = [
                b.let(f"other_{i.name}", Load(tensor, (*index, i), ACC, fill=1.0))
                for i in reversed(selection)
            ]
            factors = [gradient * other for other in others]
        for i, factor in zip(selection, factors, strict=True):
            scattered = Where(column(i).equals(row(Var("d"))), column(factor), wrap(0.0))
            b.add(into, Sum(b.let(f"to_{i.name}", scattered), 0))

    def column_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
    ) -> Var:
        factors = [self._column(b, f"{name}_{i.name}", tensor, index, i) for i in selection]
        return b.let(name, factors[0] if self.order == 1 else factors[0] * factors[1])

    def column_adjoint(
        self,
        b: Builder,
        gradient: Var,
        tensor: str,
        index: tuple[Expr, ...],
        f: Var,
        selection: Selection,
        into: Var,
    ) -> None:
        factors: list[Expr] = [gradient]
        if self.order == 2:
            factors = [
                gradient * self._column(b, f"other_{i.name}", tensor, index, i) for i in reversed(selection)
            ]
        for i, factor in zip(selection, factors, strict=True):
            b.add(into, Where(row(Var("d")).equals(i), column(factor), wrap(0.0)))

    def _column(self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], i: Var) -> Expr:
        """A column of x̂, of which the last is 1."""
        inside = b.let(name, Load(tensor, (*index, minimum(i, self.qk - 1)), ACC))
        return Where(i < self.qk, inside, wrap(1.0))


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

    def exact(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], columns: Expr
    ) -> tuple[Var, Var]:
        loaded = b.let(name, Load(tensor, index, ACC))
        mapped = self.of(loaded)
        if not self.keeps_zero:
            mapped = Where(columns < self.qk, mapped, wrap(0.0))
        return loaded, b.let(f"{name}_features", mapped)

    def _mapped(self, tile: Var, index: tuple[Expr, ...], sequence: Sequence) -> Expr:
        mapped = self.of(tile)
        if self.keeps_zero:
            return mapped
        # What lies outside is loaded as 0 and must stay out of every product.
        _, t, _, d = index
        return Where(sequence.holds(column(t)) & (row(d) < self.qk), mapped, wrap(0.0))

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return times(scale, product)

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return scale

    def select(self, b: Builder, f: Var, suffix: str = "") -> tuple[Var, ...]:
        return ()

    def weights(self, b: Builder, f: Var) -> Var:
        return b.let("weight", Full((self.block,), 1.0) * SCALE)

    def weight(self, f: Var) -> Expr:
        return SCALE

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

    def row_adjoint(
        self,
        b: Builder,
        gradient: Var,
        tensor: str,
        index: tuple[Expr, ...],
        f: Var,
        selection: Selection,
        into: Var,
    ) -> None:
        scattered = Where(column(f).equals(row(Var("d"))), column(gradient), wrap(0.0))
        b.add(into, Sum(b.let("to_f", scattered), 0))

    def column_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
    ) -> Var:
        return b.let(name, self.of(b.let(f"{name}_values", Load(tensor, (*index, f), ACC))))

    def column_adjoint(
        self,
        b: Builder,
        gradient: Var,
        tensor: str,
        index: tuple[Expr, ...],
        f: Var,
        selection: Selection,
        into: Var,
    ) -> None:
        b.add(into, Where(row(Var("d")).equals(f), column(gradient), wrap(0.0)))


def feature_map(spec: Meaning) -> FeatureMap:
    """The feature map of a layer, ready to be lowered."""
    match spec.feature_map:
        case TaylorExp() as taylor:
            return Taylor(taylor, spec.head_dims.qk)
        case Elementwise(expression=source):
            return ElementwiseMap(source, spec.head_dims.qk)
