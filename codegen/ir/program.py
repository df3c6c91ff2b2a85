"""A kernel: statements of the tile program, with what they are given and the grid that runs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .nodes import Dim, Expr, For, Stmt, Var


@dataclass(frozen=True)
class Tensor:
    """A parameter in device memory.

    `dims` names each dimension's extent, a runtime size (``"T"``) or a number.  `strided` tensors come from
    the user with any strides (the last dimension dense); the others are contiguous.  One that lacks the
    extent of a batch axis, such as the weights of a head, is the same for every program along it.
    """

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    strided: bool = False
    optional: str | None = None  # the flag under which the tensor is there at all


@dataclass(frozen=True)
class Axis:
    """One axis of the grid of programs; along a `batch` axis a backend may vectorise."""

    name: str
    extent: Expr
    batch: bool = False


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

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    @property
    def batch(self) -> dict[str, str]:
        """The batch axes of the grid, and the size that each of them counts."""
        return {
            axis.name: axis.extent.name for axis in self.grid if axis.batch and isinstance(axis.extent, Var)
        }


def uses_operands(program: Program) -> bool:
    """Whether anything in the program is a matrix operand."""
    return "'operand'" in repr(program.body)


def loads_ahead(program: Program) -> bool:
    """Whether the program has a loop whose rounds may load before earlier ones store."""
    return any(isinstance(stmt, For) and stmt.ahead for stmt in program.body)
