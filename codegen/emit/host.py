"""Host functions and schedule table of a generated module: the same in every backend but for the launch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby

from ..ir.host import Allocate, Launch, Line, Pass
from ..ir.nodes import ACC, IO, OPERAND, STATE
from ..schedule.model import HOST_C
from .layer import ScheduledLayer, ScheduledProgram
from .writer import Writer

HELPERS = ("backward_plan", "cdiv", "forward_plan", "operand_dtype", "segment_plan", "window_plan")
"""What host functions may call of `based_ops.support.host`."""

EmitLaunch = Callable[[Writer, ScheduledProgram, dict[str, str]], None]
"""Writes the launch of a program; the dictionary gives the host expression of each parameter that has one."""


def emit_schedule(
    w: Writer, layer: ScheduledLayer, setting: Callable[[ScheduledProgram, str], list[str]]
) -> None:
    """``SCHEDULE[program][dtype]``: the keyword arguments of each launch."""
    tables = {
        scheduled.program.name: {
            dtype: setting(scheduled, dtype)
            for dtype, chosen in scheduled.schedule.settings.items()
            if chosen.used
        }
        for scheduled in layer.programs
    }
    for plan in layer.plans:
        tables[plan.program] = {
            dtype: [f"{name}={value}" for name, value in chosen.constants.items()]
            for dtype, chosen in plan.settings.items()
        }
    w.line("SCHEDULE = {")
    with w.indented():
        for name, settings in tables.items():
            w.line(f'"{name}": {{')
            with w.indented():
                for dtype, arguments in settings.items():
                    w.call(f"torch.{dtype}: dict(", arguments, "),")
            w.line("},")
    w.line("}")


def used_helpers(text: str, helpers: Iterable[str] = HELPERS) -> str:
    """The helpers that a text calls, as an import statement names them."""
    return ", ".join(name for name in helpers if re.search(rf"\b{name}\(", text))


def emit_passes(w: Writer, layer: ScheduledLayer, launch: EmitLaunch) -> None:
    """forward, backward and step."""
    for index, function in enumerate(layer.passes):
        if index:
            w.blank(2)
        w.call(f"def {function.name}(", function.parameters, "):")
        with w.indented():
            w.line(f'"""{function.summary}"""')
            for when, group in groupby(function.body, partial(_condition, function)):
                steps = list(group)
                if when:
                    if buffers := [step.name for step in steps if isinstance(step, Allocate)]:
                        w.line(f"{' = '.join(buffers)} = None")
                    w.line(f"if {when}:")
                with w.indented() if when else nullcontext():
                    for step in steps:
                        match step:
                            case Line(text):
                                w.line(text)
                            case Allocate():
                                _allocate(w, layer, replace(step, when=None) if when else step)
                            case Launch(program, arguments):
                                launch(w, layer.find(program), arguments)
            results = ", ".join(function.results)
            w.line(f"return {results}")


def _condition(function: Pass, step: Line | Allocate | Launch) -> str | None:
    """Under which condition a step is there at all.  What a pass returns always is, if only empty."""
    if isinstance(step, Line) or step.when is None:
        return None
    returned = isinstance(step, Allocate) and step.name in function.results
    return None if returned else step.when


def _allocate(w: Writer, layer: ScheduledLayer, step: Allocate) -> None:
    dtype = _dtype(layer, step.dtype)
    if step.when == "False":
        w.line(f"{step.name} = q.new_empty(0, dtype={dtype})")
        return
    shape = ", ".join(step.shape)  # as arguments: PyTorch takes half as long again to read a tuple
    if step.when is not None:
        shape = f"({shape}) if {step.when} else 0"
    extra = "" if step.dtype == IO else f", dtype={dtype}"
    w.line(f"{step.name} = q.new_empty({shape}{extra})")


def _dtype(layer: ScheduledLayer, role: str) -> str:
    """The host expression of a role's dtype; the torch backend alone takes float64, and keeps it."""
    if role == IO:
        return "q.dtype"
    if role == OPERAND and layer.backend not in ("torch", HOST_C):  # where operands are as wide as sums
        return "operand_dtype(q)"
    assert role in (ACC, OPERAND, STATE)
    fixed = layer.spec.kept_dtype if role == STATE else "float32"
    return (
        f"torch.float64 if q.dtype == torch.float64 else torch.{fixed}"
        if layer.backend == "torch"
        else f"torch.{fixed}"
    )
