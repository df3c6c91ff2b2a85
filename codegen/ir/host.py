"""The host side of a pass: read sizes, plan, choose, allocate, launch, return.

A pass is what PyTorch calls.  It is a list of steps over named values, which `check_host.py` checks and
`emit/host.py` prints; only how a kernel is launched differs between backends.

Values are tensors, integers (sizes and counts), numbers (of the user's, such as a scale) and truths.  A
tensor may be absent: a parameter that the caller leaves out, or one that is allocated under a condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .kernels import TENSOR, LaunchPlan
from .nodes import Comment


class Value:
    """What the host computes."""

    def __and__(self, other: Operand) -> Value:
        return And((self, wrap(other)))

    def __or__(self, other: Operand) -> Value:
        return Or((self, wrap(other)))

    def __invert__(self) -> Value:
        return Not(self)

    def __mul__(self, other: Operand) -> Value:
        return Times(self, wrap(other))

    def __add__(self, other: Operand) -> Value:
        return Plus(self, wrap(other))

    def __gt__(self, other: Operand) -> Value:
        return Compare(">", self, wrap(other))

    def equals(self, other: Operand) -> Value:
        """Whether two integers are the same (``==`` compares the nodes themselves)."""
        return Compare("==", self, wrap(other))


Operand = Value | int | bool | str | None


@dataclass(frozen=True)
class Name(Value):
    """A parameter of the pass, or what a step before has named."""

    name: str


@dataclass(frozen=True)
class Literal(Value):
    """An integer or a truth value."""

    value: int | bool


@dataclass(frozen=True)
class Absent(Value):
    """No tensor, where a kernel can do without."""


@dataclass(frozen=True)
class Present(Value):
    """Whether a tensor is there."""

    tensor: str


@dataclass(frozen=True)
class Extent(Value):
    """The length of a tensor along one axis."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Constant(Value):
    """A constant of a kernel, as its schedule binds it for the dtype of the call."""

    kernel: str
    name: str


@dataclass(frozen=True)
class Times(Value):
    x: Value
    y: Value


@dataclass(frozen=True)
class Plus(Value):
    x: Value
    y: Value


