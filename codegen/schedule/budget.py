"""What a block needs at least: settings that cannot fit are never compiled.

Both estimates are lower bounds, so a setting that is turned down would spill or fail to launch; one that
passes may still do so, and the compiler says it.

*Registers.*  A matrix that a loop updates stays in registers throughout that loop, in float32 elements spread
over the threads of the block.  The results of the loop's own products come and go, so of those only the
largest counts.

*Shared memory.*  What a product reads on the right goes through shared memory.  Triton buffers what a loop
loads for it once a stage, less the stage that is at work; TileLang keeps both sides of a product there as far
as their scope says so (`scopes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from ..ir.check import Types
from ..ir.fuse import fuse, statements
from ..ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    STATE,
    Add,
    Const,
    Dot,
    For,
    Let,
    Load,
    Set,
    Stmt,
    Transpose,
    Var,
    When,
)
from ..ir.program import Program
from .legal import resolve
from .model import Setting
from .scopes import SHARED, scopes

WARP = 32
REGISTERS_A_THREAD = 255
REGISTERS_A_MULTIPROCESSOR = 64 * 1024
OTHER_REGISTERS = 48
"""Of a thread, for addresses, masks and operands on their way."""
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Bytes that one block may have, by architecture."""
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
ON_GPU = ("triton", "tilelang")


@dataclass(frozen=True)
class Needs:
    """The least that one block occupies."""

    registers: int
    """32-bit registers a thread, for matrices alone."""
    shared: int
    """Bytes of shared memory."""


def fits(
    program: Program, types: Types, backend: str, dtype: str, setting: Setting, architecture: str = "sm_90"
) -> bool:
    """Whether a block can hold what the program keeps; always so off the GPU, where memory is large."""
    if backend not in ON_GPU:
        return True
    found = needs(program, types, backend, dtype, setting)
    registers = min(REGISTERS_A_THREAD, REGISTERS_A_MULTIPROCESSOR // (WARP * setting.warps))
    return found.registers <= registers - OTHER_REGISTERS and found.shared <= SHARED_MEMORY[architecture]


def needs(program: Program, types: Types, backend: str, dtype: str, setting: Setting) -> Needs:
    """The estimate for a program after its rewrites."""
    sizes = setting.constants
    held = _held(program.body, types, sizes)
    threads = WARP * setting.warps
    shared = _triton_shared if backend == "triton" else _tilelang_shared
    return Needs(-(-held // threads), shared(program, types, dtype, setting))


def _held(body: tuple[Stmt, ...], types: Types, sizes: Mapping[str, int]) -> int:
    """Elements of the matrices that are alive at once in the loop that holds most."""
    inner = [stmt for stmt in body if isinstance(stmt, For | When)]
    most = max((_held(stmt.body, types, sizes) for stmt in inner), default=0)
    loops = [stmt.body for stmt in body if isinstance(stmt, For)]
    for loop in loops:
        introduced = {stmt.name for stmt in statements(loop) if isinstance(stmt, Let)}
        carried = {
            stmt.name
            for stmt in statements(loop)
            if isinstance(stmt, Set | Add) and stmt.name not in introduced
        }
        results = [
            stmt.name for stmt in statements(loop) if isinstance(stmt, Let) and isinstance(stmt.value, Dot)
        ]
        alive = sum(_elements(name, types, sizes) for name in carried)
        most = max(most, alive + max((_elements(name, types, sizes) for name in results), default=0))
    return most


def _triton_shared(program: Program, types: Types, dtype: str, setting: Setting) -> int:
    """Bytes of what loops load for the right side of a product, in flight; of a single round nothing is."""
    most = 0
    for loop in _loops(program.body, setting.constants):
        operands = {
            _operand(stmt.value.y)
            for stmt in loop
            if isinstance(stmt, Let | Set | Add) and isinstance(stmt.value, Dot)
        }
        loaded = {
            stmt.name
            for stmt in loop
            if isinstance(stmt, Let) and isinstance(stmt.value, Load) and stmt.name in operands
        }
        bytes_ = sum(_bytes(name, types, dtype, setting.constants) for name in loaded)
        most = max(most, bytes_ * max(1, setting.stages - 1))
    return most


def _tilelang_shared(program: Program, types: Types, dtype: str, setting: Setting) -> int:
    """Bytes of the shared tiles of the largest product: other tiles may take turns in the same memory."""
    body = fuse(program, types)
    shared = {name for name, scope in scopes(body, types, "tilelang").items() if scope == SHARED}
    return max(
        (
            sum(_bytes(name, types, dtype, setting.constants) for name in operands & shared)
            for operands in _operands(body)
        ),
        default=0,
    )


def _operands(body: tuple[Stmt, ...]) -> Iterator[set[str]]:
    """The tiles that each product reads."""
    for stmt in statements(body):
        if isinstance(stmt, Let | Set | Add) and isinstance(stmt.value, Dot):
            yield {_operand(stmt.value.x), _operand(stmt.value.y)}


def _operand(side: Var | Transpose) -> str:
    return side.x.name if isinstance(side, Transpose) else side.name


def _loops(body: tuple[Stmt, ...], sizes: Mapping[str, int] = {}) -> Iterator[tuple[Stmt, ...]]:
    """The bodies of all loops, each with what its switches hold and without the loops inside it.

    Those of which these sizes make a single round are left out.
    """
    for stmt in body:
        if isinstance(stmt, For | When):
            if isinstance(stmt, For) and not _is_one_round(stmt, sizes):
                yield tuple(_straight(stmt.body))
            yield from _loops(stmt.body, sizes)


def _is_one_round(loop: For, sizes: Mapping[str, int]) -> bool:
    match loop.start, loop.stop, loop.step:
        case Const(int(start)), Const(int(stop)), Var(step):
            return step in sizes and start + sizes[step] >= stop
    return False


def _straight(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    for stmt in body:
        if isinstance(stmt, When):
            yield from _straight(stmt.body)
        elif not isinstance(stmt, For):
            yield stmt


def _elements(name: str, types: Types, sizes: Mapping[str, int]) -> int:
    """Elements of a matrix; vectors are too small to count."""
    shape = types[name].shape
    return prod(resolve(dim, sizes) for dim in shape) if len(shape) == 2 else 0


def _bytes(name: str, types: Types, dtype: str, sizes: Mapping[str, int]) -> int:
    """Bytes of a tile of any rank in the dtype of its role."""
    kind = types[name]
    width = {ACC: 4, STATE: 4, INDEX: 4, OPERAND: BYTES[dtype], IO: BYTES[dtype]}.get(kind.dtype, 1)
    return width * prod(resolve(dim, sizes) for dim in kind.shape)
