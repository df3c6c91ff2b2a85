"""The policy of programs whose states are modes that turn and fade: a block of channels, with all modes."""

from __future__ import annotations

from dataclasses import replace

from ..ir.check import check
from ..ir.kernels import LaunchPlan
from ..ir.program import Program
from ..ir.traits import GRADIENTS
from ..spec.model import LayerSpec
from .budget import WARP
from .legal import ALL_TOKENS, miscompiled
from .model import HOST_C, Setting
from .sizes import MATRIX_UNIT, pick, power_of_two
from .streams import ALL_CHANNELS

HELD = {False: 16, True: 8}
"""Modes that a thread holds, by whether it makes gradients: with two poles, residue and state they are eight
registers each, and with sums for the gradients a dozen.
"""
WARPS = {"triton": 1, "tilelang": 4}
"""One warp sums over modes without a barrier; TileLang lays out tiles of whole warpgroups alone."""
LEAST_CHANNELS = {"triton": 1, "tilelang": 16}

CHUNK = {"triton": 32, "tilelang": 32, "torch": 128, HOST_C: 16}
"""Tokens that a table multiplies at once.  With 64 the tables of two warps spill."""
NUMBERS = 256
"""Of a state or a table, to each warp."""
MOST_WARPS = 16
MOST_MODES = 64
"""Modes of which two warps hold tables."""
AHEAD = 4
"""Chunks that are on their way at once: they are small."""
MOST_CHANNELS = 64
"""Columns that a block of two warps holds sums of."""
SEGMENT = 128
"""Tokens of which segments are made: whole chunks."""
SHORTEST_SEGMENT = 512
"""Tokens below which a segment's own state costs more than a fuller GPU gains."""
PROGRAMS = 528
"""Programs of two warps that a Hopper GPU runs at once, at the registers they have."""
LENGTH = 512
"""Tokens of a segment of packed sequences."""
LEAST = 32
"""Tokens from which on tables are worth their launches."""

FOURIER, LONG = {"torch": 32, HOST_C: ALL_TOKENS}, 2048
"""Tokens from which on transforms are faster than a walk; those of C are for checking walks."""
FEW_LANES = 4096
"""Channels, of all sequences, with which walks leave a GPU half idle."""
PLANS = ("chunk_plan", "packed_chunk_plan", "part_plan", "fourier_plan")


def launch_plan(spec: LayerSpec, plan: LaunchPlan, backend: str, dtype: str) -> Setting:
    """Where chunks serve, and how a call is cut: products in float32 have no matrix units on a GPU."""
    on_gpu = backend in ("triton", "tilelang")
    if plan.function == "fourier_plan":
        sizes = {"LEAST": FOURIER.get(backend, LONG), "LANES": FEW_LANES if on_gpu else ALL_TOKENS}
        return Setting(pick(plan, sizes))
    never = on_gpu and (dtype == "float32" or spec.extents["MODES"] > MOST_MODES)
    sizes = {
        "SEGMENT": SEGMENT,
        "CHUNK": _chunk(backend, dtype),
        "LENGTH": LENGTH,
        "LEAST": ALL_TOKENS if never else LEAST if plan.function == "chunk_plan" else 1,
        "SHORTEST": SHORTEST_SEGMENT,
        "PROGRAMS": PROGRAMS if on_gpu else 1,
        "FEWEST": 2,
    }
    return Setting(pick(plan, sizes))


def chunk_tiles(spec: LayerSpec, program: Program, backend: str, dtype: str) -> Setting:
    """Tiles of programs of chunks: products of a state's rows, a chunk's tokens, and the channels of a head.

    Two warps keep clear of warpgroups' products with few columns, which Triton miscompiles (`legal.py`).
    """
    modes, width = spec.extents["MODES"], spec.extents["CHANNELS"]
    sizes = {"CHUNK": _chunk(backend, dtype), "SEGMENT": SEGMENT}
    if backend in ("torch", HOST_C):
        return Setting(pick(program, sizes | {"MODES": modes, "CHANNELS": width}))
    channels = max(MATRIX_UNIT, power_of_two(width))
    if "CHANNELS" not in program.bounds:
        channels = min(channels, MOST_CHANNELS)
    sizes |= {"MODES": max(MATRIX_UNIT, power_of_two(modes)), "CHANNELS": channels}
    if backend == "tilelang":
        return Setting(pick(program, sizes), WARPS[backend], stages=1)
    wide = dtype == "float32"  # whose operands stand in registers
    setting = Setting(
        pick(program, sizes),
        min(MOST_WARPS, _warps(program, sizes) * (1 + wide)),
        stages=2 if wide or GRADIENTS in program.does else AHEAD,
    )
    return replace(setting, warps=2) if miscompiled(program, check(program), setting, dtype) else setting


def _warps(program: Program, sizes: dict[str, int]) -> int:
    """As few as hold a state, or a table in float32: blocks are small, and there are many."""
    if "MODES" not in program.constants:
        return 1
    columns = sizes["CHANNELS"] if "CHANNELS" in program.constants else 2 * sizes["CHUNK"]
    return max(2, sizes["MODES"] * columns // NUMBERS)


def _chunk(backend: str, dtype: str) -> int:
    return MATRIX_UNIT if (backend, dtype) == ("triton", "float32") else CHUNK[backend]


def tiles(spec: LayerSpec, program: Program, backend: str) -> Setting:
    """Tiles of one program.

    A walk waits for each token's sum over modes, so blocks are small, and there are many.
    """
    modes, most = spec.extents["MODES"], spec.extents.get("CHANNELS", ALL_CHANNELS)
    if backend == "torch":
        return Setting(pick(program, {"CHANNELS": most, "MODES": modes}))
    if backend == HOST_C:
        return Setting(pick(program, {"CHANNELS": min(8, most), "MODES": modes}))
    width = power_of_two(modes)
    held = HELD[GRADIENTS in program.does] * WARP * WARPS[backend]
    channels = max(LEAST_CHANNELS[backend], min(WARP, power_of_two(most), held // width))
    return Setting(pick(program, {"CHANNELS": channels, "MODES": width}), WARPS[backend], stages=1)
