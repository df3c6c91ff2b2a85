"""The policy of programs whose states are modes that turn and fade: a block of channels, with all modes."""

from __future__ import annotations

from ..ir.program import Program
from ..ir.traits import GRADIENTS
from ..spec.model import LayerSpec
from .budget import WARP
from .model import HOST_C, Setting
from .sizes import pick, power_of_two
from .streams import ALL_CHANNELS

HELD = {False: 16, True: 8}
"""Modes that a thread holds, by whether it makes gradients: with two poles, residue and state they are eight
registers each, and with sums for the gradients a dozen.
"""
WARPS = {"triton": 1, "tilelang": 4}
"""One warp sums over modes without a barrier; TileLang lays out tiles of whole warpgroups alone."""
LEAST_CHANNELS = {"triton": 1, "tilelang": 16}


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
