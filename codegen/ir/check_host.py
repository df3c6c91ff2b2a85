"""The check that passes are well formed: a bug in a lowering is found here, and not by a call.

`check_pass` follows a pass from step to step.  Every name is there before it is read, and is of the kind that
is wanted; a launch gives a kernel all its parameters and no others, tensors of the shape and dtype that it
declares, and none that may be absent unless the kernel leaves it alone then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .check import IllFormed
from .host import (
    TOKENS,
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
from .implies import Facts
from .kernels import INTEGER, TENSOR, TRUTH, ForeignKernel, Kernel, parameters
from .nodes import ACC, IO, OPERAND, STATE, WIDE, Comment
from .program import Tensor


def check_passes(passes: Collection[Pass], kernels: Collection[Kernel]) -> None:
    """Check the passes of a module; raises `IllFormed`.  A pass stands after those that it calls."""
    by_name = {kernel.name: kernel for kernel in kernels}
    earlier: dict[str, Pass] = {}
    for function in passes:
        check_pass(function, by_name, earlier)
        earlier[function.name] = function


def check_pass(function: Pass, kernels: Mapping[str, Kernel], others: Mapping[str, Pass]) -> None:
    """Check one pass, which may launch `kernels` and call `others`; raises `IllFormed`."""
    checker = _Checker(function, kernels, others)
    for parameter in function.parameters:
        checker.add(parameter.name, parameter.kind)
        if parameter.shape is not None:
            checker.shapes[parameter.name] = parameter.shape
        if parameter.when is not None:
            checker.facts.presence[parameter.name] = parameter.when
    checker.tensor(function.leading)
    for step in function.body:
        checker.step(step)
    for name in function.results:
        if name not in {*checker.allocated, *checker.made}:
            raise checker.fail(f"returns {name}, which it does not allocate")


@dataclass
class _Checker:
    function: Pass
    kernels: Mapping[str, Kernel]
    others: Mapping[str, Pass]
    known: dict[str, str] = field(default_factory=dict)
    """The kind of every name."""
    allocated: dict[str, Allocate] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    """Results of functions in PyTorch."""
    shapes: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    """Those of parameters, where callers have checked them."""
    facts: Facts = field(default_factory=Facts)

    def fail(self, what: str) -> IllFormed:
        return IllFormed(f"{self.function.name}: {what}")

    def add(self, name: str, kind: str) -> None:
        if name in self.known:
            raise self.fail(f"{name} is named twice")
        self.known[name] = kind

    # Steps

    def step(self, step: Step | Comment) -> None:
        match step:
            case Comment():
                pass
            case ReadSizes(tensor, names):
                self.tensor(tensor)
                for name in filter(None, names):
                    self.add(name, INTEGER)
            case Bind(values):
                kinds = {name: self.kind(value) for name, value in values.items()}
                for name, value in values.items():
                    self.add(name, kinds[name])
                    self.facts.meanings[name] = value
            case Plan():
                self._plan(step)
            case LayOut(sequences, tokens, length, names):
                self.tensor(sequences)
                self.want(INTEGER, tokens)
                self.want(INTEGER, length)
                for name, kind in zip(names, (INTEGER, INTEGER, TENSOR, TENSOR), strict=True):
                    self.add(name, kind)
            case Allocate(name, shape, dtype, when, instead):
                for extent in shape:
                    self.want(INTEGER, extent)
                if dtype not in (IO, OPERAND, ACC, STATE, WIDE):
                    raise self.fail(f"{name} has no dtype {dtype}")
                if step.apart_from is not None:
                    self.tensor(step.apart_from)
                    if not any(extent in TOKENS for extent in shape):
                        raise self.fail(f"{name} has no tokens to be apart from {step.apart_from}")
                if instead is not None:
                    self.want(TRUTH, instead[0])
                    self.tensor(instead[1], when)
                self.add(name, TENSOR)
                self.allocated[name] = step
                if when is not None:
                    self.want(TRUTH, when)
                    self.facts.presence[name] = when
            case Launch():
                self._launch(step)
            case Call(_, results):
                for name in results:
                    self.add(name, TENSOR)
                self.made |= {*results}
            case Delegate(to, when):
                self.want(TRUTH, when)
                other = self.others.get(to)
                if other is None:
                    raise self.fail(f"calls {to}, which is no pass before it")
                for what, of in (("part", "part"), ("parameters", "takes"), ("results", "results")):
                    if getattr(other, of) != getattr(self.function, of):
                        raise self.fail(f"calls {to}, which has other {what}")
            case _:
                raise self.fail(f"unknown step {step!r}")

    def _plan(self, step: Plan) -> None:
        for size in step.plan.sizes:
            kinds = {self.kind(Name(name)) for name in size}
            if kinds != {INTEGER} and (kinds not in ({TENSOR}, {TRUTH}) or len(size) > 1):
                raise self.fail(f"is planned by {' * '.join(size)}, which is no integer, tensor or truth")
        plans = [step.plan]
        if step.when is not None:
            self.want(TRUTH, step.when)
        if step.instead is not None:
            condition, plan = step.instead
            self.want(TRUTH, condition)
            plans.append(plan)
        for plan in plans:
            if plan.part != self.function.part:
                raise self.fail(f"is planned by {plan.name}, which is for the pass {plan.part}")
            if any(getattr(plan, of) != getattr(step.plan, of) for of in ("function", "sizes", "constants")):
                raise self.fail(f"{plan.name} is no plan like {step.plan.name}")
        for name, kind in step.results.items():
            self.add(name, kind)

    def _launch(self, step: Launch) -> None:
        kernel = self.kernels.get(step.kernel)
        if kernel is None:
            raise self.fail(f"launches {step.kernel}, which is no kernel of the layer")
        if step.when is not None:
            self.want(TRUTH, step.when)
        kinds = parameters(kernel)
        if unknown := step.arguments.keys() - kinds.keys():
            raise self.fail(f"gives {kernel.name} {', '.join(sorted(unknown))}, which it does not have")
        arguments = {name: step.arguments.get(name, Name(name)) for name in kinds}
        under = {} if isinstance(kernel, ForeignKernel) else kernel.under
        for name, kind in kinds.items():
            if name not in step.arguments and name not in self.known:
                raise self.fail(f"gives {kernel.name} no {name}")
            if flag := under.get(name):
                kind = TENSOR if arguments[flag] == Literal(False) else kind  # which is Absent's
            self.want(kind, arguments[name])
        for tensor in kernel.tensors:
            self._given(kernel, tensor, arguments, step.when)

    def _given(
        self, kernel: Kernel, tensor: Tensor, arguments: Mapping[str, Value], when: Value | None
    ) -> None:
        """Check what a kernel gets for a tensor: there whenever it is read, and as it is declared."""
        given, flag = arguments[tensor.name], tensor.optional and arguments[tensor.optional]
        read = [condition for condition in (when, flag) if condition]
        if not self.facts.present(given, read):
            raise self.fail(f"gives {kernel.name} a {tensor.name} that may be absent")
        name = given.name if isinstance(given, Name) else ""
        made = self.allocated.get(name)
        known = made.shape if made else self.shapes.get(name)
        if known is None:
            return
        wanted = [Literal(d) if isinstance(d, int) else arguments[d] for d in tensor.stored]
        shapes = [_factors(self.facts.chosen(x, read) for x in shape) for shape in (known, wanted)]
        if shapes[0] != shapes[1] or (made and made.dtype != tensor.dtype):
            raise self.fail(f"gives {kernel.name} as {tensor.name} {name}, of another shape or dtype")

    # Values

    def want(self, kind: str, value: Value) -> None:
        found = self.kind(value)
        if found != kind:
            raise self.fail(f"{value} is of the kind {found}, where {kind} is wanted")

    def tensor(self, name: str, when: Value | None = None) -> None:
        """A tensor that is there always, or wherever `when` is true."""
        self.want(TENSOR, Name(name))
        if not self.facts.present(Name(name), (when,) if when else ()):
            raise self.fail(f"reads of {name}, which may be absent")

    def kind(self, value: Value) -> str:
        match value:
            case Name(name):
                if name not in self.known:
                    raise self.fail(f"{name} is read before it is there")
                return self.known[name]
            case Literal(number):
                return TRUTH if isinstance(number, bool) else INTEGER
            case Absent():
                return TENSOR
            case Present(tensor):
                self.want(TENSOR, Name(tensor))
                if tensor not in self.facts.presence:
                    raise self.fail(f"asks whether {tensor} is there, which always is")
                return TRUTH
            case Extent(tensor):
                self.tensor(tensor)
                return INTEGER
            case Constant(kernel, name):
                if kernel not in self.kernels or name not in self.kernels[kernel].constants:
                    raise self.fail(f"reads the constant {name} of {kernel}, which is not there")
                return INTEGER
            case Serves(kernel, tensors):
                found = self.kernels.get(kernel)
                if not isinstance(found, ForeignKernel) or not found.decides:
                    raise self.fail(f"asks whether {kernel} serves, which decides nothing")
                for tensor in tensors:
                    self.tensor(tensor)
                return TRUTH
            case Times(x, y) | Plus(x, y) | Compare(_, x, y):
                self.want(INTEGER, x)
                self.want(INTEGER, y)
                return TRUTH if isinstance(value, Compare) else INTEGER
            case Some(count):
                self.want(INTEGER, count)
                return TRUTH
            case Multiple(parts):
                for part in parts:
                    self.want(INTEGER, part)
                return INTEGER
            case Either(condition, yes, no):
                self.want(TRUTH, condition)
                self.want(self.kind(yes), no)
                return self.kind(yes)
            case Not() | And() | Or():
                for part in _truths(value):
                    self.want(TRUTH, part)
                return TRUTH
            case _:
                raise self.fail(f"unknown value {value!r}")


def _truths(value: Not | And | Or) -> tuple[Value, ...]:
    match value:
        case Not(x):
            return (x,)
        case And(parts) | Or(parts):
            return parts


def _factors(shape: Iterable[Value]) -> list[Value]:
    """A shape with each product as dimensions of their own: in memory they are the same."""
    return [factor for x in shape for factor in (_factors((x.x, x.y)) if isinstance(x, Times) else (x,))]
