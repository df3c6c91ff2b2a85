"""The policy of programs that stream tokens, each channel by itself."""

from __future__ import annotations

from ..ir.fuse import statements
from ..ir.kernels import LaunchPlan
from ..ir.nodes import Add, For, Let, Load, Set
from ..ir.program import Program
from ..ir.traits import GRADIENTS, WALKS
from ..spec.model import LayerSpec
from .budget import WARP
from .legal import ALL_TOKENS, ONE_TOKEN
from .model import HOST_C, Setting
from .sizes import pick, power_of_two

SHORTEST_WALK = 64
"""The fewest tokens of a segment that is walked: each repeats the few before or after it."""
WALKED_LANES = {"forward": 1 << 21, "backward": 1 << 18}
"""Channels, of all sequences and segments, whose copies on their way keep a GPU's memory busy."""
KEPT_REGISTERS = 80
"""Of a thread, for what a walk keeps from round to round."""
COPIED = 8
"""Channels that a thread copies at once: 16 bytes of the narrow dtypes."""
ROWS_AHEAD = {False: 4, True: 8}  # rows that a walk has on their way, by whether it makes gradients
LINE = 128
"""Channels of a tile: they lie side by side in memory, and a warp moves at least a line of it at once."""
WARPS = 4
HEAD_WIDTHS = ("QK", "VALUES")
"""The extents of a layer that are lengths of a head's rows."""
ALL_CHANNELS = 1 << 20
"""More channels than there are: a tile has them all."""


def launch_plan(plan: LaunchPlan, backend: str) -> Setting:
    """How a pass streams tokens: Triton walks, in enough segments; whole tensors want tiles."""
    sizes = {
        "TILED": ONE_TOKEN if backend == "triton" else ALL_TOKENS,
        "SHORTEST": SHORTEST_WALK,
        "LANES": WALKED_LANES[plan.part] if backend in ("triton", "tilelang") else 1,
    }
    return Setting(pick(plan, sizes))


def tiles(spec: LayerSpec, program: Program, backend: str) -> Setting:
    """Tiles of tokens and channels: rows of whole lines of memory, and as many as the registers hold.

    One that sums over tokens keeps several tiles.  A walk has a row of few warps, and copies others ahead.
    Rows of heads may be shorter than a line: then a tile has no more than each thread copies at once.
    """
    sums = GRADIENTS in program.does
    widths = [power_of_two(spec.extents[name]) for name in HEAD_WIDTHS if name in spec.extents]
    if backend == "torch":
        sizes = {"CHUNK": 256, "CHANNELS": ALL_CHANNELS, "PARTS": 64}
    elif backend == HOST_C:
        sizes = {"CHUNK": 16, "CHANNELS": 32, "PARTS": 8}
    elif WALKS in program.does:
        return _walk(program)
    elif widths:
        columns = min(LINE, max(widths))
        sizes = {"CHUNK": WARPS * WARP * COPIED // columns, "CHANNELS": columns}
    else:
        sizes = {"CHUNK": 8 if sums else 32, "CHANNELS": LINE, "PARTS": 16}
    return Setting(pick(program, sizes), warps=WARPS, stages=1)


def _walk(program: Program) -> Setting:
    """One warp, and a thread as many channels as it has registers for, in powers of two, up to one copy."""
    (loop,) = (stmt for stmt in program.body if isinstance(stmt, For))
    inside = list(statements(loop.body))
    introduced = {stmt.name for stmt in inside if isinstance(stmt, Let)}
    kept = {stmt.name for stmt in inside if isinstance(stmt, Set | Add)} - introduced
    loads = [stmt.value.tensor for stmt in inside if isinstance(stmt, Let) and isinstance(stmt.value, Load)]
    rows = sum(program.tensor(name).optional is None for name in loads)
    stages = 1 + max(1, ROWS_AHEAD[GRADIENTS in program.does] // rows)
    channels = min(COPIED, power_of_two(KEPT_REGISTERS // len(kept) + 1) // 2)
    return Setting(pick(program, {"CHANNELS": WARP * channels}), 1, stages)
