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

    def _first(
        self,
        key: tuple[Any, ...],
        kernel: str,
        numbers: tuple[float, ...],
        tensors: Tensors,
        parts: Sequence[Tensor],
        final: bool,
    ) -> Sequence[Tensor]:
        """The output of a call, and the parts of its final state; calls like it will be replayed."""
        given = self._given(tensors)
        forward, trained = self._ops.kernels[kernel].forward, ops.needs_gradient(*given)
        rest = (*self._no_carry[len(parts) :], *((final,) if self._asked else ()))
        there, count = tuple([x is not None for x in tensors]), len(given)
        wanted = 1 + self._kept if trained else 1

        def run(*given: Tensor) -> Sequence[Tensor]:
            results = forward(*_filled(there, given[:count]), *numbers, *given[count:], *rest)
            if not isinstance(results, tuple):
                return (results,)
            return (results[0], *results[1 + self._kept :]) if final else results[:wanted]

        backward = "backward", kernel, numbers, there
        derive = partial(self._gradients, backward) if trained else None
        return self._replays.first(key, run, (*given, *parts), derive)

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
        self, key: tuple[str, str, tuple[float, ...], tuple[bool, ...]], d_output: Tensor, *tensors: Tensor
    ) -> Sequence[Tensor]:
        """Gradients of the inputs that a call gave, given that of the output.

        The `key` says besides which kernels have served it, with which factors, and which inputs were there.
        `tensors` are those inputs, the output, and what else the forward pass kept.
        """
        _, kernel, numbers, there = key
        ready = not is_traced()
        if ready and not ops.needs_gradient(d_output, *tensors):
            if (results := self._replays.results(key, d_output, *tensors)) is not None:
                return results
            if recordable(kernel, (d_output, *tensors)):
                backward = self._ops.kernels[kernel].backward

                def run(*tensors: Tensor) -> Sequence[Tensor]:
                    return tuple(compress(backward(*self._of_backward(numbers, there, *tensors)), there))

                return self._replays.first(key, run, (d_output, *tensors))
        arguments = (*self._of_backward(numbers, there, d_output, *tensors), kernel)
        return tuple(compress(call(self._ops.backward, ready, arguments), there))

    def _of_backward(
        self, numbers: tuple[float, ...], there: Sequence[bool], d_output: Tensor, *tensors: Tensor
    ) -> tuple[Any, ...]:
        """The arguments of the backward pass of a call without states."""
        count = sum(there)
        read = tensors[count:] if self._keeps_output else tensors[count + 1 :]
        inputs = _filled(there, tensors[:count])
        return (d_output, *self._no_final, *inputs, *read, *numbers, *self._no_carry)


def _filled(there: Sequence[bool], given: Sequence[Tensor]) -> list[Tensor | None]:
    """All inputs, None for those that a call does not give."""
    left = iter(given)
    return [next(left) if is_there else None for is_there in there]
