"""What the public objects of all mixers share: what `based_ops.get` and `based_ops.load` return.

Everything here follows from the signature of the layer.  A mixer adds the public functions with their names
and documents, and what a state becomes before and after an operator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from based_ops.codegen.spec.signature import MOST_TOKENS

from . import checks, dispatch, invariance, ops, packed, sharding, slots, tracing
from .admission import refuse_overlap
from .ops import call, call_step, is_any_autocast_enabled
from .replay import Replays, recordable
from .replayed_calls import ReplayedCalls, Tensors
from .sharding import is_distributed
from .state_base import State, named
from .state_form import StateForm
from .tracing import is_traced

if TYPE_CHECKING:
    from .record import Record


def dtype_named(name: str) -> torch.dtype:
    """`torch.float32` for "float32"."""
    return getattr(torch, name)


StateT = TypeVar("StateT", bound=State)
"""The state of a mixer."""


class Variant(ReplayedCalls, ABC, Generic[StateT]):
    """A compiled layer spec; `Variant[S]` has states of type S.

    `based_ops.get` and `based_ops.load` make them.  A variant is called with a whole sequence, and its `step`
    with up to 16 tokens more; those of layers with queries are `based_ops.attention.AttentionVariant`s.

    Examples:
        >>> import based_ops, torch
        >>> op = based_ops.get("taylor2_qk16_v64")
        >>> q, k, v = torch.randn(1, 9, 2, 16), torch.randn(1, 9, 2, 16), torch.randn(1, 9, 2, 64)
        >>> o, state = op(q, k, v, output_final_state=True)  # [B, T, H, qk] and [B, T, H, v] to [B, T, H, v]
        >>> o.shape, state.nbytes
        (torch.Size([1, 9, 2, 64]), 79560)
    """

    name: str
    spec: Any
    """The spec, of its mixer's class (`codegen.mixers`)."""
    dtypes: tuple[torch.dtype, ...]
    """Dtypes of inputs; float64 is computed on the torch backend only."""
    backward_products = 2.5
    """Operations of a backward pass over those of its forward: five products for each two of attention."""
    alike_in_batches = False
    """Whether kernels give several tokens the same bits in any batch, and packed, whatever plans say."""
    _state_type: Any
    _other_dtype = ""
    """What to say besides where a state has another dtype than the inputs."""

    core: Variant[StateT]
    """The layer whose kernels these are: itself, unless it makes features first (`FeaturedVariant`)."""

    def __init__(self, record: Record) -> None:
        self.core = self
        spec = record.layer
        self.name = record.name
        self.spec = spec
        self.dtypes = (*(dtype_named(name) for name in spec.dtypes), torch.float64)
        self._plain = SimpleNamespace(name=self.name, dtypes=self.dtypes)
        self._record = record
        self._ops = ops.of(record.name)
        self._collision = self._ops.admission.apart.collision
        self._replays = Replays()
        self.signature = signature = self._ops.signature
        self._optional = any(x.optional for x in signature.inputs)
        self._wide = [i for i, x in enumerate(signature.inputs) if x.wide]
        self.unit = signature.unit
        """H where calls have heads, and D where they have channels."""
        self._form = StateForm(self.name, self._state_type, signature, spec.kept_dtype, self._other_dtype)
        self._step_names = [*(x.name for x in signature.inputs), slots.NAME]
        self._step_names += [f"state.{part.field}" for part in self._form.parts]
        self._kept = len(signature.kept)
        self._no_carry: Tensors = (None,) * len(signature.carried)
        self._no_final: Tensors = (None,) * len(signature.final)
        self._asked = bool(signature.final)
        self._adapts = signature.adapts
        self._keeps_output = signature.keeps_output
        kind = type(self)
        self._states_are_taken = (kind._enter, kind._leave) == (Variant._enter, Variant._leave)
        self._own = None, self.name  # what a state may say of its variant, in most calls
        self._setup()

    def _know(self, **numbers: Any) -> None:
        """Sets the values of `constant` properties."""
        tracing.numbers(self.name, numbers)
        vars(self._plain).update(numbers)

    def _facts(self) -> Any:
        """Where a call reads name, dtypes and numbers of the variant.

        In eager mode from plain attributes: reading five `constant`s takes longer than the checks they serve.
        Where operators are recorded it is the variant itself.
        """
        return self if is_traced() else self._plain

    def __repr__(self) -> str:
        return f"<based_ops variant {self.name}: {self.spec.mixer}, {self.spec.describe()}>"

    def __reduce__(self) -> Any:
        from based_ops.codegen.spec.model import dump_yaml

        from .jit import pickled

        return pickled, (self.name, dump_yaml(self.spec))

    @property
    def operators(self) -> ops.Operators:
        """The operators that calls are: for policies of selective checkpointing, and for tools."""
        return ops.Operators(self._ops.forward, self._ops.backward, self._ops.step)

    def backends(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> list[dispatch.BackendStatus]:
        """What can serve this variant on `device` (default: CUDA if there is one), and why not the others.

        Args:
            device: Where a call would be; only its type matters.
            dtype: That of its inputs; the first of the spec's unless given.

        Returns:
            A status of each backend: whether it can serve, whether it would by default, and why not.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return dispatch.statuses(self._record, torch.device(device).type, dtype or self.dtypes[0])

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Operations of the products of one sequence in one head or channel, at least, for its outputs.

        A multiplication and an addition are two.  `begun`: from a state; `final`: to one.  A step is a
        sequence of one token with both.  Counters of operations ask; a mixer that says nothing has none.
        """
        return 0.0

    # What mixers add

    if TYPE_CHECKING:  # a name says nothing of the mixer, and so of the numbers that it adds

        def __getattr__(self, name: str) -> Any: ...

    if TYPE_CHECKING:  # each mixer has parameters of its own
        __call__: Callable[..., tuple[Tensor, StateT | None]]
        """The output of a sequence, and the state after it if that is asked for."""
        step: Callable[..., Tensor]
        """The output of a few more tokens; the state is updated in place."""
        init_state: Callable[..., StateT]
        """The state before the first token."""
        state_bytes: Callable[..., int]
        """Bytes of such a state."""
        reference: Callable[..., Tensor | tuple[Tensor, StateT]]
        """Naive mathematics in the inputs' precision; with the state after it if that is asked for."""
    else:

        @abstractmethod
        def __call__(self, *inputs, **options): ...
        @abstractmethod
        def step(self, *inputs, **options): ...
        @abstractmethod
        def init_state(self, *sizes, **options): ...
        @abstractmethod
        def state_bytes(self, *sizes, **options): ...
        @abstractmethod
        def reference(self, *inputs, **options): ...

    def _setup(self) -> None:  # noqa: B027
        """Sets the attributes of the mixer."""

    def _numbers(self, facts: Any, factor: Any) -> tuple[float, ...]:
        """The factors of a call, checked, from what it gives for them."""
        return ()

    def _check_inputs(self, facts: Any, tensors: Tensors, most: int | None = None) -> tuple[int, int, int]:
        """Batch, length, and channels or the state's heads; raises typed errors unless its inputs are right.

        `most` is how many tokens there may be.
        """
        return checks.inputs(self.signature.inputs, facts, tensors, most)

    def _nothing(self, tensors: Tensors) -> Any:
        """What has the shape of the output, if that has no elements."""
        width, kinds = self.signature.output.dims[-1], self.signature.inputs
        return next(x for x, kind in zip(tensors, kinds, strict=True) if kind.dims[-1] == width)

    @classmethod
    def _class_of(cls, spec: Any) -> type[Variant[Any]]:
        """The class of the variants of such a spec."""
        return cls

    def _settle(self, state: Any, kernel: str) -> Any:
        """An initial state as `_enter` takes it, made by the `kernel` that serves the call."""
        return state

    def _settled(self, state: Any) -> Any:
        """A final state, with gradients only where those of a call have any."""
        return state

    def _enter(self, tensors: Tensors, state: Any) -> tuple[Tensors, Tensors]:
        """What the forward operator takes, of the inputs and of an initial state."""
        return tensors, state

    def _leave(self, tensors: Tensors, final: Sequence[Tensor], initial_state: Any, length: int) -> Any:
        """The state after a call whose operator took `tensors`, and left `final`."""
        if self._form.complete:
            return self._state_type(*final)
        parts = zip(self._form.parts, final, strict=True)
        return self._state_type(*[x if part.present else None for part, x in parts])

    @abstractmethod
    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, Any]:
        """`reference` after validation."""

    def _naively(
        self,
        tensors: Tensors,
        sizes: tuple[int, int, int],
        numbers: tuple[float, ...],
        initial_state: Any,
        output_final_state: bool,
        offsets: Tensor | None,
        mask: Tensor | None,
    ) -> Any:
        """`reference` of what the operators take, whose `sizes` were found; sequence by sequence if `offsets`
        or a `mask` tell several apart."""
        lead: Any = tensors[0]
        (count, length, units), places = sizes, None
        if offsets is not None or mask is not None:
            places, count = packed.places(offsets, mask, lead, count, length, False)
        if initial_state is not None:
            self._form.check("initial_state", initial_state, lead, count, units, is_traced())
        if places is None:
            y, final = self._reference(tensors, numbers, initial_state)
        else:
            y, final = packed.each(
                self,
                tensors,
                initial_state,
                places.tolist(),
                lambda own, state: self._reference(tuple(own), numbers, state),
            )
        return (y, named(final, self.name)) if output_final_state else y

    # Calls

    def _call(
        self,
        tensors: Tensors,
        factor: Any,
        initial_state: Any,
        output_final_state: bool,
        backend: str | None,
        indices: Tensor | None = None,
        offsets: Any = None,
        mask: Any = None,
        invariant: bool = False,
    ) -> tuple[Tensor, Any]:
        """The output of a sequence, and the state after it if that is asked for.

        With `offsets` or a `mask` of several sequences; `invariant`: with the same bits in any batch.
        """
        if invariant or offsets is not None or mask is not None:
            several = invariance.call if invariant else packed.call
            rest = (output_final_state, backend, indices, offsets, mask)
            return several(self, tensors, factor, initial_state, *rest)
        if type(tensors[0]) is not Tensor and is_distributed(tensors[0]):
            return sharding.call(self, tensors, factor, initial_state, output_final_state, backend, indices)
        if indices is not None:
            run = partial(self._call, tensors, factor, output_final_state=output_final_state, backend=backend)
            return slots.call(self._form, self._step_names, tensors, initial_state, indices, run, is_traced())
        facts = self if is_traced() else self._plain  # as of `_facts`, without a call
        which: Any = "forward"
        parts: Sequence[Tensor] = ()
        alone = facts is not self
        if initial_state is not None or output_final_state:
            which, parts = ("forward", initial_state is None, output_final_state), self._parts(initial_state)
            alone = alone and self._states_are_taken and (initial_state is None or len(parts) > 0)
        if alone and self._replays.known:
            key = self._key(which, factor, backend, tensors)
            if (results := self._replays.results(key, *self._given(tensors), *parts)) is not None:
                return results[0], self._final(results, output_final_state)
        if is_any_autocast_enabled():
            tensors = self._autocast(tensors)
            lead: Any = tensors[0]
            if type(initial_state) is self._state_type and lead.dtype == self.autocast_dtype(lead):
                initial_state = self._form.cast(initial_state, lead.dtype)
                parts = self._parts(initial_state)
        batch, length, units = self._check_inputs(facts, tensors)
        numbers = self._numbers(facts, factor)
        lead = tensors[0]
        if initial_state is not None:
            self._form.check("initial_state", initial_state, lead, batch, units, facts is self)
        kernel = dispatch.kernel(self.name, backend, lead.device, lead.dtype, facts is self)
        if batch == 0 or length == 0 or units == 0:
            if initial_state is not None and output_final_state:
                initial_state = self._settle(initial_state, kernel)
            output, final = self._form.after_nothing(
                tensors, units, self._nothing(tensors), initial_state, output_final_state, is_traced()
            )
            return output, self._settled(final) if output_final_state else None
        if alone and self._may_record(kernel, tensors, (), parts, output_final_state):
            key = self._key(which, factor, backend, tensors)
            results = self._first(key, kernel, numbers, tensors, parts, output_final_state)
            return results[0], self._final(results, output_final_state)
        entered, carried = tensors, self._no_carry
        if initial_state is not None:
            entered, carried = self._enter(tensors, self._settle(initial_state, kernel))
            carried = (*carried, *self._no_carry[len(carried) :])
        asked = (output_final_state,) if self._asked else ()
        results = call(self._ops.forward, facts is not self, (*entered, *numbers, *carried, *asked, kernel))
        output, *others = results if isinstance(results, tuple) else (results,)
        if not output_final_state:
            return output, None
        return output, named(self._leave(entered, others[self._kept :], initial_state, length), self.name)

    def _step(self, tensors: Tensors, factor: Any, state: Any, backend: Any, indices: Any = None) -> Tensor:
        """The output of a few more tokens; the state, or with `indices` the slots of a pool, is updated."""
        if type(tensors[0]) is not Tensor and is_distributed(tensors[0]):
            return sharding.step(self, tensors, factor, state, backend, indices)
        facts = self if is_traced() else self._plain  # as of `_facts`, without a call
        alone = facts is not self and type(state) is self._state_type and state.variant in self._own
        which = "step" if indices is None else "step in slots"
        if alone and self._replays.known:
            key = self._key(which, factor, backend, tensors)
            parts = state if state[-1] is not None else state[:-1]  # what a layer lacks comes last
            if (results := self._replays.results(key, *self._given(tensors, indices), *parts)) is not None:
                return results[0]
        if is_any_autocast_enabled():
            tensors = self._autocast(tensors, self._form.inputs(state))
        batch, length, units = self._check_inputs(facts, tensors, MOST_TOKENS)
        numbers = self._numbers(facts, factor)
        lead: Any = tensors[0]
        count = batch if indices is None else slots.count("state", state, indices, lead, batch, facts is self)
        self._form.check("state", state, lead, count, units, facts is self, True, indices is not None)
        self._check_overlap(facts, state, (*tensors, indices))
        if torch.is_grad_enabled() and (facts is self or torch._C._any_requires_grad(*tensors, *state)):
            checks.no_gradient(self._step_names, (*tensors, indices, *state))
        kernel = dispatch.kernel(self.name, backend, lead.device, lead.dtype, facts is self)
        if batch == 0 or length == 0 or units == 0:
            return self._nothing(tensors).clone()
        alone = alone and (indices is None or slots.in_place(state))
        if alone and recordable(kernel, self._given(tensors, indices), [tensors[i] for i in self._wide]):
            key = self._key(which, factor, backend, tensors)
            return self._first_step(key, kernel, numbers, state, (*tensors, indices))
        arguments = (*tensors, *numbers, *state, kernel, indices)
        return call_step(self._ops.step, facts is not self, state, arguments)

    def _check_overlap(self, facts: Any, state: Any, tensors: Tensors) -> None:
        """Raises `StateError` if parts of a valid state share memory with each other or with inputs."""
        parts = state if state[-1] is not None else state[:-1]  # what a layer lacks comes last
        given = [x for x in tensors if x is not None]
        if facts is not self:
            found = self._collision((*given, *parts), len(given))
        else:  # traced tensors have no memory yet: the operator sees where they lie
            count = len(given)
            found = next(((count, count + 1) for part in parts[1:] if part is parts[0]), None)
        if found is not None:
            names = compress(self._step_names, [x is not None for x in (*tensors, *parts)])
            refuse_overlap([*names], found)

    # Autocast

    def _autocast(self, tensors: Tensors, ring: Tensor | None = None) -> Tensors:
        """The inputs as autocast wants them, where it is on.

        A `ring` that a step will write into stays as it is, and if it has float32, the inputs take that.
        """
        dtype = self.autocast_dtype(tensors[0])
        if dtype is None:
            return tensors
        if isinstance(ring, Tensor) and ring.dtype == torch.float32 and torch.float32 in self.dtypes:
            dtype = torch.float32
        return tuple([x if i in self._wide else checks.cast(x, dtype) for i, x in enumerate(tensors)])

    def autocast_dtype(self, q: Tensor | None) -> torch.dtype | None:
        """The dtype that autocast gives a call with `q`: its own or float32, as the spec allows, or None."""
        return checks.autocast_dtype(q, self.dtypes)
