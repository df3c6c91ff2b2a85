"""Operators: what `torch.ops.based_ops` holds for every variant, and what all of them share.

A variant has three operators, `<name>_forward`, `<name>_backward` and `<name>_step`, made with
`torch.library`'s low-level interface (a third of the cost per call of `custom_op`).  Each has

- one implementation for all devices, which calls the generated module that the argument `kernel` asks for
  (see `dispatch`), after a check unless a public function has made it (see `admission`);
- a fake, so that it can be traced;
- an implementation under the Autograd key that goes straight on when no input needs a gradient, so that the
  operators are differentiable themselves, and inference pays for no `autograd.Function`;
- a rule for `torch.vmap`, see `transforms`;
- a formula for counters of operations, see `flops`, and a rule for distributed tensors, see `sharding`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd import forward_ad

from based_ops.codegen.names import NAMESPACE, PASSES, op_name, qualified_op_name, variant_of

from . import flops, sharding, transforms
from .admission import Admission, checked
from .errors import GradientError
from .record import RECORDS

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from based_ops.codegen.spec.signature import Signature

    from .record import Record

LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # noqa: TOR901
AFTER_AUTOGRAD = torch._C._after_autograd_keyset
# Every call asks for these, so they are looked up once.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_below_autograd = torch._C._AutoDispatchBelowAutograd
# Strides reach the kernels as the caller made them; Inductor must not permute or densify inputs on its own.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


class Kernels(dict[str, ModuleType]):
    """Generated modules of one variant by kernel strings that name one, imported on first use."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def __missing__(self, kernel: str) -> ModuleType:
        module = self.record.module(kernel.partition("-")[0])
        self[kernel] = module
        return module


class Operators(NamedTuple):
    """The operators of a variant, as `torch.ops.based_ops` has them."""

    forward: OpOverload
    backward: OpOverload
    step: OpOverload


class Ops:
    """The operators of one variant, three unless it has no state to step."""

    forward: OpOverload
    backward: OpOverload
    step: OpOverload

    def __init__(self, record: Record) -> None:
        self.record = record
        self.kernels = Kernels(record)
        self.admission = Admission(record)
        self.fakes: dict[str, Callable[..., Any]] = {}

    @functools.cached_property
    def signature(self) -> Signature:
        """What the operators take and give."""
        signature: Signature = self.record.layer.signature()
        return signature

    def define(self, which: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """Defines one operator: `run` is its implementation everywhere, `fake` the one without data."""
        name = op_name(self.record.name, which)
        self.fakes[which] = fake
        LIBRARY.define(name + self.record.schemas[which], tags=_TAGS)
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified_op_name(self.record.name, which), fake, lib=LIBRARY)
        op = getattr(getattr(torch.ops, NAMESPACE), name).default
        torch.library.register_vmap(
            qualified_op_name(self.record.name, which), transforms.mapped(self, which), lib=LIBRARY
        )
        setattr(self, which, op)

    def derive(self, which: str, autograd: Callable[..., Any]) -> None:
        """Registers how an operator behaves above autograd."""
        LIBRARY.impl(op_name(self.record.name, which), autograd, "Autograd", with_keyset=True)


_registered: dict[str, Ops] = {}


def register(record: Record) -> None:
    """Defines the operators of a variant."""
    from .operators import define

    name = record.name
    _registered[name] = ops = Ops(record)
    try:
        define(ops)
        flops.count(ops)
        sharding.shard(ops)
    except BaseException:
        del _registered[name]
        raise


def registered(record: Record) -> Ops:
    """The operators of a variant, defined now unless they are already.

    Those that make features are defined when they are asked for: importing the package would take a tenth
    longer.
    """
    if record.name not in _registered:
        register(record)
    return _registered[record.name]


def _look_up(name: str) -> Any:
    """Called for an operator that `torch.ops.based_ops` does not have yet, before PyTorch looks for it.

    An exported program names operators: those of a layer that lies in the cache are registered now, and those
    that make features.
    """
    operator, _, which = name.rpartition("_")
    variant = variant_of(operator)
    if which in PASSES and variant not in _registered:
        from .jit import operators

        operators(variant)
    if variant != operator and variant in RECORDS:
        for maker in RECORDS[variant].makers.values():
            registered(maker)
    raise AttributeError(name)


setattr(getattr(torch.ops, NAMESPACE), "__getattr__", _look_up)  # noqa: B010


def of(name: str) -> Ops:
    """The operators of a registered variant."""
    return _registered[name]


def launch(function: Callable[..., Any], at: torch.Tensor, args: Sequence[Any]) -> Any:
    """Calls a generated function for tensors on `at`'s device.

    Kernels launch on the current device, so it is made the tensors' own.  Autocast has acted before the
    operator, and must not act again on the matrix products of the torch backend.
    """
    if is_any_autocast_enabled() and torch.is_autocast_enabled(at.device.type):
        with torch.autocast(at.device.type, enabled=False):
            return launch(function, at, args)
    if at.is_cuda and at.get_device() != torch.cuda.current_device():
        with torch.cuda.device(at.device):
            return function(*args)
    return function(*args)


