"""The tile program: the one form in which every algorithm of this project is written.

A program is a small imperative text over *tiles*, arrays of at most two static dimensions that one GPU block
(or one batched PyTorch expression) holds at a time.  It says what is computed and in which order, not how
large a tile is, where it lives or how many threads share it.  Sizes are names that a schedule binds.

Three rules keep programs printable in every backend (`check.py` enforces them):

* `Load`, `Dot`, `Sum`, `Max`, `RunningSum`, `Columns` and `Transpose` stand alone on the right of a
  statement, and read named tiles;
* everything else is elementwise and nests freely, with an explicit `Expand` wherever ranks differ;
* out of range means harmless: a `Load` outside its tensor or index tile reads `fill`, a `Store` is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dtypes import ACC as ACC
from ..dtypes import IO as IO
from ..dtypes import OPERAND as OPERAND
from ..dtypes import STATE as STATE
from ..dtypes import WIDE as WIDE

Dim = int | str
"""A static size: a number, or the name of a constant that the schedule binds."""

INDEX, BOOL = "index", "bool"
"""What a variable may hold besides numbers of some role."""


class Expr:
    """A value: a scalar or a tile."""

    def __add__(self, other: Operand) -> Expr:
        return Binary("add", self, wrap(other))

    def __radd__(self, other: Operand) -> Expr:
        return Binary("add", wrap(other), self)

    def __sub__(self, other: Operand) -> Expr:
        return Binary("sub", self, wrap(other))

    def __rsub__(self, other: Operand) -> Expr:
        return Binary("sub", wrap(other), self)

    def __mul__(self, other: Operand) -> Expr:
        return Binary("mul", self, wrap(other))

    def __rmul__(self, other: Operand) -> Expr:
        return Binary("mul", wrap(other), self)

    def __truediv__(self, other: Operand) -> Expr:
        return Binary("div", self, wrap(other))

    def __floordiv__(self, other: Operand) -> Expr:
        return Binary("floordiv", self, wrap(other))

    def __mod__(self, other: Operand) -> Expr:
        return Binary("mod", self, wrap(other))

    def __neg__(self) -> Expr:
        return Unary("neg", self)

    def __and__(self, other: Expr) -> Expr:
        return Binary("and", self, other)

    def __lt__(self, other: Operand) -> Expr:
        return Binary("lt", self, wrap(other))

    def __le__(self, other: Operand) -> Expr:
        return Binary("le", self, wrap(other))

    def __gt__(self, other: Operand) -> Expr:
        return Binary("gt", self, wrap(other))

    def __ge__(self, other: Operand) -> Expr:
        return Binary("ge", self, wrap(other))

    def equals(self, other: Operand) -> Expr:
        """Elementwise equality (``==`` compares the nodes themselves)."""
        return Binary("eq", self, wrap(other))


Operand = Expr | int | float | str

UNARY = (
    *("neg", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "abs"),
    *("tanh", "sigmoid", "sin", "cos", "erf", "erfc", "nothing"),
)
ARITHMETIC = (
    *("add", "sub", "mul", "div", "floordiv", "mod", "cdiv", "min", "max"),
    *("min_or_nan", "max_or_nan", "if_positive", "xor"),
)
"""Operations.  What min and max give of a NaN is the backend's; min_or_nan and max_or_nan give NaN.
if_positive(x, y) is y where x > 0, NaN where x is NaN, else 0, whatever y is.  nothing is 0 of a finite
number, and anything else of NaN and of infinities.  xor is of the bits of whole numbers.
"""
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "and")


@dataclass(frozen=True)
class Const(Expr):
    """A literal number."""

    value: int | float


@dataclass(frozen=True)
class Var(Expr):
    """A named scalar or tile: a variable, a grid axis, a runtime scalar, or a schedule constant."""

    name: str


@dataclass(frozen=True)
class Span(Expr):
    """The index tile ``start, start + 1, ..., start + size - 1``.

    What it indexes before `first` (without one, it never starts below 0) or from `stop` on is outside: so a
    tile ends with its sequence, though the tensor goes on.  What is calculated from it has all elements.
    """

    start: Expr
    size: Dim
    first: Expr | None = None
    stop: Expr | None = None


@dataclass(frozen=True)
class Unary(Expr):
    op: str
    x: Expr


@dataclass(frozen=True)
class Binary(Expr):
    op: str
    x: Expr
    y: Expr


@dataclass(frozen=True)
class Where(Expr):
    condition: Expr
    x: Expr
    y: Expr


@dataclass(frozen=True)
class Cast(Expr):
    x: Expr
    dtype: str


@dataclass(frozen=True)
class Expand(Expr):
    """A vector as a matrix: ``axis=0`` makes it a row ``[1, n]``, ``axis=1`` a column ``[n, 1]``."""

    x: Expr
    axis: int


@dataclass(frozen=True)
class Dithered(Expr):
    """A matrix tile rounded to the narrow `dtype` of the state, up or down at random: up with the probability
    of what is cut off, so that sums of many small terms stay right on average.

    Chance begins with a hash of the numbers `token`, which differs from token to token, and `value`, one a
    column.  From row to row, counted by `place`, it goes on by the golden ratio, so that the roundings of a
    column balance.
    """

    x: Expr
    dtype: str
    token: Expr
    value: Expr
    place: Expr


@dataclass(frozen=True)
class Head(Expr):
    """Which of the `heads` of a tensor goes with a program's head, and its `member`: see `heads.py`."""

    heads: str
    member: Expr | None = None


