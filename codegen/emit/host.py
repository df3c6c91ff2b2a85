"""Host functions and schedule table of a generated module: the same in every backend but for the launch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from itertools import groupby
from typing import TypeVar

from ..ir.host import (
    Absent,
    Allocate,
    And,
    Bind,
    Call,
    Compare,
    Constant,
    Delegate,
    Either,
    Extent,
    Launch,
    LayOut,
    Literal,
    Multiple,
    Name,
    Not,
    Or,
    Pass,
    Plan,
    Plus,
    Present,
    ReadSizes,
    Serves,
    Some,
    Step,
    Times,
    Value,
)
from ..ir.kernels import TENSOR, TRUTH, parameters
from ..ir.nodes import ACC, IO, OPERAND, STATE, WIDE, Comment
from ..schedule.model import HOST_C
from .layer import ScheduledKernel, ScheduledLayer
from .writer import Writer

HELPERS = ("cdiv", "cleared", "lcm", "operand_dtype", "packed_plan")
"""What host functions may call of `based_ops.support.host`, besides the functions of launch plans."""
SERVES = "on_warpgroups"
"""Of `based_ops.support.warpgroups`: whether tensors suit kernels for warpgroups."""
LEFT_OUT = {TENSOR: "None", TRUTH: "False"}
"""What a parameter is that a caller leaves out."""
EITHER, OR, AND, NOT, COMPARED, PLUS, TIMES, ATOM = range(8)
"""How tightly the operators of Python bind."""

K = TypeVar("K", bound=ScheduledKernel)
EmitLaunch = Callable[[Writer, ScheduledKernel, Mapping[str, str], str], None]
"""Writes the launch of a kernel, given the text of every parameter, and of its settings for the call."""


def emit_schedule(
    w: Writer, layer: ScheduledLayer, kernels: Iterable[K], setting: Callable[[K, str], list[str]]
) -> None:
    """``SCHEDULE[kernel][dtype]``: the keyword arguments of each launch."""
    tables = {
        scheduled.kernel.name: {
            dtype: setting(scheduled, dtype)
            for dtype, chosen in scheduled.schedule.settings.items()
            if chosen.used
        }
        for scheduled in kernels
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


def used_helpers(text: str, helpers: Iterable[str]) -> str:
    """The helpers that a text calls, as an import statement names them."""
    called = set(re.findall(r"\b(\w+)\(", text))
    return ", ".join(name for name in helpers if name in called)


def host_helpers(layer: ScheduledLayer) -> list[str]:
    """What the passes of a layer may call of `based_ops.support.host`."""
    called = [step.function for part in layer.passes for step in part.body if isinstance(step, Call)]
    return sorted({*HELPERS, *called, *(plan.function for part in layer.passes for plan in part.plans)})


def emit_passes(w: Writer, layer: ScheduledLayer, launch: EmitLaunch) -> None:
    """forward, backward and step."""
    for index, function in enumerate(layer.passes):
        if index:
            w.blank(2)
        _Function(w, layer, function, launch).emit()


class _Function:
    """Prints one pass."""

    def __init__(self, w: Writer, layer: ScheduledLayer, function: Pass, launch: EmitLaunch) -> None:
        self.w, self.layer, self.function, self.launch = w, layer, function, launch
        self.names = [parameter.name for parameter in function.parameters]
        self.head = [f"{x.name}={LEFT_OUT[x.kind]}" if x.left_out else x.name for x in function.parameters]

    def emit(self) -> None:
        w, function = self.w, self.function
        w.call(f"def {function.name}(", self.head, "):")
        with w.indented():
            w.line(f'"""{function.summary}"""')
            for when, group in groupby(function.body, self._condition):
                steps = list(group)
                if when:
                    if buffers := [step.name for step in steps if isinstance(step, Allocate)]:
                        w.line(f"{' = '.join(buffers)} = None")
                    w.line(f"if {self.text(when)}:")
                with w.indented() if when else nullcontext():
                    for step in steps:
                        self._step(step)
            w.line(f"return {', '.join(function.results)}")

    def _condition(self, step: Step | Comment) -> Value | None:
        """Under which condition a step is there at all.  What a pass returns always is, if only empty."""
        if isinstance(step, Launch) or isinstance(step, Allocate) and step.name not in self.function.results:
            return step.when
        return None

    def _step(self, step: Step | Comment) -> None:
        w = self.w
        match step:
            case Comment(words):
                w.line(f"# {words}")
            case ReadSizes(tensor, names):
                extents = ", ".join(name or "_" for name in names)
                w.line(f"{extents}{',' if len(names) == 1 else ''} = {tensor}.shape")
            case Bind(values):
                w.line(f"{', '.join(values)} = {self._bound(list(values.values()))}")
            case LayOut(sequences, tokens, length, names):
                size = self.text(length)
                w.call(f"{', '.join(names)} = packed_plan(", [sequences, self.text(tokens), size, size])
            case Plan():
                w.line(f"{', '.join(step.results)} = {self._plan(step)}")
            case Allocate():
                self._allocate(step)
            case Launch(kernel, arguments):
                scheduled = self.layer.find(kernel)
                given = {
                    name: self.text(arguments.get(name, Name(name))) for name in parameters(scheduled.kernel)
                }
                self.launch(w, scheduled, given, self._entry(kernel))
            case Call(function, results):
                w.call(f"{', '.join(results)} = {function}(", self.names)
            case Delegate(to, when):
                w.line(f"if {self.text(when)}:")
                with w.indented():
                    w.call(f"return {to}(", self.names)
            case _:
                raise TypeError(f"no host text for {type(step).__name__}")

    def _bound(self, values: list[Value]) -> str:
        """The values of several names; of those that one condition chooses, it is asked once."""
        chosen = [value for value in values if isinstance(value, Either)]
        if 1 < len(values) == len(chosen) and len({value.condition for value in chosen}) == 1:
            yes = ", ".join(self.text(value.yes) for value in chosen)
            no = ", ".join(self.text(value.no) for value in chosen)
            return f"({yes}) if {self.text(chosen[0].condition, OR)} else ({no})"
        return ", ".join(map(self.text, values))

    def _plan(self, step: Plan) -> str:
        key = f'"{step.plan.name}"'
        if step.instead:
            condition, other = step.instead
            key = f'"{other.name}" if {self.text(condition)} else {key}'
        settings = f"SCHEDULE[{key}][{self.function.leading}.dtype]"
        call = f"{step.plan.function}({', '.join(map(' * '.join, step.plan.sizes))}, **{settings})"
        return f"{call} if {self.text(step.when)} else 0" if step.when else call

    def _allocate(self, step: Allocate) -> None:
        dtype = self._dtype(step.dtype)
        new = f"{step.name} = {self.function.leading}.new_{'zeros' if step.zeros else 'empty'}"
        if step.when == Literal(False):
            self.w.line(f"{new}(0, dtype={dtype})")
            return
        # The extents are arguments: PyTorch takes half as long again to read a tuple.
        shape = ", ".join(map(self.text, step.shape))
        if step.when is not None and step.name in self.function.results:
            shape = f"({shape}) if {self.text(step.when)} else 0"
        extra = "" if step.dtype == IO else f", dtype={dtype}"
        made = f"{new}({shape}{extra})"
        if step.apart_from:
            made = made.replace("= ", "= cleared(", 1) + f", {step.apart_from}, {step.tokens})"
        if step.instead:
            condition, other = step.instead
            made = made.replace("= ", f"= {other} if {self.text(condition)} else ", 1)
        self.w.line(made)

    def _dtype(self, role: str) -> str:
        """The text of a role's dtype; the torch backend alone takes float64, and keeps it."""
        leading = self.function.leading
        if role == IO:
            return f"{leading}.dtype"
        # Elsewhere operands are as wide as sums.
        if role == OPERAND and self.layer.backend not in ("torch", HOST_C):
            return f"operand_dtype({leading})"
        if role == WIDE:
            return "torch.float64"
        assert role in (ACC, OPERAND, STATE)
        fixed = self.layer.spec.kept_dtype if role == STATE else "float32"
        if self.layer.backend == "torch":
            return f"torch.float64 if {leading}.dtype == torch.float64 else torch.{fixed}"
        return f"torch.{fixed}"

    def _entry(self, kernel: str) -> str:
        """The settings of a kernel for the call's dtype."""
        return f'SCHEDULE["{kernel}"][{self.function.leading}.dtype]'

    def text(self, value: Value, outer: int = EITHER) -> str:
        """A value, in brackets if it binds less tightly than what it stands in."""
        level, text = self._text(value)
        return f"({text})" if level < outer else text

    def _text(self, value: Value) -> tuple[int, str]:
        match value:
            case Name(name):
                return ATOM, name
            case Literal(number):
                return ATOM, str(number)
            case Absent():
                return ATOM, "None"
            case Present(tensor):
                return COMPARED, f"{tensor} is not None"
            case Extent(tensor, axis):
                return ATOM, f"{tensor}.shape[{axis}]"
            case Constant(kernel, name):
                return ATOM, f'{self._entry(kernel)}["{name}"]'
            case Times(x, y):
                return TIMES, f"{self.text(x, TIMES)} * {self.text(y, ATOM)}"
            case Plus(x, y):
                return PLUS, f"{self.text(x, PLUS)} + {self.text(y, PLUS)}"
            case Multiple(parts):
                return ATOM, f"lcm({', '.join(map(self.text, parts))})"
            case Compare(op, x, y):
                return COMPARED, f"{self.text(x, PLUS)} {op} {self.text(y, PLUS)}"
            case Some(count):
                return self._text(count)
            case Not(x):
                return NOT, f"not {self.text(x, NOT)}"
            case And(parts):
                return AND, " and ".join(self.text(part, AND) for part in parts)
            case Or(parts):
                return OR, " or ".join(self.text(part, OR) for part in parts)
            case Either(condition, yes, no):
                chosen = f"{self.text(yes, OR)} if {self.text(condition, OR)}"
                return EITHER, f"{chosen} else {self.text(no)}"
            case Serves(kernel, tensors):
                scheduled = f'{self.function.leading}.dtype in SCHEDULE["{kernel}"]'
                return AND, f"{scheduled} and {SERVES}({', '.join(tensors)})"
            case _:
                raise TypeError(f"no host text for {type(value).__name__}")