def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, copied only if neighbours in its last dimension are not neighbours in memory."""
    if tensor is None or tensor.is_contiguous() or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """`Tensor.contiguous` for an optional tensor."""
    return None if tensor is None else tensor.contiguous()


def needs_gradient(*args: Any) -> bool:
    """Whether autograd must record a call with these arguments, or refuse it: it has no forward mode."""
    if forward_ad._current_level >= 0 and _have_tangent(args):
        return True
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args)


def _have_tangent(args: Iterable[Any]) -> bool:
    tensors = (x for x in args if isinstance(x, torch.Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def has_forward_gradients() -> bool:
    """Whether tensors may have tangents now."""
    return forward_ad._current_level >= 0


def call(op: OpOverload, ready: bool, args: Sequence[Any]) -> Any:
    """Calls an operator; if all is `ready`, past its own check and past its Python implementation under the
    Autograd key, unless autograd is to record it.

    Ready is a call whose arguments were checked, whose kernel string names a module, and that nobody traces.
    Going past autograd saves a third of the overhead of a call, and a tenth of that of a training step.
    """
    if not ready:
        return op(*args)
    checked.tensor = args[0]
    try:
        # As `needs_gradient`, but for tangents, which the operator looks for itself.
        if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return op(*args)
        with _below_autograd():
            return op._op(*args)  # what it calls itself, without its frame
    finally:
        checked.tensor = None


def call_step(op: OpOverload, ready: bool, state: Iterable[torch.Tensor | None], args: Sequence[Any]) -> Any:
    """The same for a step, of which the caller knows that no argument requires a gradient."""
    if not ready or has_forward_gradients():
        return op(*args)
    mark_written(state)
    checked.tensor = args[0]
    try:
        with _below_autograd():
            return op._op(*args)
    finally:
        checked.tensor = None


def mark_written(tensors: Iterable[torch.Tensor | None]) -> None:
    """Tells autograd that tensors, which a backward pass may still need, have changed.

    PyTorch refuses those that were made in inference mode where that is off, as it refuses all other changes.
    """
    torch._C._increment_version([tensor for tensor in tensors if tensor is not None])


def below_autograd(op: OpOverload, keyset: Any, *args: Any) -> Any:
    """The operator without its behaviour above autograd, from inside an `autograd.Function`."""
    if transforms.active():
        with transforms.outer_gradients():
            return op.redispatch(keyset & AFTER_AUTOGRAD, *args)
    return op.redispatch(keyset & AFTER_AUTOGRAD, *args)


class _OnceDifferentiable(torch.autograd.Function):
    """Runs a backward operator whose own derivative does not exist, and says so if it is asked for."""

    @staticmethod
    def forward(ctx: Any, ops: Ops, keyset: Any, *args: Any) -> Any:
        ctx.name = ops.backward.name()
        return below_autograd(ops.backward, keyset, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise GradientError(
            f"{ctx.name} has no derivative: second derivatives of this layer do not exist; "
            "for them differentiate the variant's `reference`"
        )


def derive(ops: Ops, which: str, function: type[torch.autograd.Function]) -> None:
    """Makes an operator differentiable: `function` takes the operators, a set of keys, and the arguments."""
    op: OpOverload = getattr(ops, which)
    apply = transforms.apply_of(function)

    def autograd(keyset: Any, *args: Any) -> Any:
        if not needs_gradient(*args):
            return op.redispatch(keyset & AFTER_AUTOGRAD, *args)
        if has_forward_gradients() and _have_tangent(args):
            raise GradientError(
                f"{op.name()} has no forward mode: differentiate it backwards, "
                "or forwards the variant's `reference`"
            )
        return apply(ops, keyset, *ops.admission.operands[which].filled(args))

    ops.derive(which, autograd)


def derive_backward(ops: Ops) -> None:
    """Gives the backward operator its behaviour above autograd: once differentiable."""
    derive(ops, "backward", _OnceDifferentiable)


def derive_step(ops: Ops) -> None:
    """Gives the step operator its behaviour above autograd: not differentiable, and its state has changed."""
    op = ops.step
    written = [x.alias_info is not None and x.alias_info.is_write for x in op._schema.arguments]

    def autograd(keyset: Any, *args: Any) -> Any:
        if needs_gradient(*args):
            raise GradientError(f"{op.name()} is not differentiable: call it under torch.no_grad()")
        mark_written(compress(args, written))
        return op.redispatch(keyset & AFTER_AUTOGRAD, *args)

    ops.derive("step", autograd)
