"""Print a scheduled layer as a Triton module."""

from __future__ import annotations

from ..ir.nodes import Binary, Const, Expr, Var, loads_ahead, uses_operands
from ..names import is_on_warpgroups
from . import warpgroups
from .host import emit_passes, emit_schedule, used_helpers
from .layer import ScheduledLayer, ScheduledProgram
from .triton_kernel import Kernel, parameters
from .writer import Writer, header


def emit(layer: ScheduledLayer) -> str:
    """The Triton module of a layer."""
    body = Writer()
    emit_schedule(body, layer, lambda scheduled, dtype: _setting(layer, scheduled, dtype))
    for scheduled in layer.programs:
        body.blank(2)
        if is_on_warpgroups(scheduled.program.name):
            warpgroups.emit(body, layer.spec, scheduled, parameters(scheduled.program))
        else:
            Kernel(body, scheduled).emit()
    body.blank(2)
    emit_passes(body, layer, _launch)

    w = Writer()
    header(w, layer.spec.name, "triton", f"Triton kernels of {layer.spec.name}.")
    w.line("import torch")
    w.line("import triton")
    w.line("import triton.language as tl")
    w.blank()
    w.line(f"from based_ops.support.host import {used_helpers(body.text())}")
    w.line("from based_ops.support.triton import launch, operand")
    gluon = False
    for module, helpers in warpgroups.IMPORTS.items():
        if names := used_helpers(body.text(), helpers):
            w.call(f"from based_ops.support.{module} import (", names.split(", "))
            gluon = True
    if gluon:
        for line in warpgroups.GLUON:
            w.line(line)
    w.blank()
    return w.text() + "\n" + body.text()


def _setting(layer: ScheduledLayer, scheduled: ScheduledProgram, dtype: str) -> list[str]:
    setting = scheduled.schedule.settings[dtype]
    program, warps = scheduled.program, f"num_warps={setting.warps}"
    constants = [f"{name}={value}" for name, value in setting.constants.items()]
    on_warpgroups = is_on_warpgroups(program.name)
    if uses_operands(program) and not on_warpgroups:
        constants.append(f"OPERAND=operand(tl.{layer.spec.operand_dtype(dtype)})")
    if on_warpgroups or loads_ahead(program):  # the text says itself what is loaded ahead
        return [*constants, f"STAGES={setting.stages}", warps]
    return [*constants, warps, f"num_stages={setting.stages}"]


def _launch(w: Writer, scheduled: ScheduledProgram, arguments: dict[str, str]) -> None:
    program = scheduled.program
    sizes = {name: arguments.get(name, name) for name in program.sizes}
    # The grid is counted in sizes of the launch and constants of its settings; it may depend on nothing else.
    extents = [_grid_extent(axis.extent, sizes, set(program.constants)) for axis in program.grid]
    tensors = [arguments.get(t.name, t.name) for t in program.tensors]
    numbers = [
        *(f"*{arguments.get(t.name, t.name)}.stride()[:-1]" for t in program.tensors if t.strided),
        *sizes.values(),
        *program.scalars,
        *(arguments[flag] for flag in program.flags),
    ]
    w.call(
        "launch(",
        [
            program.name,
            f"lambda c: ({' * '.join(extents)},)",
            _tuple(tensors),
            _tuple(numbers),
            f'SCHEDULE["{program.name}"][q.dtype]',
        ],
    )


def _tuple(items: list[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _grid_extent(extent: Expr, sizes: dict[str, str], constants: set[str]) -> str:
    match extent:
        case Const(value):
            return str(value)
        case Var(name):
            return f'c["{name}"]' if name in constants else sizes[name]
        case Binary("cdiv", x, y):
            return f"cdiv({_grid_extent(x, sizes, constants)}, {_grid_extent(y, sizes, constants)})"
        case _:
            raise TypeError(f"grid extent {extent}")
