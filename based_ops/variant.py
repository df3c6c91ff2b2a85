"""The public object of a variant: what `based_ops.get` and `based_ops.load` return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from . import checks, dispatch, ops
from .admission import refuse_overlap
from .arguments import refuse
from .replay import Replays, recordable
from .tracing import is_traced, run_while_tracing

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec

    from .record import Record


def dtype_named(name: str) -> torch.dtype:
    """`torch.float32` for "float32"."""
    return getattr(torch, name)


_numbers: dict[tuple[str, str], Any] = {}


@run_while_tracing
def _number(variant: str, which: str) -> Any:
    return _numbers[variant, which]


def constant(which: str, doc: str) -> property:
    """A read-only number of a variant, for Dynamo a constant.

    Dynamo takes numbers that it reads from an object as symbols under dynamic shapes, but not the result of a
    function that it runs on strings.
    """

    def read(variant: Variant) -> Any:
        return _number(variant.name, which)

    return property(read, doc=doc)


class Variant(ABC):
    """A compiled layer spec.

    Tensors are [B, T, H, D] (B batch, T tokens, H heads; q and k of width `qk`, v of width `v`), share B, T,
    H, dtype and device, and may have any strides; one whose last dimension is not dense is copied.  B, T and
    H may be 0.
    """

    name: str
    spec: LayerSpec
    dtypes: tuple[torch.dtype, ...]
    _state_type: Any

    qk = constant("qk", "Width of a query and of a key.")
    v = constant("v", "Width of a value.")
    default_scale = constant("default_scale", "The scale of a call that gives none.")

    def __init__(self, record: Record) -> None:
        spec = record.layer
        self.name = record.name
        self.spec = spec
        self.dtypes = (*(dtype_named(name) for name in spec.dtypes), torch.float64)
        self._plain = SimpleNamespace(name=self.name, dtypes=self.dtypes)
        self._know(qk=spec.head_dims.qk, v=spec.head_dims.v, default_scale=float(spec.default_scale()))
        self._record = record
        self._ops = ops.of(record.name)
        self._collision = self._ops.admission.apart.collision
        self._replays = Replays()
        self._setup()

    def _know(self, **numbers: Any) -> None:
        """Sets the values of `constant` properties."""
        _numbers.update({(self.name, which): value for which, value in numbers.items()})
        vars(self._plain).update(numbers)

    def _facts(self) -> Any:
        """Where a call reads name, dtypes and numbers of the variant.

        In eager mode from plain attributes: reading five `constant`s takes longer than the checks they serve.
        Where operators are recorded it is the variant itself.
        """
        return self if is_traced() else self._plain

    def __repr__(self) -> str:
        return f"<based_ops variant {self.name}: {self.spec.mixer}, qk {self.qk}, v {self.v}>"

    def __reduce__(self) -> Any:
        from based_ops.codegen.spec.model import dump_yaml

        from .jit import pickled

        return pickled, (self.name, dump_yaml(self.spec))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None = None,
        initial_state: Any = None,
        output_final_state: bool = False,
        backend: str | None = None,
        **foreign: NoReturn,
    ) -> tuple[Tensor, Any]:
        """Causal attention over a sequence: `(o, final_state)`, with o [B,T,H,v] contiguous and of v's dtype.

        There are no masks yet, and zeros are no padding of k: a zero key weighs φ(q)·φ(0), which a Taylor map
        or elu(x) + 1 does not make 0, and a window counts it.  Padding before a sequence changes its outputs;
        padding after it changes none, but the final state.

        `scale` is a Python float that replaces the spec's.  `initial_state` is what an earlier call returned
        for the tokens before these; `final_state` is None unless `output_final_state`.  Gradients flow to q,
        k, v, the initial state, and from the final state, once.  Under autocast, inputs are cast to its
        dtype, or to float32 if the spec lacks that.  Raises the errors of `based_ops.errors` before any
        kernel runs.
        """
        if foreign:
            refuse(Variant.__call__, tuple(foreign))
        facts, key = self._facts(), None
        if initial_state is None and not output_final_state and facts is not self:
            key = self._key("forward", scale, backend)
            if (results := self._replays.results(key, q, k, v)) is not None:
                return results[0], None
        return self._sequence(facts, key, q, k, v, scale, initial_state, output_final_state, backend)

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Any,
        scale: float | None = None,
        backend: str | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """One more token (T = 1): returns o [B,1,H,v] and updates `state` in place.  Not differentiable."""
        if foreign:
            refuse(Variant.step, tuple(foreign))
        facts, key = self._facts(), None
        if type(state) is self._state_type and facts is not self:
            key = self._key("step", scale, backend)
            parts = state if state[-1] is not None else state[:-1]  # what a layer lacks comes last
            if (results := self._replays.results(key, q, k, v, *parts)) is not None:
                return results[0]
        return self._token(facts, key, q, k, v, state, scale, backend)

    def init_state(
        self,
        batch: int,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **foreign: NoReturn,
    ) -> Any:
        """The state before the first token, for inputs of `dtype`.

        A window keeps that dtype, None being PyTorch's default; for a linear attention only float64 matters.
        """
        if foreign:
            refuse(Variant.init_state, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, heads, dtype)
        return self._start(batch, heads, device, dtype)

    def state_bytes(
        self, batch: int, heads: int, dtype: torch.dtype | None = None, **foreign: NoReturn
    ) -> int:
        """Bytes of `init_state(batch, heads, dtype=dtype)`, whatever the length of the sequence."""
        if foreign:
            refuse(Variant.state_bytes, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, heads, dtype)
        return self._start_bytes(batch, heads, dtype)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None = None,
        initial_state: Any = None,
        output_final_state: bool = False,
        **foreign: NoReturn,
    ) -> Any:
        """Naive quadratic mathematics in q's precision: o, or (o, final_state) if `output_final_state`."""
        if foreign:
            refuse(Variant.reference, tuple(foreign))
        checks.qkv(self, q, k, v)
        scale = self.default_scale if scale is None else checks.scale(scale)
        if initial_state is not None:
            self._check_state(self, "initial_state", initial_state, q)
        o, final_state = self._reference(q, k, v, scale, initial_state)
        return (o, final_state) if output_final_state else o

    def backends(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> list[dispatch.BackendStatus]:
        """What can serve this variant on `device` (default: CUDA if there is one), and why not the others."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return dispatch.statuses(self._record, torch.device(device).type, dtype or self.dtypes[0])

    @abstractmethod
    def _setup(self) -> None:
        """Sets the attributes of the mixer."""

    @abstractmethod
    def _start(
        self, batch: int, heads: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Any:
        """`init_state` after validation."""

    @abstractmethod
    def _start_bytes(self, batch: int, heads: int, dtype: torch.dtype | None) -> int:
        """`state_bytes` after validation."""

    @abstractmethod
    def _check_state(self, facts: Any, argument: str, state: Any, q: Tensor, in_place: bool = False) -> None:
        """Raises `StateError` unless `state` fits this variant, and a call with `q` that may update it."""

    def _check_overlap(self, facts: Any, state: Any, *qkv: Tensor) -> None:
        """Raises `StateError` if parts of a valid state share memory with each other or with q, k, v."""
        parts = state if state[-1] is not None else state[:-1]  # what a layer lacks comes last
        if facts is not self:
            found = self._collision((*qkv, *parts), len(qkv))
        else:  # traced tensors have no memory yet: the operator sees where they lie
            found = next(((3, 4) for part in parts[1:] if part is parts[0]), None)
        if found is not None:
            refuse_overlap(("q", "k", "v", *(f"state.{name}" for name in state._fields)), found)

    @abstractmethod
    def _reference(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, initial_state: Any
    ) -> tuple[Tensor, Any]:
        """`reference` after validation."""

    def _key(self, which: str, scale: Any, backend: Any) -> tuple[Any, ...]:
        """What tells calls of a pass apart besides their tensors; see `Replays`."""
        autocast = None
        if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cuda"):
            autocast = torch.get_autocast_dtype("cuda")
        return which, scale, type(scale), dispatch.asked(backend), autocast  # True is 1.0, but no scale

    def _first(self, key: tuple[Any, ...], kernel: str, scale: float, *qkv: Tensor) -> Tensor:
        """The outputs of a call without states; calls like it will be replayed."""
        forward, trained = self._ops.kernels[kernel].forward, ops.needs_gradient(*qkv)

        def run(*qkv: Tensor) -> Sequence[Tensor]:
            return forward(*self._forward_arguments(scale, *qkv))[: 2 if trained else 1]

        derive = partial(self._gradients, kernel, scale) if trained else None
        return self._replays.first(key, run, qkv, derive)[0]

    def _first_step(
        self, key: tuple[Any, ...], kernel: str, scale: float, state: Any, *qkv: Tensor
    ) -> Tensor:
        """The same for a step."""
        step, absent = self._ops.kernels[kernel].step, [None for part in state if part is None]
        parts = [part for part in state if part is not None]  # what a layer lacks comes last

        def run(q: Tensor, k: Tensor, v: Tensor, *parts: Tensor) -> Sequence[Tensor]:
            return (step(q, k, v, scale, *parts, *absent),)

        changed = range(len(qkv), len(qkv) + len(parts))
        return self._replays.first(key, run, (*qkv, *parts), changed=changed)[0]

    def _gradients(
        self,
        kernel: str,
        scale: float,
        d_o: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        kept: Tensor,
    ) -> Sequence[Tensor]:
        """Gradients of q, k and v, given that of o and what else the forward pass kept."""
        tensors = (d_o, q, k, v, o, kept)
        traced = is_traced()
        if not (traced or ops.needs_gradient(*tensors)):
            key = "backward", kernel, scale
            if (results := self._replays.results(key, *tensors)) is not None:
                return results
            if recordable(kernel, *tensors):
                backward = self._ops.kernels[kernel].backward

                def run(*tensors: Tensor) -> Sequence[Tensor]:
                    return backward(*self._backward_arguments(scale, *tensors))[:3]

                return self._replays.first(key, run, tensors)
        arguments = self._backward_arguments(scale, *tensors)
        return ops.call(self._ops.backward, not traced, *arguments, kernel)[:3]

    @abstractmethod
    def _sequence(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        initial_state: Any,
        output_final_state: bool,
        backend: str | None,
    ) -> tuple[Tensor, Any]:
        """`__call__` where nothing is remembered; with a `key` a call may be."""

    @abstractmethod
    def _token(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Any,
        scale: float | None,
        backend: str | None,
    ) -> Tensor:
        """The same for `step`."""

    def _nothing(
        self, q: Tensor, k: Tensor, v: Tensor, initial_state: Any, output_final_state: bool
    ) -> tuple[Tensor, Any]:
        """A call without a batch, a token or a head: the state stays, and every gradient is zero."""
        state = initial_state
        if state is None:
            state = self._start(q.shape[0], q.shape[2], q.device, q.dtype)
        parts = [x for x in (q, k, v, *state) if x is not None and x.is_floating_point()]
        zero = sum(x[:0].sum() for x in parts)  # of all arguments, as outputs are of all arguments elsewhere
        o = v - zero
        if not output_final_state:
            return o, None
        ends = [
            x if x is None else (x - zero if x.is_floating_point() else x + 0).contiguous() for x in state
        ]
        return o, self._state_type(*ends)

    @staticmethod
    @abstractmethod
    def _forward_arguments(scale: float, q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
        """Arguments of the forward pass where no state comes in or goes out."""

    @staticmethod
    @abstractmethod
    def _backward_arguments(
        scale: float, d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, kept: Tensor
    ) -> tuple[Any, ...]:
        """The same for the backward pass; `kept` is the forward pass's second result."""

    def _autocast(
        self, q: Tensor, k: Tensor, v: Tensor, ring: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs as autocast wants them, where it is on.

        A `ring` that a step will write into stays as it is, and if it has float32, the inputs take that.
        """
        dtype = self.autocast_dtype(q)
        if dtype is None:
            return q, k, v
        if isinstance(ring, Tensor) and ring.dtype == torch.float32 and torch.float32 in self.dtypes:
            dtype = torch.float32
        return cast(q, dtype), cast(k, dtype), cast(v, dtype)

    def autocast_dtype(self, q: Tensor) -> torch.dtype | None:
        """The dtype that autocast gives a call with `q`: its own or float32, as the spec allows, or None."""
        if not isinstance(q, Tensor):
            return None
        device = q.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast to ask about
            return None
        dtype = torch.get_autocast_dtype(device)
        if dtype in self.dtypes:
            return dtype
        return torch.float32 if torch.float32 in self.dtypes else None


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as autocast casts it."""
    # float64 stays, and so does what is no floating tensor, for the checks to name.
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(dtype)
