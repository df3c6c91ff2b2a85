"""The policy of programs that make features: tiles that hold all features of their tokens."""

from __future__ import annotations

from math import prod

from ..ir.check import Types, check, infer
from ..ir.fuse import statements
from ..ir.kernels import LaunchPlan
from ..ir.nodes import Add, Dot, Let, Load, Transpose
from ..ir.program import Program, loads_ahead
from ..ir.traits import GRADIENTS
from .legal import WARPGROUP_ROWS, miscompiled, products, resolve
from .model import HOST_C, Setting
from .sizes import pick, power_of_two

HELD = {False: 8192, True: 4096}
"""Features that a block holds at once, by whether it makes gradients, for which it holds several tiles."""
SHORTEST_SEGMENT = 128
"""Tokens below which sums for the parameters are not worth their memory."""
PROGRAMS = 528
"""Programs that a Hopper GPU runs at once: four on each of its multiprocessors."""
LEAST, LONGEST = 16, 64
"""Tokens of a tile."""
FEW_PRODUCTS = 4
"""Products whose operands a block holds beside its tiles."""
HELD_WEIGHTS = 8192
"""Sums that two warps hold beside tiles of few tokens."""
AHEAD = 3
"""Tiles of a walk that are in memory at once, on their way but for one."""
PARTS = 16
"""Segments of which a program sums what they add to a row of a parameter."""


def launch_plan(plan: LaunchPlan, backend: str) -> Setting:
    """In how many segments a backward pass goes through its tokens: one where nothing runs side by side."""
    programs = PROGRAMS if backend in ("triton", "tilelang") else 1
    return Setting(pick(plan, {"SHORTEST": SHORTEST_SEGMENT, "PROGRAMS": programs, "FEWEST": 1}))


def tiles(program: Program, backend: str, dtype: str) -> Setting:
    """As many tokens as registers hold the features of."""
    if backend == "torch":
        return Setting(pick(program, {"CHUNK": 256, "PARTS": 64}))
    if backend == HOST_C:
        return Setting(pick(program, {"CHUNK": LEAST, "PARTS": PARTS}))
    types, sizes = check(program), {"CHUNK": _chunk(program), "PARTS": PARTS}
    weights, count = _weights(program), len([*products(program, types)])
    stages = AHEAD if backend == "triton" and loads_ahead(program) else 1
    if count and dtype == "float32":  # whose operands stand in registers
        return Setting(pick(program, sizes | {"CHUNK": LEAST}), warps=8, stages=stages)
    if count > FEW_PRODUCTS or weights:
        sizes["CHUNK"] = LEAST
    setting = Setting(pick(program, sizes), warps=8 if weights > HELD_WEIGHTS else 4, stages=stages)
    # Two warps keep off a warpgroup's instructions: see `policy._warps`.
    doubtful = miscompiled(program, types, setting, dtype) or _transposes_results(program, types, setting)
    if doubtful or 0 < weights <= HELD_WEIGHTS:
        return Setting(pick(program, sizes | {"CHUNK": LEAST}), warps=2, stages=stages)
    return setting


def _chunk(program: Program) -> int:
    widths = [tensor.dims[-1] for tensor in program.tensors]
    widest = max(power_of_two(width) for width in widths if isinstance(width, int))
    return min(LONGEST, max(LEAST, HELD[GRADIENTS in program.does] // widest))


def _weights(program: Program) -> int:
    """Numbers of learned matrices whose gradients a program sums."""
    shapes = [[n for n in x.dims if isinstance(n, int)] for x in program.tensors if "segments" in x.dims]
    return sum(prod(map(power_of_two, shape)) for shape in shapes if len(shape) > 1)


def _transposes_results(program: Program, types: Types, setting: Setting) -> bool:
    """Whether a warpgroup's product reads a transposed tile that was computed."""
    made = {s.name: s.value for s in statements(program.body) if isinstance(s, Let)}
    for stmt in statements(program.body):
        if not isinstance(stmt, Let | Add) or not isinstance(dot := stmt.value, Dot):
            continue
        sides = [side.x.name for side in (dot.x, dot.y) if isinstance(side, Transpose)]
        rows = infer(dot.x, types, program).shape[0]
        if resolve(rows, setting.constants) % WARPGROUP_ROWS == 0:
            if any(not isinstance(made[name], Load) for name in sides):
                return True
    return False
