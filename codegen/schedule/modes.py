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
MOST_WARPS = 4
LEAST_CHANNELS = {"triton": 1, "tilelang": 16}
"""TileLang lays out tiles of whole warps alone."""


def tiles(spec: LayerSpec, program: Program, backend: str) -> Setting:
    """Tiles of one program.

    A walk waits for each token's sum over modes, so blocks are small, and there are many: one warp where it
    holds the modes of a channel or more.
    """
    modes, most = spec.extents["MODES"], spec.extents.get("CHANNELS", ALL_CHANNELS)
    if backend == "torch":
        return Setting(pick(program, {"CHANNELS": most, "MODES": modes}))
    if backend == HOST_C:
        return Setting(pick(program, {"CHANNELS": min(8, most), "MODES": modes}))
    width = power_of_two(modes)
    held = HELD[GRADIENTS in program.does] * WARP
    warps = min(MOST_WARPS, max(1, width // held)) if backend == "triton" else MOST_WARPS
    channels = min(WARP, power_of_two(most), max(1, warps * held // width))
    channels = max(LEAST_CHANNELS[backend], channels)
    return Setting(pick(program, {"CHANNELS": channels, "MODES": width}), warps, stages=1)
