"""Print scheduled programs as TileLang.

The CUDA module and the one for TileLang's C target come from the same printer: they differ in their
schedules, that is in tile sizes and in where the tiles live.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.flags import nested
from ..ir.fuse import fuse, statements
from ..ir.nodes import For, Store
from ..ir.program import GROUPED, Program
from ..schedule.budget import WARP
from ..schedule.model import HOST_C
from ..schedule.scopes import scopes
from .host import emit_passes, emit_schedule, host_helpers, used_helpers
from .layer import ScheduledKernel, ScheduledLayer, ScheduledProgram
from .tilelang_kernel import emit_kernel
from .tilelang_target import FUNCTIONS, Target, passed_sizes
from .writer import Writer, header

KERNEL_HELPERS = (
    *("ahead", "aligned", "coordinates", "dithered", "dot"),
    *("gathering", "head_of", "kernel", "running_sum", "slot_of", "tensor"),
)
OURS = sorted(name for name in FUNCTIONS.values() if not name.startswith("tl."))


def emit(layer: ScheduledLayer) -> str:
    """The TileLang module of a layer."""
    target = Target(on_host=layer.backend == HOST_C, state_dtype=layer.spec.kept_dtype)
    body = Writer()
    emit_schedule(
        body, layer, layer.programs, lambda scheduled, dtype: _setting(target, layer, scheduled, dtype)
    )
    for scheduled in layer.programs:
        fused = nested(fuse(scheduled.program, scheduled.types))
        stores = dict.fromkeys(stmt.tensor for stmt in statements(fused) if isinstance(stmt, Store))
        body.blank(2)
        body.call("@kernel(stores=(", [f'"{name}"' for name in stores], ",))" if len(stores) == 1 else "))")
        emit_kernel(body, scheduled, fused, scopes(fused, scheduled.types, layer.backend), target)
    body.blank(2)
    emit_passes(body, layer, _launch)

    w = Writer()
    where = "the host, through C" if target.on_host else "CUDA"
    header(w, layer.spec.origin, "tilelang", f"TileLang kernels of {layer.spec.name} for {where}.")
    w.line("from math import prod")
    w.blank()
    w.line("import tilelang.language as tl")
    w.line("import torch")
    w.blank()
    text = body.text()
    support = "based_ops.support.tilelang_cpu" if target.on_host else "based_ops.support.tilelang"
    functions = "based_ops.support.tilelang_functions"
    for module, helpers in (
        ("based_ops.support.host", host_helpers(layer)),
        (support, KERNEL_HELPERS),
        (functions, OURS),
    ):
        if used := used_helpers(text, helpers):
            w.line(f"from {module} import {used}")
    w.blank()
    return w.text() + "\n" + text


def _setting(target: Target, layer: ScheduledLayer, scheduled: ScheduledProgram, dtype: str) -> list[str]:
    setting = scheduled.schedule.settings[dtype]
    io = "float32" if target.on_host else dtype
    operand = "float32" if target.on_host else layer.spec.operand_dtype(dtype)
    values = {"IO": f'"{io}"', "OPERAND": f'"{operand}"', "STAGES": setting.stages}
    constants = setting.constants | {name: values[name] for name in target.constants(scheduled.program)}
    threads = 1 if target.on_host else WARP * setting.warps
    return [*(f"{name}={value}" for name, value in constants.items()), f"THREADS={threads}"]


def _launch(w: Writer, scheduled: ScheduledKernel, arguments: Mapping[str, str], settings: str) -> None:
    kernel = scheduled.kernel
    assert isinstance(kernel, Program)
    tensors = [tensor.name for tensor in kernel.tensors]
    sizes = (arguments[name].replace("None", "0") for name in passed_sizes(kernel))
    # nvcc fuses other multiplications and additions in a loop than outside of one, and several tokens are to
    # have the bits of single ones: so one token is a loop of one.
    loops = {s.several for s in statements(kernel.body) if isinstance(s, For)} - {None, GROUPED}
    flags = {flag: "True" if flag in loops else arguments[flag] for flag in kernel.flags}
    w.call(
        f"{kernel.name}(",
        [
            *(arguments[name] for name in (*tensors, *kernel.scalars)),
            *sizes,
            *(f"{flag}={value}" for flag, value in flags.items()),
            f"**{settings}",
        ],
    )
