"""What a lowering asks of a feature map: `FeatureMap`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..ir.build import Builder
from ..ir.nodes import Const, Expr, Span, Transpose, Var, column, row
from ..spec import model
from ..spec.signature import Signature
from .sequence import Sequence

SCALE = Var("scale")
Selection = tuple[Var, ...]
"""What `FeatureMap.select` gives."""


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


class Meaning(Protocol):
    """What it asks of the spec of a layer whose weights are made by a feature map."""

    @property
    def feature_map(self) -> model.FeatureMap: ...
    @property
    def head_dims(self) -> model.HeadDims: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def eps(self) -> float: ...
    @property
    def decay(self) -> str: ...
    @property
    def state_dtype(self) -> str: ...
    def signature(self) -> Signature: ...


class FeatureMap(Protocol):
    """What a lowering asks of a feature map.  Tiles are ``[rows, qk]`` unless said otherwise."""

    rows: int
    """How many features the state keeps."""

    block: str
    """The constant that says how many of them a program handles at a time."""

    constants: tuple[str, ...]
    """`block`, and what `select` takes beside it."""

    sizes: tuple[int, ...] = ()
    """How many features each block has, if not all as many."""

    weighs_states: bool = False
    """Whether weights meet the state in registers, since features are operands as they are made."""

    selected: tuple[str, ...]
    """The names of the tiles that `select` introduces."""

    def load(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> tuple[Var, Var]:
        """Load a tile of q or k; returns it as loaded and as the matrix operand it enters products with."""

    def load_scaled(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], sequence: Sequence
    ) -> Var:
        """Load a tile of q as a matrix operand that has the scale in it."""

    def exact(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], columns: Expr
    ) -> tuple[Var, Var]:
        """`load` without rounding, of a tile or a single row; `columns` are the indices of its columns."""

    def kernel(self, product: Expr, scale: Expr = SCALE) -> Expr:
        """f(scale · product), elementwise."""

    def slope(self, product: Expr, scale: Expr = SCALE) -> Expr:
        """The derivative of `kernel` by the product."""

    def select(self, b: Builder, f: Var, suffix: str = "", alone: bool = False) -> Selection:
        """Index tiles that name, for each feature of the block `f`, the columns it is made of.

        `alone`: f is one feature, and so they are numbers.
        """

    def of_block(self, b: Builder, f0: Expr, size: str) -> tuple[Var, Selection]:
        """The index tile of the block of features from `f0` on, and `select` of it."""
        f = b.let("f", Span(f0, size))
        return f, self.select(b, f)

    def weights(self, b: Builder, f: Var, selection: Selection) -> Var:
        """The query-side weight of each feature of the block `f`, a vector; 0 past the last feature."""

    def weight(self, f: Var, selection: Selection) -> Expr:
        """The same as an expression of any features `f`; past the last it may be anything."""

    def fixed_weights(self, b: Builder, f: Var, selection: Selection) -> Var | None:
        """`weights` for a scale of 1; None if all of them are 1."""

    def features(
        self, b: Builder, name: str, operand: Var, selection: Selection, weight: Var | None = None
    ) -> Var:
        """Features of every row, ``[rows, block]``, times `weight` where it is given."""

    def across(self, b: Builder, operand: Var, selection: Selection, weight: Var | None = None) -> Across:
        """Features of every row, as they enter sums over rows, times `weight` where it is given."""

    def constant(self, f: Var) -> Expr | None:
        """Which features are 1 even of a row that is 0, as past the end of a sequence; None if none."""

    def adjoint(self, b: Builder, gradient: Var, operand: Var, selection: Selection, into: Var) -> None:
        """Add to `into` the gradient by the operand, given the gradient by its (unweighted) features.

        The program's index tile ``d`` names the operand's columns.
        """

    def leave(self, loaded: Var, gradient: Var) -> Expr:
        """The gradient by the tile as loaded, given the gradient by the operand."""

    def row_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
    ) -> Var:
        """Features of one row, a vector ``[block]``; `index` names the row, features past the last are 0."""

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
        """`adjoint` of one row, which `index` names: of vectors, with selects in place of a product."""

    def column_features(
        self, b: Builder, name: str, tensor: str, index: tuple[Expr, ...], f: Var, selection: Selection
    ) -> Var:
        """One feature, f, of the rows that `index` names: a vector."""

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
        """`adjoint` of one feature of all rows."""


def times(scale: Expr, product: Expr) -> Expr:
    return product if scale == Const(1.0) else scale * product
