"""Calls like an earlier one go straight to its kernels.

Which buffers a call makes and which kernels it launches follows from what its arguments are like: the types,
dtypes, devices, shapes, strides and alignment of tensors, whether a gradient is wanted, and the values of
everything else.  So the first call of a kind is recorded, and later ones *replay* the record: without checks,
choice of a backend or PyTorch's dispatcher, and with one allocation for all that they do not return.  Whether
a call is of a kind, PyTorch's own compiled guards say in half a microsecond.

Only calls that nobody watches take this way.  Under a dispatch or function mode, a transform of `torch.func`,
a profiler or a launch hook of Triton the operator is called, and seen, as ever; compiled code and backends
other than Triton always call it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .log import LOGGER
from .ops import has_forward_gradients
from .overlap import KEPT as SETS
from .overlap import extent, overlapping, period

if TYPE_CHECKING:
    from .support.triton import Record

guards: Any
try:
    from torch._C._dynamo import guards
except ImportError:  # it is no public interface: without it every call goes the long way
    guards = None

# Every call asks for these, so they are looked up once.
_set_grad_enabled, _function_modes = torch._C._set_grad_enabled, torch._C._len_torch_function_stack
_profiler_enabled = torch.autograd._profiler_enabled

KEPT = 4096
"""Shapes and scalar arguments for which a variant remembers calls: lengths may be new in every call."""
KINDS = 4
"""Kinds of tensors that it remembers for each of them."""
ALIGNMENT = 16
"""Bytes: what Triton tells apart of addresses."""
LINE = 128
"""Bytes of a line of memory, at which each part of a shared buffer begins."""

Function = Callable[..., Sequence[Any]]


class Replay:
    """One kind of call: its guard, what it allocates, and what it launches."""

    __slots__ = (
        "check",
        "device",
        "_derive",
        "_changed",
        "_extents",
        "_periods",
        "_apart",
        "_empty",
        "_results",
        "_parts",
        "_scratch",
        "_launch",
    )

    def __init__(
        self,
        guard: Any,
        tensors: Sequence[Tensor],
        results: Sequence[Tensor],
        record: Record,
        launcher: ModuleType,
        derive: Function | None,
        changed: Sequence[int],
    ) -> None:
        self.check, self.device = guard.check, launcher.current_device()
        self._derive, self._changed = derive, changed
        self._extents, self._apart = [extent(x) for x in tensors], set[tuple[int, ...]]()
        self._periods = [period(x) for x in tensors]
        self._empty = guards._empty_strided_cuda if tensors[0].is_cuda else guards._empty_strided_cpu
        self._results = [(tuple(x.shape), x.stride(), x.dtype) for x in results]
        self._parts: list[int] = []
        self._scratch = 0
        places = {id(x): i for i, x in enumerate([*tensors, *results])}
        for x in _launched(record):
            if x.nbytes and id(x) not in places:
                places[id(x)] = len(places)
                self._parts.append(self._scratch)
                self._scratch += -(-x.nbytes // LINE) * LINE
        # Behind all addresses is that of what is absent or empty.
        self._launch = launcher.repeated(record, lambda tensor: places.get(id(tensor), len(places)))

    def takes(self, addresses: list[Any]) -> bool:
        """Whether what a call changes is apart from the rest of it: the guard knows no addresses."""
        if not self._changed or (key := tuple(addresses)) in self._apart:
            return True
        if overlapping(addresses, self._extents, min(self._changed), self._periods) is not None:
            return False
        if len(self._apart) >= SETS:
            self._apart.clear()
        self._apart.add(key)
        return True

    def run(self, tensors: Sequence[Tensor], addresses: list[Any]) -> Sequence[Any]:
        """The results for tensors that the guard has let pass, and that are at these aligned addresses."""
        if self._changed:
            torch._C._increment_version([tensors[i] for i in self._changed])
        if self._derive is None:
            return self._repeat(addresses)
        return (_Differentiable.apply(partial(self._repeat, addresses), self._derive, *tensors),)

    def _repeat(self, addresses: list[Any], *_: Tensor) -> Sequence[Any]:
        empty = self._empty
        results = [empty(shape, stride, dtype) for shape, stride, dtype in self._results]
        addresses += [x.data_ptr() for x in results]
        if self._scratch:
            memory = empty((self._scratch,), (1,), torch.uint8)
            start = memory.data_ptr()
            addresses += [start + part for part in self._parts]
        addresses.append(None)
        self._launch(addresses)
        return results


class Replays:
    """What a variant remembers of its calls.

    A key holds the arguments that are not tensors.
    """

    def __init__(self) -> None:
        self.known: dict[Any, list[Replay]] = {}
        self._launcher: Any = None

    def forget(self) -> None:
        """Record calls anew: for whoever changes what a generated module does."""
        self.known.clear()

    def results(self, key: tuple[Any, ...], *tensors: Any) -> Sequence[Any] | None:
        """The results of a call, whatever its arguments are, if one like it is known, else None.

        Nobody traces it.
        """
        if type(tensors[0]) is not Tensor:
            return None
        graded = torch.is_grad_enabled()
        try:
            known = self.known.get((graded, tensors[0].shape, len(tensors), key))
        except (TypeError, RuntimeError):  # what has a wrong type has no hash, and a nested tensor no shape
            return None
        if known is None or _watched() or self._launcher.watched():
            return None
        found = _matching(known, tensors, self._launcher.current_device(), graded)
        if found is None:
            return None
        addresses = [x.data_ptr() for x in tensors]
        return found.run(tensors, addresses) if _aligned(addresses) and found.takes(addresses) else None

    def first(
        self,
        key: tuple[Any, ...],
        function: Function,
        tensors: Sequence[Tensor],
        derive: Function | None = None,
        changed: Sequence[int] = (),
    ) -> Sequence[Any]:
        """`function(*tensors)`, which is one pass of Triton's kernels, and from now on remembered.

        With `derive` the first of its results is differentiable, and the only one that is returned: gradients
        of the tensors are `derive(gradient, *tensors, *results)`.  `changed` says which tensors the pass
        changes.  Asks for tensors that are `recordable`.
        """
        from .support import triton as launcher

        self._launcher = launcher
        changed = [i for i in changed if not tensors[i].is_inference()]  # those have no version
        sizes, strides = [[*x.shape] for x in tensors], [[*x.stride()] for x in tensors]
        guard = guards.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        name = torch.is_grad_enabled(), tensors[0].shape, len(tensors), key

        def run(*tensors: Tensor) -> Sequence[Any]:
            begun = time.perf_counter()
            with launcher.recording() as record:
                results = function(*tensors)
            spent = time.perf_counter() - begun
            LOGGER.debug("call: the first of its kind, %s, took %.3f s with what it compiled", name[1], spent)
            known = self.known.get(name, [])
            device, graded = launcher.current_device(), torch.is_grad_enabled()
            # Tensors that were cast for every call are of a kind that is known, but that calls never have.
            fresh = len(known) < KINDS and _matching(known, tensors, device, graded) is None
            if fresh and _complete(tensors, results, record):
                if len(self.known) >= KEPT:
                    self.known.clear()
                replay = Replay(guard, tensors, results, record, launcher, derive, changed)
                self.known[name] = [*known, replay]
            return results

        torch.autograd.graph.increment_version([tensors[i] for i in changed])
        return run(*tensors) if derive is None else (_Differentiable.apply(run, derive, *tensors),)


def _matching(known: Sequence[Replay], tensors: Sequence[Tensor], device: int, graded: bool) -> Replay | None:
    """The replay of calls with such tensors on this device; `graded` says whether gradients are on."""
    if not graded:
        _set_grad_enabled(True)  # otherwise guards take no tensor for one that requires a gradient
    try:
        for replay in known:
            if device == replay.device and replay.check(*tensors):
                return replay
        return None
    finally:
        if not graded:
            _set_grad_enabled(False)


class _Differentiable(torch.autograd.Function):
    """The first result of `run`, whose gradients `derive` finds with the others."""

    @staticmethod
    def forward(ctx: Any, run: Function, derive: Function, *tensors: Tensor) -> Tensor:
        results = run(*tensors)
        ctx.save_for_backward(*tensors, *results)
        ctx.derive = derive
        return results[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, None, *ctx.derive(gradient, *ctx.saved_tensors)


def recordable(kernel: str, tensors: Sequence[Tensor], packed: Sequence[Any] = ()) -> bool:
    """Whether calls of a kernel with such tensors, which are valid, may be remembered; nobody traces them.

    Kernels take those that are `packed`, where a call gives them, contiguous alone; the operator would copy
    others.
    """
    return (
        kernel.startswith("triton-")
        and guards is not None
        and not (_watched() or torch._C._functorch.peek_interpreter_stack())
        and all(type(x) is Tensor and x.stride(-1) == 1 and _here(x) for x in tensors)
        and _aligned([x.data_ptr() for x in tensors])
        and all(x is None or x.is_contiguous() for x in packed)
    )


def _watched() -> bool:
    """Whether somebody who does not trace wants to see operators, or must be refused."""
    return has_forward_gradients() or _function_modes() != 0 or _profiler_enabled()


def _here(tensor: Tensor) -> bool:
    """Whether kernels that are launched now run where the tensor is."""
    return tensor.is_cuda and tensor.get_device() == torch.cuda.current_device()


def _aligned(addresses: Sequence[int]) -> bool:
    bits = 0
    for address in addresses:
        bits |= address
    return bits % ALIGNMENT == 0


def _launched(record: Record) -> list[Tensor]:
    return [tensor for _, tensors, _ in record for tensor in tensors if tensor is not None]


def _complete(tensors: Sequence[Tensor], results: Sequence[Any], record: Record) -> bool:
    """Whether launches alone make the results, of these tensors and of buffers that the pass allocated."""
    launched = _launched(record)
    given = {x.untyped_storage().data_ptr() for x in tensors}
    made = [x for x in launched if x.nbytes and all(x is not y for y in tensors)]
    return (
        all(known is not None for known, _, _ in record)
        and all(not x.nbytes or any(x is y for y in launched) for x in results)
        and all(x.is_contiguous() and x.untyped_storage().data_ptr() not in given for x in made)
    )
