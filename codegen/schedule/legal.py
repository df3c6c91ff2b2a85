"""Which sizes a program admits; a schedule that breaks these rules would compute something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import BasedOpsError
from ..ir.check import Types, infer
from ..ir.fuse import statements
from ..ir.nodes import Add, Blocks, Dim, Dot, Let, Program, Set
from ..mixers.linear_attention import LinearAttention
from ..mixers.sliding_window import SlidingWindow
from ..names import is_on_warpgroups
from ..spec.model import Elementwise, LayerSpec, TaylorExp
from . import orders
from .model import Schedule, Setting

WARPGROUP = 4
"""Warps that issue one matrix product together on Hopper."""
WARPGROUP_ROWS = 64
"""Rows of a product of which Triton makes warpgroup instructions are a multiple of this."""
SAFE_COLUMNS = 64
"""Columns from which on several warpgroup products in one kernel are compiled right."""
EXCHANGED = 16
"""Columns of a warpgroup's left operand that four neighbouring lanes hold, and can exchange."""
WARPGROUP_TILES = {"CHUNK": 64, "VALUES": 64}
"""Tiles of a kernel whose text is laid out for one warpgroup."""
WIDE_TILES = {"CHUNK": 128, "VALUES": 64}
"""The same for two, over two operands' worth of such columns."""
SQUARE_TILES = WARPGROUP_TILES | {"QK": 64}
"""The same where tiles of queries and keys are as wide as those of values."""
LONGEST_WINDOW = {"outputs": 128, "gradients": 64}
"""Keys of a window of which such a program holds all tiles of products in registers."""
DIRECT = ("LONGEST", "TOKENS")
"""Constants of a launch plan that say when scores are computed directly, without a recurrence."""
ALL_TOKENS = 1 << 62
"""More tokens than there are: a pass that computes as many directly never recurs."""
ONE_TOKEN = 1
"""A pass that computes no longer sequence directly always recurs."""
FEWEST_STAGES = 2
"""Chunks that such a kernel has room for: one at work, the others on their way."""
WHOLE = (("SEGMENT", "CHUNK"), ("SEGMENT", "KEYS"), ("SEGMENT", "QUERIES"), ("LENGTH", "SEGMENT"))
"""Constants of which the first is a multiple of the second."""
COPIED = 8
"""Columns that one asynchronous copy moves, of two bytes each."""


class IllegalSchedule(BasedOpsError):
    """A schedule whose sizes its program does not admit: a bug in a policy or a wrong tuning record."""


def require_legal(program: Program, schedule: Schedule) -> None:
    """Raise `IllegalSchedule` unless every size is legal for the program.

    A constant that a program uses for a whole dimension covers it, a segment is made of whole chunks and
    tiles, no pass recurs where it has no recurrence, blocks that are written out are the same for all dtypes,
    which share the text, and a kernel's order names pieces that it has.
    """
    if is_on_warpgroups(program.name):
        if unknown := set(schedule.rewrites) - orders.known(program).keys():
            raise IllegalSchedule(f"{program.name}: has no {', '.join(sorted(unknown))}")
    for stmt in statements(program.body):
        if isinstance(stmt, Blocks) and len(schedule.values(stmt.step)) != 1:
            raise IllegalSchedule(f"{program.name}: {stmt.step} differs between dtypes, but is written out")
    for dtype, setting in schedule.settings.items():
        sizes = setting.constants
        if missing := [name for name in program.constants if sizes.get(name, 0) < 1]:
            raise IllegalSchedule(f"{program.name} {dtype}: no size for {', '.join(missing)}")
        for name, extent in program.bounds.items():
            if sizes[name] < extent:
                raise IllegalSchedule(f"{program.name} {dtype}: {name}={sizes[name]} does not cover {extent}")
        if is_on_warpgroups(program.name) and setting.stages < FEWEST_STAGES:
            raise IllegalSchedule(
                f"{program.name} {dtype}: {setting.stages} stages, fewer than {FEWEST_STAGES}"
            )
        for whole, part in WHOLE:
            if whole in sizes and sizes[whole] % sizes.get(part, 1):
                what = f"{whole}={sizes[whole]} is no multiple of {part}={sizes[part]}"
                raise IllegalSchedule(f"{program.name} {dtype}: {what}")
        for name in DIRECT if not recurs(schedule.backend, dtype) else ():
            if sizes.get(name, ALL_TOKENS) < ALL_TOKENS:
                raise IllegalSchedule(f"{program.name} {dtype}: {name}={sizes[name]}, but nothing recurs")


def recurs(backend: str, dtype: str) -> bool:
    """Whether there is a recurrence: in float32 its state would fill the registers of a GPU."""
    return backend not in ("triton", "tilelang") or dtype != "float32"


def exchanges(spec: LayerSpec, dtype: str) -> bool:
    """Whether a layer's features can be made by exchanging columns among lanes (`emit/warpgroups/`)."""
    return isinstance(spec, LinearAttention) and _exchanges(spec, dtype) and spec.head_dims.qk <= EXCHANGED


def halves_exchange(spec: LayerSpec, dtype: str) -> bool:
    """Whether they can be made of two operands' worth of columns."""
    narrow, wide = EXCHANGED, 2 * EXCHANGED
    return (
        isinstance(spec, LinearAttention) and _exchanges(spec, dtype) and narrow < spec.head_dims.qk <= wide
    )


def _exchanges(spec: LinearAttention, dtype: str) -> bool:
    return spec.feature_map == TaylorExp(order=2) and _copies(spec, dtype)


def maps_squares(spec: LayerSpec, dtype: str) -> bool:
    """Whether a layer's features are its columns, each mapped, and a tile of them is a warpgroup's."""
    return (
        isinstance(spec, LinearAttention)
        and isinstance(spec.feature_map, Elementwise)
        and spec.head_dims.qk <= SQUARE_TILES["QK"]
        and _copies(spec, dtype)
    )


def _copies(spec: LinearAttention | SlidingWindow, dtype: str) -> bool:
    """Whether rows can be copied asynchronously."""
    return (
        spec.head_dims.qk % COPIED == 0
        and spec.head_dims.v % COPIED == 0
        and dtype in ("bfloat16", "float16")
    )


def gradients_exchange(spec: LinearAttention, dtype: str) -> bool:
    """Whether its gradients can, too: those of queries and keys sum over all values, that are one tile."""
    return exchanges(spec, dtype) and spec.head_dims.v <= WARPGROUP_TILES["VALUES"]


def window_streams(spec: LayerSpec, program: str, dtype: str) -> bool:
    """Whether a window's program has a version that keeps a whole window of keys in its multiprocessor."""
    return (
        isinstance(spec, SlidingWindow)
        and spec.window <= LONGEST_WINDOW.get(program, 0)
        and spec.head_dims.qk <= SQUARE_TILES["QK"]
        and spec.head_dims.v <= SQUARE_TILES["VALUES"]
        and _copies(spec, dtype)
    )


def is_legal(program: Program, schedule: Schedule) -> bool:
    """Whether `require_legal` passes."""
    try:
        require_legal(program, schedule)
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


def resolve(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A static size as a number."""
    return sizes[dim] if isinstance(dim, str) else dim
