"""Linear attention with second-order Taylor or elementwise maps, and sliding windows, on Hopper's warpgroups.

The language is Gluon.

The algorithms are those of `lower/`.  They are written out here, because all that makes
them fast is places and times, of which a tile program says nothing:

* features are made in registers, by exchange, and so are their gradients (`based_ops/support/exchange*.py`);
  what products read on the left enters from there, what they read on the right from shared memory;
* a state is kept transposed in registers, and rounded once a chunk into shared memory;
* rows are copied ahead in the background, and products are waited for where their results are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...ir.nodes import Program
from ...lower.feature_maps import feature_map
from ...lower.linear_attention_parts import Layer
from ...mixers.linear_attention import LinearAttention
from ...mixers.sliding_window import SlidingWindow
from ...names import RECURRENCE, on_warpgroups
from ...schedule.legal import (
    EXCHANGED,
    SQUARE_TILES,
    WARPGROUP_TILES,
    WIDE_TILES,
    exchanges,
    gradients_exchange,
    halves_exchange,
    maps_squares,
    window_streams,
)
from ...spec.model import Elementwise, LayerSpec
from ..layer import ScheduledProgram
from ..writer import Writer
from .elementwise import ElementwiseRecurrence
from .gradients import KeyGradients, QueryGradients, key_gradients, query_gradients
from .kernel import WarpgroupKernel
from .recurrence import Recurrence
from .states import States
from .wide import WideRecurrence
from .window import WindowGradients, WindowOutputs
from .window import program as window_program


def _recurrence(spec: LinearAttention, scheduled: ScheduledProgram) -> WarpgroupKernel:
    if isinstance(spec.feature_map, Elementwise):
        return ElementwiseRecurrence(spec, scheduled)
    return (Recurrence if spec.head_dims.qk <= EXCHANGED else WideRecurrence)(spec, scheduled)


KERNELS: dict[str, Callable[[Any, ScheduledProgram], WarpgroupKernel]] = {
    on_warpgroups(RECURRENCE): _recurrence,
    on_warpgroups("states"): States,
    on_warpgroups("query_states"): States,
    on_warpgroups("query_gradients"): QueryGradients,
    on_warpgroups("key_gradients"): KeyGradients,
    on_warpgroups("outputs"): WindowOutputs,
    on_warpgroups("gradients"): WindowGradients,
}
"""What prints each of these programs."""
IMPORTS = {
    "warpgroups": (
        "afresh",
        "as_dtype",
        "barrier",
        "exponential",
        "fetch",
        "fetch_existing",
        "fetch_numbers",
        "in_bfloat16",
        "in_float32",
        "on_warpgroups",
        "read",
        "rounded",
        "where_bits",
        "write",
    ),
    "exchange": (
        "beside",
        "features",
        "features_back",
        "features_back_rest",
        "four",
        "halves",
        "left_of_wide",
        "load_state",
        "right_of_wide",
        "rows_of_narrow",
        "rows_of_wide",
        "store_state",
    ),
    "exchange_wide": ("crossed", "doubled", "rows_of_crossed", "rows_of_singles", "singles"),
    "quadratic": (
        "add_sums",
        "add_weighted_sums",
        "load_sums",
        "quadratic_form",
        "quadratic_form_back",
        "store_sums",
    ),
}
"""What kernels may call of each module of `based_ops.support`."""
GLUON = (
    "from triton.experimental import gluon",
    "from triton.experimental.gluon import language as gl",
    "from triton.experimental.gluon.language.nvidia.hopper import (",
    "    async_copy, fence_async_shared, warpgroup_mma, warpgroup_mma_wait,",
    ")",
)
"""What they need of Triton."""


def programs(spec: LayerSpec, portable: tuple[Program, ...]) -> tuple[Program, ...]:
    """The layer's programs that have a version for warpgroups: without a body, which is printed here."""
    if isinstance(spec, SlidingWindow):
        return tuple(
            window_program(program)
            for program in portable
            if any(window_streams(spec, program.name, dtype) for dtype in spec.dtypes)
        )
    if not isinstance(spec, LinearAttention):
        return ()
    for serves, tiles in ((halves_exchange, WIDE_TILES), (maps_squares, SQUARE_TILES)):
        if any(serves(spec, dtype) for dtype in spec.dtypes):
            return tuple(_in_place_of(program, tiles) for program in portable if program.name == RECURRENCE)
    if not any(exchanges(spec, dtype) for dtype in spec.dtypes):
        return ()
    layer = Layer(spec, feature_map(spec))
    found = [_in_place_of(program) for program in portable if program.name in (RECURRENCE, "states")]
    if any(gradients_exchange(spec, dtype) for dtype in spec.dtypes):
        found += [_in_place_of(program) for program in portable if program.name == "query_states"]
        found += [
            query_gradients(layer, on_warpgroups("query_gradients")),
            key_gradients(layer, on_warpgroups("key_gradients")),
        ]
    return tuple(found)


def _in_place_of(program: Program, tiles: dict[str, int] = WARPGROUP_TILES) -> Program:
    return replace(
        program,
        name=on_warpgroups(program.name),
        summary=f"{program.summary.removesuffix('.')}, on Hopper's warpgroups.",
        grid=tuple(axis for axis in program.grid if axis.name != "feature_block"),
        constants=("SEGMENT", *tiles),
        body=(),
        flags=program.flags or ("ALL",),  # sums of segments have none of their own
        bounds=dict(tiles),
    )


def emit(w: Writer, spec: LayerSpec, scheduled: ScheduledProgram, parameters: list[str]) -> None:
    """Print one kernel."""
    KERNELS[scheduled.program.name](spec, scheduled).emit(w, parameters)
