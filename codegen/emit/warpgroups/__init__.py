"""Gradients and wide recurrences of second-order Taylor maps, by hand for Hopper.

The language is Gluon; kernels that are printed from tile programs are `../gluon/`'s.

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
from functools import partial
from typing import Any

from ... import names
from ...ir.kernels import ForeignKernel
from ...ir.program import Program
from ...ir.rewrite import apart
from ...lower import ragged, window_stream
from ...lower.feature_maps import feature_map
from ...lower.linear_attention_parts import Layer
from ...lower.on_warpgroups import (
    hybrid_of,
    key_gradients_of,
    query_gradients_of,
    recurrence_of,
    states_of,
    window_of,
)
from ...mixers.linear_attention import LinearAttention
from ...names import RECURRENCE, on_warpgroups
from ...schedule.foreign import OBLONG_TILES, PRINTERS, SQUARE_TILES, printers
from ...schedule.orders import (
    HYBRID,
    KEYS_OF_OBLONGS,
    KEYS_OF_SQUARES,
    OBLONG,
    QUERIES_OF_OBLONGS,
    QUERIES_OF_SQUARES,
    SQUARE,
    WIDE,
    WINDOW,
    WINDOW_GRADIENTS,
)
from ...schedule.places import plan_of
from ...spec.model import LayerSpec
from ..gluon.kernel import GluonKernel
from ..gluon.machines import HOPPER, MACHINES
from ..layer import ScheduledForeign, ScheduledKernel
from ..triton_parameters import parameters
from ..writer import Writer
from .gradients import KeyGradients, QueryGradients, key_gradients, query_gradients
from .kernel import WarpgroupKernel
from .second_look import emit_second_look, with_second_look
from .wide import WideRecurrence

KERNELS: dict[str, Callable[[Any, ScheduledForeign], WarpgroupKernel]] = {
    WIDE: WideRecurrence,
    "query_gradients": QueryGradients,
    "key_gradients": KeyGradients,
}
"""The printers, by the names that the schedule has for them."""
PROGRAMS: dict[str, Callable[[Any], Program]] = {
    **dict.fromkeys((RECURRENCE, SQUARE, OBLONG), recurrence_of),
    QUERIES_OF_SQUARES: partial(query_gradients_of, values=SQUARE_TILES["VALUES"]),
    KEYS_OF_SQUARES: partial(key_gradients_of, values=SQUARE_TILES["VALUES"]),
    QUERIES_OF_OBLONGS: partial(query_gradients_of, values=OBLONG_TILES["VALUES"]),
    KEYS_OF_OBLONGS: partial(key_gradients_of, values=OBLONG_TILES["VALUES"]),
    "states": partial(states_of, name="states", of_queries=False),
    "query_states": partial(states_of, name="query_states", of_queries=True),
    WINDOW: partial(window_of, program=window_stream.outputs, chunk=SQUARE_TILES["CHUNK"]),
    HYBRID: hybrid_of,
    WINDOW_GRADIENTS: partial(window_of, program=window_stream.gradients, chunk=SQUARE_TILES["CHUNK"]),
}
"""What is printed by a plan of places, by the same names."""
OF_PACKED = {*PROGRAMS, WIDE}
"""Printers whose kernels go through segments of packed sequences too; gradients by hand say so themselves."""
IMPORTS = {
    "warpgroups": (
        "afresh",
        "as_dtype",
        "barrier",
        "exponential",
        "fetch",
        "fetch_apart",
        "fetch_existing",
        "fetch_numbers",
        "in_bfloat16",
        "in_float32",
        "multiplied_alone",
        "on_warpgroups",
        "read",
        "rounded",
        "running_sum",
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
        "narrow_features",
        "right_of_wide",
        "rows_of_narrow",
        "rows_of_wide",
        "store_state",
        "wide_features",
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
GLUON = ("from triton.experimental import gluon", "from triton.experimental.gluon import language as gl")
"""What they all need of Triton; more is their machines'."""


def imports(w: Writer, kernels: tuple[ScheduledKernel, ...]) -> None:
    """What a module imports of Triton for those of its kernels that are such."""
    foreign = [kernel for kernel in kernels if isinstance(kernel, ScheduledForeign)]
    for line in GLUON if foreign else ():
        w.line(line)
    for machine in dict.fromkeys(MACHINES[kernel.architecture] for kernel in foreign):
        w.call(f"from triton.experimental.gluon.language.nvidia.{machine.module} import (", machine.calls)


def kernels(spec: LayerSpec, programs: tuple[Program, ...]) -> tuple[ForeignKernel, ...]:
    """The kernels that run in place of a layer's programs."""
    by_name = {program.name: program for program in programs}
    return tuple(_kernel(spec, by_name[PRINTERS[name].program], name) for name in printers(spec))


def _kernel(spec: LayerSpec, program: Program, printer: str) -> ForeignKernel:
    """How a kernel is launched: as its program is, unless its printer goes about it differently."""
    if printer in PROGRAMS:
        return _printed(spec, printer)
    kernel = _foreign(program, printer)
    match spec, printer:
        case LinearAttention(), "query_gradients":
            kernel = query_gradients(Layer(spec, feature_map(spec)), kernel)
        case LinearAttention(), "key_gradients":
            kernel = key_gradients(Layer(spec, feature_map(spec)), kernel)
    return with_second_look(spec, kernel)


def _foreign(program: Program, printer: str) -> ForeignKernel:
    """How it is launched where its program is."""
    tiles = PRINTERS[printer].tiles
    without = () if printer in OF_PACKED else ragged.FLAGS
    return ForeignKernel(
        name=on_warpgroups(program.name),
        summary=f"{program.summary.removesuffix('.')}, on Hopper's warpgroups.",
        instead_of=program.name,
        printer=printer,
        grid=tuple(ragged.off(axis) for axis in program.grid if axis.name != "feature_block"),
        tensors=tuple(tensor for tensor in program.tensors if tensor.optional not in without),
        sizes=tuple(size for size in program.sizes if size not in program.under),
        scalars=program.scalars,
        flags=tuple(flag for flag in program.flags if flag not in without),
        constants=(*(c for c in ("SEGMENT",) if c in program.constants), *tiles),
        bounds=dict(tiles),
        decides=PRINTERS[printer].decides,
    )


def _printed(spec: LayerSpec, printer: str) -> ForeignKernel:
    """The same of a kernel that is printed from a tile program."""
    program = PROGRAMS[printer](spec)
    kernel = _foreign(program, printer)
    _, look = apart(program)
    kernel = replace(kernel, program=program)
    if look is None:
        return with_second_look(spec, kernel)
    name = names.second_look(kernel.name)
    look = replace(look, name=name, sizes=kernel.sizes, constants=kernel.constants)
    return replace(kernel, second_look=look)


def printed_for(scheduled: ScheduledForeign, architecture: str) -> ScheduledForeign | None:
    """A kernel for such GPUs, if it can be printed for them: those by hand are Hopper's alone."""
    kernel, suits = scheduled.kernel, MACHINES[architecture].suits
    by_plan = kernel.program is not None and suits(plan_of(kernel, {}))
    return replace(scheduled, architecture=architecture) if by_plan or architecture == HOPPER else None


def emit(w: Writer, spec: LayerSpec, scheduled: ScheduledForeign) -> None:
    """Print one kernel, and before it the function to which it leaves its second look."""
    emit_second_look(w, scheduled)
    if scheduled.kernel.program is not None:
        GluonKernel(scheduled).emit(w)
        return
    KERNELS[scheduled.kernel.printer](spec, scheduled).emit(w, parameters(scheduled.kernel))
