"""Feature maps: the seam along which new kinds of linear attention come in.

Every map here is a kernel ``A = f(scale · u(q)·w(k))`` made of two parts: an elementwise entry ``u = w`` (the
identity for a polynomial) and a kernel function ``f`` of the dot product.  Inside a chunk a program uses
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
from ..spec.model import Elementwise, Power, TaylorExp
from .expression import Function
from .features import SCALE, Across, FeatureMap, Meaning, Selection, times
from .monomials import Multisets, Rotations
from .sequence import Sequence


class ElementwiseMap(FeatureMap):
    """A = scale · φ(q)·φ(k) with φ applied to every component: the features are φ(x) themselves."""

    block = "QK"
    constants: tuple[str, ...] = (block,)
    selected: tuple[str, ...] = ()

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

    def select(self, b: Builder, f: Var, suffix: str = "", alone: bool = False) -> Selection:
        return ()

    def weights(self, b: Builder, f: Var, selection: Selection) -> Var:
        return b.let("weight", Full((self.block,), 1.0) * SCALE)

    def weight(self, f: Var, selection: Selection) -> Expr:
        return SCALE

    def fixed_weights(self, b: Builder, f: Var, selection: Selection) -> Var | None:
        return None

    def features(
        self, b: Builder, name: str, operand: Var, selection: Selection, weight: Var | None = None
    ) -> Var:
        return b.let(name, Cast(operand, ACC))

    def across(self, b: Builder, operand: Var, selection: Selection, weight: Var | None = None) -> Across:
        return Across(Transpose(operand), Cast(operand, ACC), 0, "F")

    def constant(self, f: Var) -> Expr | None:
        return None

    def adjoint(self, b: Builder, gradient: Var, operand: Var, selection: Selection, into: Var) -> None:
        b.add(into, gradient)

    def leave(self, loaded: Var, gradient: Var) -> Expr:
        return self._map.gradient(loaded, gradient)

    def row_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
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
        case TaylorExp(order=1 | 2) as taylor:
            return Rotations(taylor, spec.head_dims.qk)
        case TaylorExp() | Power() as polynomial:
            return Multisets(polynomial, spec.head_dims.qk)
        case Elementwise(expression=source):
            return ElementwiseMap(source, spec.head_dims.qk)
