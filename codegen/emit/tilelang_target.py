"""What the text of a TileLang kernel depends on besides its program."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.check import walk
from ..ir.fuse import expressions, statements
from ..ir.kernels import Kernel
from ..ir.nodes import ACC, INDEX, IO, OPERAND, STATE, WIDE, Dim, Head, Var
from ..ir.program import Program, loads_ahead, uses_operands

WHOLE_VECTORS = 8
"""Rows that are a multiple of this many elements may be moved in 16-byte pieces, in any dtype."""
FUNCTIONS = {
    "floordiv": "tl.truncdiv",
    "mod": "tl.truncmod",
    "cdiv": "tl.ceildiv",
    "min": "tl.min",
    "max": "tl.max",
    "min_or_nan": "minimum_or_nan",
    "max_or_nan": "maximum_or_nan",
    "if_positive": "if_positive",
    "erfc": "erfc",
    "expm1": "expm1",
    "log1p": "log1p",
}
"""Operations under other names than TileLang's; those without ``tl.`` are in `support/tilelang_functions.py`.
Indices are never negative where they are divided, and truncating division needs no correction."""
C_KEYWORDS = {"do"}
"""Tensors whose names mean something in C, which kernels become."""


@dataclass(frozen=True)
class Target:
    """What the text of a kernel needs to know of the machine it is for."""

    on_host: bool
    state_dtype: str

    def dtype(self, role: str) -> str:
        """The dtype of a tensor or tile, as text."""
        state = "float32" if self.on_host else self.state_dtype
        fixed = {ACC: "float32", STATE: state, WIDE: "float64", INDEX: "int32"}
        return f'"{fixed[role]}"' if role in fixed else {IO: "IO", OPERAND: "OPERAND"}[role]

    def constants(self, program: Program) -> list[str]:
        """What a kernel is made for besides sizes of tiles and a number of threads."""
        used = {
            "IO": any(tensor.dtype == IO for tensor in program.tensors),
            "OPERAND": uses_operands(program) or any(tensor.dtype == OPERAND for tensor in program.tensors),
            "STAGES": loads_ahead(program) and not self.on_host,
        }
        return [name for name in used if used[name]]

    def loop(self, extents: tuple[Dim, ...], gathers: bool) -> str:
        """The iterator over the elements of a tile; `gathers`: it reads columns that an index tile names."""
        sizes = ", ".join(map(str, extents))
        if self.on_host:
            return f"tl.grid({sizes})" if len(extents) > 1 else f"tl.serial({sizes})"
        return f"gathering({sizes})" if gathers else f"tl.Parallel({sizes})"

    def rounds(self, ahead: bool) -> str:
        """How the iterator of a loop begins; `ahead`: its rounds may load before earlier ones store."""
        return "ahead(STAGES, " if ahead and not self.on_host else "tl.serial("


def c_name(tensor: str) -> str:
    return f"{tensor}_" if tensor in C_KEYWORDS else tensor


def passed_sizes(kernel: Kernel) -> list[str]:
    """Runtime sizes that a kernel is told, because no tensor that is always there has them as a dimension."""
    known = {dim for tensor in kernel.tensors if tensor.optional is None for dim in tensor.stored}
    optional = {dim for tensor in kernel.tensors if tensor.optional is not None for dim in tensor.stored}
    counts = [axis.extent for axis in kernel.grid]
    if isinstance(kernel, Program):
        counts += [expr for stmt in statements(kernel.body) for expr in expressions(stmt)]
    nodes = [node for count in counts for node in walk(count)]
    counted = {node.name for node in nodes if isinstance(node, Var)}
    counted |= {node.heads for node in nodes if isinstance(node, Head)}
    return [name for name in kernel.sizes if name in (optional | counted) - known]