@dataclass(frozen=True)
class Multiple(Value):
    """The least common multiple of integers."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Compare(Value):
    """Two integers compared: ``>`` or ``==``."""

    op: str
    x: Value
    y: Value


@dataclass(frozen=True)
class Some(Value):
    """Whether an integer is not 0."""

    count: Value


@dataclass(frozen=True)
class Not(Value):
    x: Value


@dataclass(frozen=True)
class And(Value):
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Or(Value):
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Either(Value):
    """One truth or another, or one integer or another."""

    condition: Value
    yes: Value
    no: Value


@dataclass(frozen=True)
class Serves(Value):
    """Whether a foreign kernel can serve the call.

    It is scheduled for the call's dtype, and the rows of these tensors lie where it can copy them.
    """

    kernel: str
    tensors: tuple[str, ...]


class Step:
    """One step of a pass."""


@dataclass(frozen=True)
class ReadSizes(Step):
    """Name the extents of a tensor, those that are named."""

    tensor: str
    names: tuple[str | None, ...]


@dataclass(frozen=True)
class Bind(Step):
    """Name values, none of which reads another."""

    values: dict[str, Value] = field(hash=False)


@dataclass(frozen=True)
class Plan(Step):
    """Name what the function of a launch plan makes of a call; `results` gives the kind of each.

    Where the first of `instead` is true, the plan is the second.  Where `when` is false the results are 0.
    """

    results: dict[str, str] = field(hash=False)
    plan: LaunchPlan
    instead: tuple[Value, LaunchPlan] | None = None
    when: Value | None = None


@dataclass(frozen=True)
class LayOut(Step):
    """Name the segments of packed sequences, which have up to `length` tokens, and where they lie."""

    sequences: str
    tokens: Value
    length: Value
    names: tuple[str, str, str, str]
    """Two integers, segments and places, and two tensors (`based_ops.support.host.packed_plan`)."""


TOKENS = Name("T"), Name("Tk")
"""Extents of axes of tokens."""


@dataclass(frozen=True)
class Allocate(Step):
    """An uninitialised tensor on the device of the inputs, or one of zeros; `dtype` is a role.

    `apart_from`, where given, are packed sequences: what is not theirs along its tokens is 0 (`TOKENS`).

    Where `when` is false it is absent, or empty if the pass returns it.  Where the first of `instead` is
    true, it is the tensor of that name, which has its shape then.
    """

    name: str
    shape: tuple[Value, ...]
    dtype: str
    when: Value | None = None
    instead: tuple[Value, str] | None = None
    zeros: bool = False
    apart_from: str | None = None

    @property
    def tokens(self) -> int:
        """The axis of its tokens."""
        return next(axis for axis, extent in enumerate(self.shape) if extent in TOKENS)


@dataclass(frozen=True)
class Launch(Step):
    """Run a kernel.  Parameters that `arguments` does not name are the values of the same name."""

    kernel: str
    arguments: dict[str, Value] = field(default_factory=dict, hash=False)
    when: Value | None = None


@dataclass(frozen=True)
class Call(Step):
    """Name what a function of `based_ops.support`, in PyTorch, makes of all parameters of the pass."""

    function: str
    results: tuple[str, ...]


@dataclass(frozen=True)
class Delegate(Step):
    """Return what another pass of the same parameters and results returns."""

    to: str
    when: Value


Steps = tuple[Step | Comment, ...]


@dataclass(frozen=True)
class Parameter:
    """What a pass is called with."""

    name: str
    kind: str = TENSOR
    when: Value | None = None
    """Under which condition a tensor is there, if it may be left out."""
    shape: tuple[Value, ...] | None = None
    """The extents that callers have checked, where kernels rely on them."""
    left_out: bool = False
    """Whether callers may leave it out; it stands behind all that they may not."""


@dataclass(frozen=True)
class Pass:
    """One function of a generated module."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    leading: str
    """The tensor whose dtype and device are those of the call."""
    body: Steps
    results: tuple[str, ...]
    instead_of: str = ""
    """The pass whose results it computes, if it is one that others call."""

    @property
    def part(self) -> str:
        """forward, backward or step."""
        return self.instead_of or self.name

    @property
    def takes(self) -> list[tuple[str, str]]:
        """What it is called with, by names and kinds."""
        return [(parameter.name, parameter.kind) for parameter in self.parameters]

    @property
    def launches(self) -> tuple[str, ...]:
        """The kernels that it launches, in order and each once."""
        return tuple(dict.fromkeys(step.kernel for step in self.body if isinstance(step, Launch)))

    @property
    def plans(self) -> tuple[LaunchPlan, ...]:
        """The plans by which it chooses what it launches."""
        steps = [step for step in self.body if isinstance(step, Plan)]
        return tuple(plan for step in steps for plan in (step.plan, step.instead and step.instead[1]) if plan)


def wrap(value: Operand) -> Value:
    """Python numbers and names as values; None is no tensor."""
    match value:
        case Value():
            return value
        case str():
            return Name(value)
        case None:
            return Absent()
        case _:
            return Literal(value)


def allocate(
    name: str,
    shape: Sequence[Operand],
    dtype: str,
    when: Value | None = None,
    instead: tuple[Value, str] | None = None,
    zeros: bool = False,
    apart_from: str | None = None,
) -> Allocate:
    """An allocation whose extents are names and numbers."""
    return Allocate(name, tuple(map(wrap, shape)), dtype, when, instead, zeros, apart_from)


def launch(kernel: str, arguments: Mapping[str, Operand] = {}, when: Value | None = None) -> Launch:
    """A launch whose arguments are names and numbers."""
    return Launch(kernel, {name: wrap(value) for name, value in arguments.items()}, when)
