"""The features of second-order Taylor maps in the order in which exchanges make them."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.exchange import EXCHANGES, ONE, WIDTH, pair_of
from ..ir.nodes import Expr, Span, Var, Where, wrap
from ..spec.model import TaylorExp
from .features import Selection
from .monomials import NAMES, Rotations


class Exchanged(Rotations):
    """Features in blocks, of the columns of one exchange each; some columns hold no feature.

    The state keeps its order: a block's index tile `f` is the row of each column there, which follows from
    the pair that the column is, and lies past the last where there is none.
    """

    sizes = tuple(exchange.columns for exchange in EXCHANGES)
    """Columns of each block."""
    weighs_states = True

    def __init__(self, spec: TaylorExp, qk: int) -> None:
        super().__init__(spec, qk)
        self.extent = WIDTH

    def of_block(self, b: Builder, f0: Expr, size: str) -> tuple[Var, Selection]:
        place = b.let("place", Span(f0, size))
        first, second = (b.let(name, side) for name, side in zip(NAMES, pair_of(place), strict=False))
        of_one = Where(first.equals(ONE), wrap(self.rows - 1), self.row_of_single(first))
        of_two = self.row_of_coordinates(first, second)
        return b.let("f", Where(second.equals(ONE), of_one, of_two)), (first, second)

    def fixed_weight(self, f: Var, selection: Selection) -> Expr:
        first, second = selection
        return Where(first.equals(second) & (first < self.qk), wrap(0.5), wrap(1.0))

    def fixed_weights(self, b: Builder, f: Var, selection: Selection) -> Var:
        return b.let("weight", self.fixed_weight(f, selection))

    def row_of_single(self, component: Expr) -> Expr:
        """The state's row of a component alone."""
        return Where(component < self.qk, self.pairs + component, wrap(self.rows))

    def row_of_coordinates(self, first: Expr, second: Expr) -> Expr:
        """That of a product of two; past the last where the layer has not both."""
        both = (first < self.qk) & (second < self.qk)
        return Where(both, self.row_of(first, second), wrap(self.rows))
