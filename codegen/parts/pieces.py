"""Features of a tile of tokens as programs hold them, and the notebook in which parts are written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..dtypes import OPERAND
from ..ir.build import Builder
from ..ir.nodes import (
    Cast,
    Const,
    Dim,
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
from ..schedule.sizes import power_of_two
from ..spec.parts import Parameter

LEAST = 16
"""Columns of the narrowest tile: what a matrix unit multiplies at once."""
MOST_WEIGHTS = 128 * 128
"""Numbers of the learned matrices of a pipeline whose gradients a block of threads sums in registers."""
MOST_NUMBERS = 1 << 15
"""Numbers of all matrices that a pipeline multiplies by, which a block holds in shared memory."""
TOKENS, HEAD, BATCH = Var("t"), Var("h"), Var("b")


class NoTile(Exception):
    """Why a pipeline is no tile program: PyTorch computes it then."""


def padded(width: int) -> int:
    """Columns of a tile of so many features."""
    return max(LEAST, power_of_two(width))


@dataclass(frozen=True)
class Piece:
    """Some features that lie in a row: a tile ``[CHUNK, padded]`` of sums, 0 past its `width`."""

    tile: Var
    width: int
    loaded: Var | None = None
    """The same as a matrix operand, where it was loaded as one."""


Pieces = tuple[Piece, ...]
Adjoint = Callable[[Pieces], Pieces]
"""From gradients by what a part gives, to those by what it takes; those by what it reads are summed."""


def placed(x: Pieces) -> Iterator[tuple[Piece, int]]:
    """Each piece, and the feature with which it begins."""
    start = 0
    for piece in x:
        yield piece, start
        start += piece.width


@dataclass(frozen=True)
class Total:
    """The gradient by some of a learned parameter, summed over the tokens of a program."""

    parameter: Parameter
    index: tuple[Expr, ...]
    sums: Var
    by_token: bool
    """Whether it still has a row a token."""


class Notes:
    """The statements of a program, and what its parts share."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.b = Builder()
        self.totals: list[Total] = []
        self._left = iter(parameters)
        self._names = Counter[str]()
        self._spans: dict[tuple[str, int, int], Var] = {}
        self._operands: dict[tuple[str, bool], Var] = {}
        self._weights = self._numbers = 0

    def read(self) -> Parameter:
        """The next parameter of the pipeline."""
        return next(self._left)

    # Statements

    def let(self, stem: str, value: Expr) -> Var:
        return self.b.let(self._name(stem), value)

    def before(self, stem: str, value: Expr) -> Var:
        """The same before the program's loop: of what all its tokens share."""
        return self.b.before(self._name(stem), value)

    def _name(self, stem: str) -> str:
        self._names[stem] += 1
        return f"{stem}{self._names[stem]}"

    def span(self, width: int, start: int = 0, stem: str = "f") -> Var:
        """The index tile of some features of a row; of rows of a matrix it is another, `d`."""
        key = stem, start, width
        if key not in self._spans:
            size = padded(width)
            stop = None if size == width else Const(start + width)
            self._spans[key] = self.before(stem, Span(Const(start), size, stop=stop))
        return self._spans[key]

    def index(self, parameter: Parameter, *index: Expr) -> tuple[Expr, ...]:
        """An index into a parameter, which each head has or all share."""
        return (HEAD, *index) if parameter.learned else index

    # Tiles

    def piece(self, stem: str, value: Expr, width: int) -> Piece:
        return Piece(self.let(stem, value), width)

    def inside(self, value: Expr, width: int) -> Expr:
        """A tile with 0 past its features."""
        return value if padded(width) == width else Where(self.columns(width), value, wrap(0.0))

    def columns(self, width: int, first: int = 0, last: int | None = None) -> Expr:
        """Which columns of a tile of so many features are among those from `first` up to `last`."""
        f, last = row(self.span(width)), width if last is None else last
        found = [f >= first] if first else []
        found += [f < last] if last < padded(width) or not found else []
        return found[0] if len(found) == 1 else found[0] & found[1]

    def there(self, value: Expr) -> Expr:
        """A tile with 0 for tokens past the end, of which a function may be anything."""
        return Where(column(TOKENS) < "T", value, wrap(0.0))

    def operand(self, x: Piece, summed: bool = False) -> Var:
        """A piece as a matrix operand; `summed`: over its tokens, those past the end included."""
        if x.loaded is not None:
            return x.loaded
        key = x.tile.name, summed
        if key not in self._operands:
            value = self.there(x.tile) if summed else x.tile
            self._operands[key] = self.let(f"{x.tile.name}_operand", Cast(value, OPERAND))
        return self._operands[key]

    def product(self, stem: str, pairs: Sequence[tuple[Var, Var | Transpose]]) -> Var:
        """A sum of matrix products."""
        (x, y), *others = pairs
        found = self.let(stem, Dot(x, y))
        for x, y in others:
            self.b.add(found, Dot(x, y))
        return found

    def row_sum(self, stem: str, values: Sequence[Expr]) -> Var:
        """Sums of tiles over all their features: a number a token."""
        sums = [self.let(stem, Sum(self.let(f"{stem}_of", value), 1)) for value in values]
        return sums[0] if len(sums) == 1 else self.let(stem, added(sums))

    def matrix(self, stem: str, value: Expr, rows: int, features: int) -> Var:
        """An operand that all tokens of the program are multiplied by."""
        self._numbers += padded(rows) * padded(features)
        if self._numbers > MOST_NUMBERS:
            raise NoTile(f"matrices have more than {MOST_NUMBERS} numbers")
        return self.before(stem, value)

    # Gradients of parameters

    def total(self, parameter: Parameter, index: tuple[Expr, ...], shape: tuple[Dim, ...]) -> Var:
        """A sum of zeros, to which the program's tokens add."""
        sums = self.before(f"d_{parameter.name}", Full(shape, 0.0))
        self.totals.append(Total(parameter, index, sums, shape[0] == "CHUNK"))
        return sums

    def of_matrix(self, parameter: Parameter, rows: tuple[int, int], features: int) -> Var:
        """The total of rows of a learned matrix: (how many, the first)."""
        shape = padded(rows[0]), padded(features)
        self._weights += shape[0] * shape[1]
        if self._weights > MOST_WEIGHTS:
            raise NoTile(f"learned matrices have more than {MOST_WEIGHTS} numbers")
        return self.total(parameter, (HEAD, self.span(*rows, "d"), self.span(features)), shape)


def added(values: Sequence[Expr]) -> Expr:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
