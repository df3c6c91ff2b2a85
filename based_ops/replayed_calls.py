"""Calls of a variant like an earlier one, and what their replays are told apart by.

What is remembered runs generated passes past operators: see `replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dispatch, ops
from .ops import call, is_any_autocast_enabled
from .replay import Replays, recordable
from .state_base import named, variant_of
from .tracing import is_traced

Tensors = tuple[Tensor | None, ...]


class ReplayedCalls:
    """What a variant does for calls that are replayed."""

    name: str
    _ops: ops.Ops
    _replays: Replays
    _wide: list[int]
    """Which inputs are wide, and contiguous for kernels."""
    _optional: bool
    """Whether calls may leave inputs out."""
    _asked: bool
    _kept: int
    _keeps_output: bool
    _no_carry: Tensors
    _no_final: Tensors
    _own: tuple[str | None, ...]
    _state_type: Any

    if TYPE_CHECKING:

        def _leave(
            self, tensors: Tensors, final: Sequence[Tensor], initial_state: Any, length: int
        ) -> Any: ...

    def _given(self, tensors: Tensors, indices: Tensor | None = None) -> Sequence[Any]:
        """The inputs that a call gives, and its indices."""
        tensors = tensors if indices is None else (*tensors, indices)
        return [x for x in tensors if x is not None] if self._optional else tensors

    def _key(self, which: str, factor: Any, backend: Any, tensors: Tensors) -> tuple[Any, ...]:
        """What tells calls of a pass apart besides their tensors; see `Replays`."""
        autocast = None
        if is_any_autocast_enabled() and torch.is_autocast_enabled("cuda"):
            autocast = torch.get_autocast_dtype("cuda")
        absent = tuple([x is None for x in tensors]) if self._optional else ()
        # True is 1.0, but no factor.
        return which, factor, type(factor), dispatch.asked(backend), autocast, absent

    def _parts(self, state: Any) -> Sequence[Tensor]:
        """Those of an initial state that operators take as they are; none of any other, or of None."""
        if type(state) is not self._state_type or variant_of(state) not in self._own:
            return ()
        return state if state[-1] is not None else state[:-1]  # what a layer lacks

    def _final(self, results: Sequence[Tensor], asked: bool) -> Any:
        """The state after a call, of the results of its replay."""
        return named(self._leave((), results[1:], None, 0), self.name) if asked else None

    def _may_record(
        self,
        kernel: str,
        tensors: Tensors,
        places: Sequence[Tensor],
        parts: Sequence[Tensor],
        final: bool,
    ) -> bool:
        """Whether a call, which is valid, may be remembered; nobody derives a replay of one with states."""
        given = (*self._given(tensors), *places, *parts)
        if (parts or final) and ops.needs_gradient(*given):
            return False
        return recordable(kernel, given, [*[tensors[i] for i in self._wide], *parts])

    def _first(
        self,
        key: tuple[Any, ...],
        kernel: str,
        numbers: tuple[float, ...],
        tensors: Tensors,
        parts: Sequence[Tensor],
        final: bool,
        places: Sequence[Tensor] = (),
        promised: tuple[bool, ...] = (),
    ) -> Sequence[Tensor]:
        """The output of a call, and the parts of its final state; calls like it will be replayed.

        `places` say where packed sequences lie, on the device: what they hold may differ from call to call.
        `promised` is how they are cut, of a layer that asks.
        """
        given = self._given(tensors)
        forward, trained = self._ops.kernels[kernel].forward, ops.needs_gradient(*given)
        rest = (*self._no_carry[len(parts) :], *((final,) if self._asked else ()))
        there, count, laid = tuple([x is not None for x in tensors]), len(given), len(places)
        wanted = 1 + self._kept if trained else 1

        def run(*given: Tensor) -> Sequence[Tensor]:
            inputs, where = _filled(there, given[:count]), given[count : count + laid]
            results = forward(*inputs, *numbers, *given[count + laid :], *rest, *where, *promised)
            if not isinstance(results, tuple):
                return (results,)
            return (results[0], *results[1 + self._kept :]) if final else results[:wanted]

        backward = "backward", kernel, numbers, there, laid, promised
        derive = partial(self._gradients, backward) if trained else None
        return self._replays.first(key, run, (*given, *places, *parts), derive)

    def _first_step(
        self,
        key: tuple[Any, ...],
        kernel: str,
        numbers: tuple[float, ...],
        state: Any,
        tensors: Tensors,
    ) -> Tensor:
        """The same for a step; `tensors` are its inputs and its indices."""
        step, given = self._ops.kernels[kernel].step, [x for x in tensors if x is not None]
        parts = [part for part in state if part is not None]  # what a layer lacks comes last
        absent, count = [None] * (len(state) - len(parts)), len(given)
        there = [x is not None for x in tensors]

        def run(*passed: Tensor) -> Sequence[Tensor]:
            *inputs, indices = _filled(there, passed[:count])
            return (step(*inputs, *numbers, *passed[count:], *absent, indices),)

        changed = range(count, count + len(parts))
        return self._replays.first(key, run, (*given, *parts), changed=changed)[0]

    def _gradients(
        self,
        key: tuple[str, str, tuple[float, ...], tuple[bool, ...], int, tuple[bool, ...]],
        d_output: Tensor,
        *tensors: Tensor,
    ) -> Sequence[Tensor | None]:
        """Gradients of what a call gave, given that of the output.

        The `key` says besides which kernels have served it, with which factors, which inputs were there, how
        many tensors said where they lie, and how these are cut.  `tensors` are all of these, the output, and
        what else the forward pass kept.
        """
        _, kernel, numbers, there, laid, promised = key
        of_places = (None,) * laid
        ready = not is_traced()
        if ready and not ops.needs_gradient(d_output, *tensors):
            if (results := self._replays.results(key, d_output, *tensors)) is not None:
                return (*results, *of_places)
            if recordable(kernel, (d_output, *tensors)):
                backward = self._ops.kernels[kernel].backward

                def run(*tensors: Tensor) -> Sequence[Tensor]:
                    arguments, places = self._of_backward(numbers, there, laid, *tensors)
                    return tuple(compress(backward(*arguments, *places, *promised), there))

                return (*self._replays.first(key, run, (d_output, *tensors)), *of_places)
        arguments, places = self._of_backward(numbers, there, laid, d_output, *tensors)
        gradients = call(self._ops.backward, ready, (*arguments, kernel, *places, *promised))
        return (*compress(gradients, there), *of_places)

    def _of_backward(
        self,
        numbers: tuple[float, ...],
        there: Sequence[bool],
        laid: int,
        d_output: Tensor,
        *tensors: Tensor,
    ) -> tuple[tuple[Any, ...], Sequence[Tensor]]:
        """The arguments of the backward pass of a call without states, and where its sequences lie."""
        count = sum(there)
        read = tensors[count + laid + (not self._keeps_output) :]
        inputs = _filled(there, tensors[:count])
        arguments = (d_output, *self._no_final, *inputs, *read, *numbers, *self._no_carry)
        return arguments, tensors[count : count + laid]


def _filled(there: Sequence[bool], given: Sequence[Tensor]) -> list[Tensor | None]:
    """All inputs, None for those that a call does not give."""
    left = iter(given)
    return [next(left) if is_there else None for is_there in there]
