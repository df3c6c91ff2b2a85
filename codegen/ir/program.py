"""A kernel: statements of the tile program, with what they are given and the grid that runs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .nodes import Dim, Expr, For, Stmt, Var

SLOT, HAS_SLOT = "slot_in_pool", "has_slot"
"""Variables of a program with tensors in slots: where in a pool its entry of the batch is, and whether it is
anywhere.  The first is for printers."""
HEADS, ALL_HEADS, GROUPED = "H", "HO", "GROUPED"
"""The size that counts a program's heads, the one that counts those of outputs, and the flag of programs that
have to tell heads apart: see `Tensor.heads` and `Head`."""


@dataclass(frozen=True)
class Tensor:
    """A parameter in device memory.

    `dims` names each dimension's extent, a runtime size (``"T"``) or a number.  `strided` tensors come from
    the user with any strides (the last dimension dense); the others are contiguous.  One that lacks the
    extent of a batch axis, such as the weights of a head, is the same for every program along it.

    Of a tensor in `slots`, which names a tensor of indices, the first dimension is the batch.  Where these
    are there, it is a pool of `slots` entries instead, any distance apart, and entry i of the batch is the
    one that index i names.  An index that names none, such as -1, is harmless: a `Load` reads its fill, a
    `Store` is dropped.

    Of a tensor with `heads`, which names a size, the dimension of heads has that extent under GROUPED, and
    its index is a `Head`.
    """

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    strided: bool = False
    optional: str | None = None  # the flag under which the tensor is there at all
    slots: str | None = None
    heads: str | None = None

    @property
    def stored(self) -> tuple[Dim, ...]:
        """The extents that it has in memory."""
        dims = tuple(self.heads if self.heads and dim == HEADS else dim for dim in self.dims)
        return ("slots", *dims[1:]) if self.slots else dims

    @property
    def free(self) -> tuple[Dim, ...]:
        """The dimensions whose strides a call chooses."""
        if self.slots:
            return self.dims[:1]
        return self.dims[:-1] if self.strided else ()


@dataclass(frozen=True)
class Axis:
    """One axis of the grid of programs; along a `batch` axis a backend may vectorise.

    One that `leads` is the first dimension of tensors in a batch's place, though nobody vectorises along it.
    """

    name: str
    extent: Expr
    batch: bool = False
    leads: bool = False


@dataclass(frozen=True)
class Program:
    """One kernel."""

    name: str
    summary: str
    grid: tuple[Axis, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[str, ...]  # runtime integers
    scalars: tuple[str, ...]  # runtime floats
    flags: tuple[str, ...]
    constants: tuple[str, ...]  # tile sizes that the schedule binds
    body: tuple[Stmt, ...]
    bounds: dict[str, int] = field(
        default_factory=dict, hash=False
    )  # static extent that a constant must cover
    does: frozenset[str] = frozenset()  # what schedules ask (`traits.py`)
    under: dict[str, str] = field(default_factory=dict, hash=False)
    """Sizes that are read under a flag alone, and absent without it."""

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    @property
    def batch(self) -> dict[str, str]:
        """The batch axes of the grid, and the size that each of them counts."""
        return {
            axis.name: axis.extent.name for axis in self.grid if axis.batch and isinstance(axis.extent, Var)
        }


def head_sizes(tensors: Iterable[Tensor]) -> set[str]:
    """The sizes that count heads of a program's tensors, where these are in groups."""
    return {ALL_HEADS, *(tensor.heads for tensor in tensors if tensor.heads)}


def uses_operands(program: Program) -> bool:
    """Whether anything in the program is a matrix operand."""
    return "'operand'" in repr(program.body)


def loads_ahead(program: Program) -> bool:
    """Whether the program has a loop whose rounds may load before earlier ones store."""
    return any(isinstance(stmt, For) and stmt.ahead for stmt in program.body)
