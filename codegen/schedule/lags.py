"""The policy of programs that go through the lags of filters, each channel by itself."""

from __future__ import annotations

from ..ir.kernels import LaunchPlan
from ..ir.program import Program
from ..ir.traits import GRADIENTS
from ..spec.model import LayerSpec
from .legal import ALL_TOKENS
from .model import HOST_C, Setting
from .sizes import pick, power_of_two
from .streams import ALL_CHANNELS, LINE

PLANS = "transform_plan", "sum_plan"
LEAST_CHANNELS = 16
"""Channels of a tile of TileLang's at least."""
LEAST = {"torch": 32, HOST_C: ALL_TOKENS}
"""Tokens and taps from which on transforms are faster; loops of C are for checking programs."""
LONG = 1024
"""The same on a GPU, where a lag costs a tile of loads from the caches: by measurement (docs/lab-book.md)."""


PART = {"torch": 2048, HOST_C: 32}
"""Tokens of a part of which gradients are summed up by one program, at least."""
SHORTEST_PART = 128
"""The same on a GPU."""
PROGRAMS = 2048
"""That sum up parts at once: more than a GPU runs, and what they leave to be summed is little."""


def launch_plan(spec: LayerSpec, plan: LaunchPlan, backend: str) -> Setting:
    """From where on filters are transformed, and how many parts of the tokens are summed up."""
    lanes = PROGRAMS if "CHANNELS" in spec.extents else PROGRAMS * LINE
    sizes = {"LEAST": LEAST.get(backend, LONG), "LENGTH": PART.get(backend, SHORTEST_PART), "LANES": lanes}
    return Setting(pick(plan, sizes))


def tiles(spec: LayerSpec, program: Program, backend: str) -> Setting:
    """Rows of whole lines of memory, or of all that share a filter.

    Sums over tokens take twice the rows and warps of what is made of each: by measurement, for their rounds
    are so short that the fewest of them are the fastest.
    """
    most = spec.extents.get("CHANNELS", ALL_CHANNELS)
    if backend == "torch":
        return Setting(pick(program, {"CHUNK": 256, "LAGS": 256, "CHANNELS": most}))
    if backend == HOST_C:
        return Setting(pick(program, {"CHUNK": 16, "LAGS": 8, "CHANNELS": min(32, most)}))
    channels = max(LEAST_CHANNELS, min(LINE, power_of_two(most)))
    rows, warps = (64, 8) if GRADIENTS in program.does else (32, 4)
    return Setting(pick(program, {"CHUNK": rows, "LAGS": rows, "CHANNELS": channels}), warps=warps, stages=1)