@dataclass(frozen=True)
class Full(Expr):
    """A tile of one value."""

    shape: tuple[Dim, ...]
    value: float
    dtype: str = ACC


@dataclass(frozen=True)
class Transpose(Expr):
    """A matrix tile with its axes swapped: as an operand of `Dot`, or alone on the right of a statement."""

    x: Var


@dataclass(frozen=True)
class Dot(Expr):
    """Matrix product ``[m, k] · [k, n]`` of operands, or of sums in float32, in the accumulator's precision.

    `among`, where given, says which elements of x there are, ``[m, k]``: the others are 0, and what they
    meet in y, NaN included, is no part of the sum.  A backend whose matrix product multiplies by those
    zeros keeps to that by a second look: see `Doubt`.  With `right` it says so of y, turned: ``[n, k]``.
    """

    x: Var | Transpose
    y: Var | Transpose
    among: Expr | None = None
    right: bool = False


@dataclass(frozen=True)
class Sum(Expr):
    """Sum of a named tile along one axis."""

    x: Var
    axis: int


@dataclass(frozen=True)
class Max(Expr):
    """Maximum of a named tile along one axis."""

    x: Var
    axis: int


@dataclass(frozen=True)
class RunningSum(Expr):
    """Sums of the elements of a named vector up to each of them."""

    x: Var


@dataclass(frozen=True)
class Load(Expr):
    """Read a tile: one index a dimension of the tensor, each a scalar or an index tile.

    The result has one axis for each index tile, in order.  Elements outside the tensor are `fill`.
    """

    tensor: str
    index: tuple[Expr, ...]
    dtype: str
    fill: float = 0.0


@dataclass(frozen=True)
class Columns(Expr):
    """Gather columns: ``out[i, f] = x[i, index[f]]``, or `fill` where ``index[f] >= extent``.

    `weight[f]`, where given, multiplies column f, fill included.  `transposed` makes it ``out[f, i]``.
    """

    x: Var
    index: Var
    extent: int
    fill: float = 0.0
    transposed: bool = False
    weight: Var | None = None


@dataclass(frozen=True)
class Doubt(Expr):
    """Whether a sum of `nothing` is anything: the same throughout a block, and known only as it runs.

    It is the condition of a second look alone: of statements that do again, with selects, what products with
    zeros may have spoilt.  A backend whose products select by themselves leaves them out.
    """

    x: Var


class Stmt:
    """One step of a program."""


@dataclass(frozen=True)
class Let(Stmt):
    """Introduce a variable."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Set(Stmt):
    """Replace the value of a variable that `Let` introduced."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Add(Stmt):
    """Add to a variable that `Let` introduced; of a `Dot`, a matrix multiply-accumulate."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Store(Stmt):
    """Write a tile; elements outside the tensor are dropped.  The last index may be a matrix of them."""

    tensor: str
    index: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True)
class For(Stmt):
    """Count ``var`` from ``start`` up to, not including, ``stop``.

    `ahead`: no round reads what another writes, so later ones may load before it stores.  `several`: a flag
    without which there is one round, that of 0; with it a round reads what those before it have stored, else
    only what is theirs.  `backwards`: the last round comes first.
    """

    var: str
    start: Expr
    stop: Expr
    step: Expr
    body: tuple[Stmt, ...]
    ahead: bool = False
    several: str | None = None
    backwards: bool = False


@dataclass(frozen=True)
class Blocks(Stmt):
    """Statements written out once for each block of a dimension, `var` being 0, ``step``, 2 ``step``, ...

    Each name in `tiles` is a variable of its own in every block; a later `Blocks` over the same dimension
    finds it again.  So a state that stays in registers can be larger than one tile.
    """

    var: str
    extent: int
    step: str
    body: tuple[Stmt, ...]
    tiles: tuple[str, ...]


@dataclass(frozen=True)
class When(Stmt):
    """Statements under a condition that is the same throughout a block: a plain scalar, a flag, or a doubt.

    A flag is a compile-time switch of the program; what stands under one that is off is not there at all.
    `each`: blocks differ, see `Builder.when`.
    """

    condition: Expr
    body: tuple[Stmt, ...]
    each: bool = False


@dataclass(frozen=True)
class Comment(Stmt):
    """A line for whoever reads the generated kernel."""

    text: str


def wrap(value: Operand) -> Expr:
    """Python numbers and names as expressions."""
    if isinstance(value, Expr):
        return value
    return Var(value) if isinstance(value, str) else Const(value)


def minimum(x: Operand, y: Operand) -> Expr:
    return Binary("min", wrap(x), wrap(y))


def maximum(x: Operand, y: Operand) -> Expr:
    return Binary("max", wrap(x), wrap(y))


def cdiv(x: Operand, y: Operand) -> Expr:
    """Division rounded up."""
    return Binary("cdiv", wrap(x), wrap(y))


def row(x: Expr) -> Expr:
    """A vector laid along the columns of a matrix."""
    return Expand(x, 0)


def column(x: Expr) -> Expr:
    """A vector laid along the rows of a matrix."""
    return Expand(x, 1)
