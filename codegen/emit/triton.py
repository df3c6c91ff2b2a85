"""Print a scheduled layer as a Triton module."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.flags import Chosen
from ..ir.nodes import Binary, Const, Expr, Var
from ..ir.program import Tensor, loads_ahead, uses_operands
from . import triton_expression, warpgroups
from .host import emit_passes, emit_schedule, host_helpers, used_helpers
from .layer import ScheduledForeign, ScheduledKernel, ScheduledLayer
from .triton_kernel import emit_kernel
from .triton_parameters import sizes_and_scalars
from .writer import Writer, header

HELPERS = ("cleared", "dithered", "launch", "operand", "packed_plan", "packed_stream_plan")
"""What kernels and host functions may call of `based_ops.support.triton`."""


def emit(layer: ScheduledLayer) -> str:
    """The Triton module of a layer."""
    body = Writer()
    emit_schedule(body, layer, layer.kernels, lambda scheduled, dtype: _setting(layer, scheduled, dtype))
    for scheduled in layer.kernels:
        body.blank(2)
        if isinstance(scheduled, ScheduledForeign):
            warpgroups.emit(body, layer.spec, scheduled)
        else:
            emit_kernel(body, scheduled)
    body.blank(2)
    emit_passes(body, layer, _launch)

    w = Writer()
    header(w, layer.spec.origin, "triton", f"Triton kernels of {layer.spec.name}.")
    w.line("import torch")
    w.line("import triton")
    w.line("import triton.language as tl")
    w.blank()
    if used := used_helpers(body.text(), [name for name in host_helpers(layer) if name not in HELPERS]):
        w.line(f"from based_ops.support.host import {used}")
    if functions := used_helpers(body.text(), triton_expression.OURS.values()):
        w.line(f"from based_ops.support.elementary import {functions}")
    w.line(f"from based_ops.support.triton import {used_helpers(body.text(), HELPERS)}")
    for module, helpers in warpgroups.IMPORTS.items():
        if names := used_helpers(body.text(), helpers):
            w.call(f"from based_ops.support.{module} import (", names.split(", "))
    warpgroups.imports(w, layer.kernels)
    w.blank()
    return w.text() + "\n" + body.text()


def _setting(layer: ScheduledLayer, scheduled: ScheduledKernel, dtype: str) -> list[str]:
    setting = scheduled.schedule.settings[dtype]
    warps = f"num_warps={setting.warps}"
    constants = [f"{name}={value}" for name, value in setting.constants.items()]
    # Where the text says itself what is loaded ahead, it has the number of stages.
    written_out = [f"STAGES={setting.stages}", warps]
    if isinstance(scheduled, ScheduledForeign):
        return [*constants, *written_out]
    if uses_operands(scheduled.program):
        constants.append(f"OPERAND=operand(tl.{layer.spec.operand_dtype(dtype)})")
    if loads_ahead(scheduled.program):
        return [*constants, *written_out]
    return [*constants, warps, f"num_stages={setting.stages}"]


def _launch(w: Writer, scheduled: ScheduledKernel, arguments: Mapping[str, str], settings: str) -> None:
    kernel = scheduled.kernel
    sizes = {name: arguments[name] for name in (*kernel.sizes, *kernel.flags)}
    # The grid is counted in sizes and flags of the launch, and in constants of its settings; it may depend on
    # nothing else.
    extents = [_grid_extent(axis.extent, sizes, set(kernel.constants)) for axis in kernel.grid]
    tensors = [arguments[tensor.name] for tensor in kernel.tensors]
    numbers = [
        *(_strides(tensor, arguments[tensor.name]) for tensor in kernel.tensors if tensor.free),
        *(arguments[name] for name in (*sizes_and_scalars(kernel), *kernel.flags)),
    ]
    w.call(
        "launch(",
        [
            kernel.name,
            f"lambda c: ({' * '.join(extents)},)",
            _tuple(tensors),
            _tuple(numbers),
            settings,
        ],
    )


def _strides(tensor: Tensor, name: str) -> str:
    """The strides of a tensor that calls choose, all but the last or the first alone; of an absent one 0."""
    if tensor.slots:
        return f"{name}.stride(0)"
    if tensor.optional is None:
        return f"*{name}.stride()[:-1]"
    zeros = _tuple(["0"] * (len(tensor.dims) - 1))
    return f"*({zeros} if {name} is None else {name}.stride()[:-1])"


def _tuple(items: list[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _grid_extent(extent: Expr, sizes: dict[str, str], constants: set[str]) -> str:
    match extent:
        case Const(value):
            return str(value)
        case Var(name):
            return f'c["{name}"]' if name in constants else sizes[name]
        case Chosen(flag, x, y):
            yes, no = (_grid_extent(part, sizes, constants) for part in (x, y))
            if sizes[flag] in ("True", "False"):
                return yes if sizes[flag] == "True" else no
            return f"({yes} if {sizes[flag]} else {no})"
        case Binary("cdiv", x, y):
            return f"cdiv({_grid_extent(x, sizes, constants)}, {_grid_extent(y, sizes, constants)})"
        case _:
            raise TypeError(f"grid extent {extent}")
