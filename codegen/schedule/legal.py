"""Which sizes a program admits; a schedule that breaks these rules would compute something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import BasedOpsError
from ..ir.check import Types, infer
from ..ir.fuse import statements
from ..ir.kernels import ForeignKernel, LaunchPlan, Sized
from ..ir.nodes import Add, Blocks, Dim, Dot, Let, Set
from ..ir.program import Program
from . import orders
from .model import Schedule, Setting

WARPGROUP = 4
"""Warps that issue one matrix product together on Hopper."""
WARPGROUP_ROWS = 64
"""Rows of a product of which Triton makes warpgroup instructions are a multiple of this."""
ROWS_OF_A_WARP = 16
COLUMNS_OF_A_WARP = 8
"""What a warp computes of a matrix product is a multiple of so many rows and columns."""
SAFE_COLUMNS = 64
"""Columns from which on several warpgroup products in one kernel are compiled right."""
DIRECT = ("LONGEST", "TOKENS")
"""Constants of a launch plan that say when scores are computed directly, without a recurrence."""
ALL_TOKENS = 1 << 62
"""More tokens than there are: a pass that computes as many directly never recurs."""
ONE_TOKEN = 1
"""A pass that computes no longer sequence directly always recurs."""
FEWEST_STAGES = 2
"""Chunks that such a kernel has room for: one at work, the others on their way."""
WHOLE = (*(("SEGMENT", part) for part in ("CHUNK", "KEYS", "QUERIES", "SCAN")), ("LENGTH", "SEGMENT"))
"""Constants of which the first is a multiple of the second."""


class IllegalSchedule(BasedOpsError):
    """A schedule whose sizes its program does not admit: a bug in a policy or a wrong tuning record."""

    remedy = (
        "`based-ops show NAME --stage schedule` says what chose these sizes; delete the record if one did"
    )


def require_legal(subject: Sized, schedule: Schedule) -> None:
    """Raise `IllegalSchedule` unless every size is legal for the kernel or plan.

    A constant that a program uses for a whole dimension covers it, a segment is made of whole chunks and
    tiles, no pass recurs where it has no recurrence, blocks that are written out are the same for all dtypes,
    which share the text, and a kernel's order names pieces that it has.
    """
    if isinstance(subject, ForeignKernel):
        if unknown := set(schedule.rewrites) - orders.known(subject).keys():
            raise IllegalSchedule(f"{subject.name}: has no {', '.join(sorted(unknown))}")
    for stmt in statements(subject.body) if isinstance(subject, Program) else ():
        if isinstance(stmt, Blocks) and len(schedule.values(stmt.step)) != 1:
            raise IllegalSchedule(f"{subject.name}: {stmt.step} differs between dtypes, but is written out")
    for dtype, setting in schedule.settings.items():
        sizes, where = setting.constants, f"{subject.name} {dtype}"
        if missing := [name for name in subject.constants if sizes.get(name, 0) < 1]:
            raise IllegalSchedule(f"{where}: no size for {', '.join(missing)}")
        for name, extent in bounds(subject).items():
            if sizes[name] < extent:
                raise IllegalSchedule(f"{where}: {name}={sizes[name]} does not cover {extent}")
        if isinstance(subject, ForeignKernel) and setting.stages < FEWEST_STAGES:
            raise IllegalSchedule(f"{where}: {setting.stages} stages, fewer than {FEWEST_STAGES}")
        for whole, part in WHOLE:
            if whole in sizes and sizes[whole] % sizes.get(part, 1):
                what = f"{whole}={sizes[whole]} is no multiple of {part}={sizes[part]}"
                raise IllegalSchedule(f"{where}: {what}")
        for name in DIRECT if not recurs(schedule.backend, dtype) else ():
            if sizes.get(name, ALL_TOKENS) < ALL_TOKENS:
                raise IllegalSchedule(f"{where}: {name}={sizes[name]}, but nothing recurs")


def bounds(subject: Sized) -> Mapping[str, int]:
    """The static extents that constants have to cover."""
    return {} if isinstance(subject, LaunchPlan) else subject.bounds


def recurs(backend: str, dtype: str) -> bool:
    """Whether there is a recurrence: in float32 its state would fill the registers of a GPU."""
    return backend not in ("triton", "tilelang") or dtype != "float32"


def is_legal(subject: Sized, schedule: Schedule) -> bool:
    """Whether `require_legal` passes."""
    try:
        require_legal(subject, schedule)
    except IllegalSchedule:
        return False
    return True


def products(program: Program, types: Types) -> Iterator[tuple[Dim, Dim, Dim]]:
    """M, K and N of every matrix product [M, K] x [K, N]."""
    for stmt in statements(program.body):
        if isinstance(stmt, Let | Set | Add) and isinstance(stmt.value, Dot):
            left = infer(stmt.value.x, types, program).shape
            right = infer(stmt.value.y, types, program).shape
            yield left[0], left[1], right[1]


def miscompiled(program: Program, types: Types, setting: Setting, dtype: str) -> bool:
    """Whether Triton 3.6 and 3.7 may compile the program wrongly for Hopper with this setting.

    Blocks of whole warpgroups run products of 64 rows on the warpgroups' own instructions.  Several of them
    with few columns in one kernel give wrong sums or illegal addresses (triton-lang/triton 10486, 11366).
    float32 products do not use these instructions.
    """
    if setting.warps % WARPGROUP or dtype == "float32":
        return False
    return any(
        resolve(m, setting.constants) % WARPGROUP_ROWS == 0 and resolve(n, setting.constants) < SAFE_COLUMNS
        for m, _, n in products(program, types)
    )


def shares_out(program: Program, types: Types, setting: Setting) -> bool:
    """Whether the warps of a TileLang block can share out every product, in whole pieces of the same size."""
    return all(
        _pieces(resolve(m, setting.constants), resolve(n, setting.constants), setting.warps)
        for m, _, n in products(program, types)
    )


def _pieces(m: int, n: int, warps: int) -> bool:
    """Whether some grid of warps covers M x N; a product of 64 rows has four of them along its rows."""
    least = WARPGROUP if m >= WARPGROUP_ROWS else 1
    return any(
        warps % rows == 0
        and m % (rows * ROWS_OF_A_WARP) == 0
        and n % (warps // rows * COLUMNS_OF_A_WARP) == 0
        for rows in range(least, warps + 1, least)
    )


def resolve(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A static size as a number."""
    return sizes[dim] if isinstance(dim, str) else dim
