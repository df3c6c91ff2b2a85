"""Feature maps whose features are products of components: A is a polynomial of q·k.

With x̂ = (x, 1) the features of the series of exp to order p are the symmetric power of x̂: every product of p
of its coordinates once.  Those of (q·k)^p are the same without the 1.  `Rotations` and `Multisets` differ in
the order of the features and in how an index becomes coordinates; neither needs a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from itertools import accumulate, pairwise
from math import comb, factorial
from operator import mul

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    INDEX,
    OPERAND,
    Cast,
    Columns,
    Dot,
    Expr,
    Load,
    Span,
    Sum,
    Var,
    Where,
    column,
    minimum,
    row,
    wrap,
)
from ..spec.model import Power, TaylorExp
from .features import SCALE, Across, FeatureMap, Selection, times
from .sequence import Sequence

NAMES = ("first", "second", "third", "fourth")
"""Of the coordinates that a feature is a product of."""


class Monomials(FeatureMap):
    """What does not depend on the order of the features: products of columns of x̂, and their adjoints."""

    block = "FEATURES"
    constants: tuple[str, ...] = (block,)
    fill = 1.0
    """What columns after the components are: of x̂ the 1."""

    def __init__(self, qk: int, rows: int) -> None:
        self.qk, self.rows = qk, rows
        self.extent = qk
        """The columns of tiles of x: what comes after is 1."""

    def fixed_weight(self, f: Var, selection: Selection) -> Expr:
        """`weight` for a scale of 1."""
        raise NotImplementedError

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

    def weights(self, b: Builder, f: Var, selection: Selection) -> Var:
        return b.let("weight", Where(f < self.rows, self.weight(f, selection), wrap(0.0)))

    def fixed_weights(self, b: Builder, f: Var, selection: Selection) -> Var | None:
        return b.let("weight", Where(f < self.rows, self.fixed_weight(f, selection), wrap(0.0)))

    def features(
        self, b: Builder, name: str, operand: Var, selection: Selection, weight: Var | None = None
    ) -> Var:
        first, *others = selection
        columns = [self._columns(b, operand, first, weight), *(self._columns(b, operand, i) for i in others)]
        return b.let(name, multiplied(Cast(factor, ACC) for factor in columns))

    def across(self, b: Builder, operand: Var, selection: Selection, weight: Var | None = None) -> Across:
        first, *others = selection
        factors = [
            self._columns(b, operand, first, weight, transposed=True),
            *(self._columns(b, operand, index, transposed=True) for index in others),
        ]
        features = b.let("F", multiplied(Cast(factor, ACC) for factor in factors))
        return Across(b.let("F_operand", Cast(features, OPERAND)), features, 1, "F_e")

    def adjoint(self, b: Builder, gradient: Var, operand: Var, selection: Selection, into: Var) -> None:
        d = Var("d")
        shares = by_factor(gradient, selection, lambda i: Cast(self._columns(b, operand, i), ACC))
        named = [
            share if isinstance(share, Var) else b.let(f"{gradient.name}_{index.name}", share)
            for index, share in zip(selection, shares, strict=True)
        ]
        for index, share in zip(selection, named, strict=True):
            scatter = b.let(f"to_{index.name}", Cast(column(index).equals(row(d)), OPERAND))
            part = b.let(f"{share.name}_operand", Cast(share, OPERAND))
            b.add(into, Dot(part, scatter))

    def leave(self, loaded: Var, gradient: Var) -> Expr:
        return gradient

    def row_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
    ) -> Var:
        factors = [self._place(b, f"{name}_{i.name}", tensor, index, i) for i in selection]
        return b.let(name, Where(f < self.rows, multiplied(factors), wrap(0.0)))

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
        def factor(i: Var) -> Expr:
            return self._place(b, f"other_{i.name}", tensor, index, i)

        for i, share in zip(selection, by_factor(gradient, selection, factor), strict=True):
            scattered = Where(column(i).equals(row(Var("d"))), column(share), wrap(0.0))
            b.add(into, Sum(b.let(f"to_{i.name}", scattered), 0))

    def column_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
    ) -> Var:
        factors = [self._column(b, f"{name}_{i.name}", tensor, index, i) for i in selection]
        return b.let(name, multiplied(factors))

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
        def factor(i: Var) -> Expr:
            return self._column(b, f"other_{i.name}", tensor, index, i)

        for i, share in zip(selection, by_factor(gradient, selection, factor), strict=True):
            b.add(into, Where(row(Var("d")).equals(i), column(share), wrap(0.0)))

    def _columns(
        self, b: Builder, operand: Var, index: Var, weight: Var | None = None, transposed: bool = False
    ) -> Var:
        """Columns of a tile of x̂."""
        columns = Columns(operand, index, self.extent, self.fill, transposed, weight)
        return b.let(f"{operand.name}{'T' if transposed else ''}_{index.name}", columns)

    def _place(self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], i: Var) -> Var:
        """Coordinates of one row."""
        return b.let(name, Load(tensor, (*index, i), ACC, self.fill))

    def _column(self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], i: Var) -> Expr:
        """One coordinate of all rows."""
        inside = b.let(name, Load(tensor, (*index, minimum(i, self.qk - 1)), ACC))
        return Where(i < self.qk, inside, wrap(self.fill))


class Rotations(Monomials):
    """exp(scale · q·k) to first or second order (the linear attention of Based, arXiv 2402.18668).

    The features of order 2 are the symmetric square of x̂: every product x̂_a x̂_c once, so (d+1)(d+2)/2 of
    them, 153 for d = 16.  First come the d(d+1)/2 products of two components, ordered by rotation: feature f
    pairs a = f mod d with c = (a + f div d) mod d.  The d components themselves follow, and the constant.
    """

    def __init__(self, spec: TaylorExp, qk: int) -> None:
        super().__init__(qk, spec.features(qk))
        self.order = spec.order
        self.selected = () if spec.order == 1 else NAMES[:2]
        self.pairs = 0 if spec.order == 1 else qk * (qk + 1) // 2

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return series(self.order, times(scale, product))

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        return scale if self.order == 1 else times(scale, series(self.order - 1, times(scale, product)))

    def select(self, b: Builder, f: Var, suffix: str = "", alone: bool = False) -> Selection:
        if self.order == 1:
            return (f,)
        first = b.let(f"first{suffix}", Where(f < self.pairs, f % self.qk, f - self.pairs))
        rotated = (f % self.qk + f // self.qk) % self.qk
        second = b.let(f"second{suffix}", Where(f < self.pairs, rotated, wrap(self.qk)))
        return first, second

    def row_of(self, first: Expr, second: Expr) -> Expr:
        """The inverse of `select`: which feature pairs two components."""
        rotation = (second - first + self.qk) % self.qk
        forward, back = rotation * self.qk + first, (self.qk - rotation) % self.qk * self.qk + second
        return Where(forward < self.pairs, forward, back)

    def weight(self, f: Var, selection: Selection) -> Expr:
        weight: Expr = Where(f < self.pairs + self.qk, SCALE, wrap(1.0))
        if self.order == 2:
            weight = Where(f < self.pairs, SCALE * SCALE * self.fixed_weight(f, selection), weight)
        return weight

    def fixed_weight(self, f: Var, selection: Selection) -> Expr:
        # Squares come first, and only once.
        return wrap(1.0) if self.order == 1 else Where(f < self.qk, wrap(0.5), wrap(1.0))

    def constant(self, f: Var) -> Expr | None:
        return f.equals(self.rows - 1)


class Multisets(Monomials):
    """(scale · q·k)^p, or exp(scale · q·k) to order p, for any p.

    A feature is a multiset of p coordinates, c_1 ≥ c_2 ≥ ... ≥ c_p, and features are in lexicographic order.
    So C(m+p-1, p) of them have c_1 < m.  Counting the m for which feature f comes after those gives c_1, and
    what is left of f is a feature of degree p - 1.  The products of p components come first, then those of
    p - 1 and so on, and the 1 is last.  A count is a sum along a tile: every thread that needs an index would
    have to compare with all numbers by itself.
    """

    constants = ("QK", "FEATURES")

    def __init__(self, spec: TaylorExp | Power, qk: int) -> None:
        super().__init__(qk, spec.features(qk))
        self.series = isinstance(spec, TaylorExp)
        self.degree = spec.order if isinstance(spec, TaylorExp) else spec.degree
        self.fill = 1.0 if self.series else 0.0  # which no feature has
        parts = (f"{part}{name}" for name in NAMES[: self.degree - 1] for part in ("passed_", "count_", "f_"))
        self.selected = (*NAMES[: self.degree], "m", *parts)

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        s = times(scale, product)
        return series(self.degree, s) if self.series else power(s, self.degree)

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        s, below = times(scale, product), self.degree - 1
        return times(scale, series(below, s) if self.series else power(s, below) * float(self.degree))

    def select(self, b: Builder, f: Var, suffix: str = "", alone: bool = False) -> Selection:
        m = b.let(f"m{suffix}", Span(wrap(1), "QK"))
        chosen: list[Var] = []
        for degree, name in zip(range(self.degree, 1, -1), NAMES, strict=False):
            steps = multisets(m, degree)
            passed = f >= steps if alone else column(f) >= row(steps)
            ones = b.let(f"passed_{name}{suffix}", Cast(passed, ACC))
            count = b.let(f"count_{name}{suffix}", Sum(ones, 0 if alone else 1))
            chosen.append(b.let(f"{name}{suffix}", Cast(count, INDEX)))
            left = NAMES[self.degree - 1] if degree == 2 else f"f_{name}"
            f = b.let(f"{left}{suffix}", f - multisets(chosen[-1], degree))
        return (*chosen, f)

    def weight(self, f: Var, selection: Selection) -> Expr:
        if not self.series:
            return power(SCALE, self.degree) * self.fixed_weight(f, selection)
        scales: Expr = wrap(1.0)
        sizes = accumulate(comb(self.qk + n - 1, n) for n in range(self.degree, 0, -1))
        for n, stop in sorted(zip(range(self.degree, 0, -1), sizes, strict=True)):
            scales = Where(f < stop, power(SCALE, n), scales)
        return scales * self.fixed_weight(f, selection)

    def fixed_weight(self, f: Var, selection: Selection) -> Expr:
        """1, or p!, over the number of orders in which each component of a feature repeats itself."""
        orders: list[Expr] = []
        for before, index in pairwise(selection):
            again = before.equals(index)
            if self.series:
                again = again & (index < self.qk)
            run = orders[-1] + 1.0 if orders else wrap(2.0)
            orders.append(Where(again, run, wrap(1.0)))
        return wrap(1.0 if self.series else float(factorial(self.degree))) / multiplied(orders)

    def constant(self, f: Var) -> Expr | None:
        return f.equals(self.rows - 1) if self.series else None


def series(order: int, s: Expr) -> Expr:
    """The series of exp(s) to some order."""
    value = times(wrap(1 / factorial(order)), s)
    for n in range(order - 1, 0, -1):
        value = s * (wrap(1 / factorial(n)) + value)
    return 1.0 + value


def multisets(m: Expr, degree: int) -> Expr:
    """How many multisets there are of so many out of m coordinates: C(m + degree - 1, degree)."""
    return multiplied([m, *(m + n for n in range(1, degree))]) // factorial(degree)


def power(x: Expr, n: int) -> Expr:
    """x to the power of n, at least 1."""
    return x if n == 1 else power(x, n - n // 2) * power(x, n // 2)


def multiplied(factors: Iterable[Expr]) -> Expr:
    return reduce(mul, factors)


def by_factor(gradient: Var, selection: Selection, factor: Callable[[Var], Expr]) -> list[Expr]:
    """The gradient by each factor of a product, given the one by the product: that times the others."""
    if len(selection) == 1:
        return [gradient]
    factors = {index: factor(index) for index in reversed(selection)}
    return [
        multiplied([gradient, *(factors[other] for other in selection if other != index)])
        for index in selection
    ]
