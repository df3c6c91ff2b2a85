"""Sliding window attention: operators over the generated passes, and the public object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch
from ..errors import StateError, fail
from ..ops import call, call_step
from ..replay import recordable
from ..state import SlidingWindowState, first_valid, linear_to_ring, ring_of_start, ring_to_linear
from ..variant import Variant, cast, constant

_OTHER_DTYPE = (
    "; a window has the dtype of the call that made it, which under autocast is autocast's: go on as you "
    "began, or convert it, `state._replace(k=state.k.to(dtype), v=state.v.to(dtype))`"
)


class SlidingWindowVariant(Variant):
    """Causal softmax attention in which a query sees the last W keys, its own included."""

    _state_type = SlidingWindowState
    window = constant("window", "Keys that a query sees, its own included.")

    def _sequence(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        initial_state: SlidingWindowState | None,
        output_final_state: bool,
        backend: str | None,
    ) -> tuple[Tensor, SlidingWindowState | None]:
        if torch._C._is_any_autocast_enabled():
            q, k, v = self._autocast(q, k, v)
            initial_state = self._autocast_rings(q, initial_state)
        batch, length, heads = checks.qkv(facts, q, k, v)
        if facts is not self and 1 < length < heads:  # in traced code that would be a guard
            checks.warn_of_layout(self.name, length, heads)
        scale = facts.default_scale if scale is None else checks.scale(scale)
        if initial_state is not None:
            self._check_state(facts, "initial_state", initial_state, q)
        kernel = dispatch.kernel(self.name, backend, q.device, q.dtype, facts is self)
        if batch == 0 or length == 0 or heads == 0:
            return self._nothing(q, k, v, initial_state, output_final_state)
        if key is not None and recordable(kernel, q, k, v):
            return self._first(key, kernel, scale, q, k, v), None
        if initial_state is None:
            o, _ = call(self._ops.forward, facts is not self, q, k, v, scale, None, kernel)
            return o, self._state_of_start(k, v) if output_final_state else None
        past = initial_state.position.contiguous()
        k = torch.cat([ring_to_linear(initial_state.k, past), k], dim=1)
        v = torch.cat([ring_to_linear(initial_state.v, past), v], dim=1)
        o, _ = call(
            self._ops.forward, facts is not self, q, k, v, scale, first_valid(past, self.window), kernel
        )
        if not output_final_state:
            return o, None
        position = past + length
        last_k, last_v = k.narrow(1, length, self.window), v.narrow(1, length, self.window)
        return o, SlidingWindowState(
            linear_to_ring(last_k, position), linear_to_ring(last_v, position), position
        )

    def _token(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: SlidingWindowState,
        scale: float | None,
        backend: str | None,
    ) -> Tensor:
        if torch._C._is_any_autocast_enabled():
            q, k, v = self._autocast(q, k, v, getattr(state, "k", None))
        batch, _, heads = checks.qkv(facts, q, k, v, tokens=1)
        scale = facts.default_scale if scale is None else checks.scale(scale)
        self._check_state(facts, "state", state, q, True)
        self._check_overlap(facts, state, q, k, v)
        if torch.is_grad_enabled():
            checks.no_gradient(q=q, k=k, v=v, k_ring=state.k, v_ring=state.v)
        kernel = dispatch.kernel(self.name, backend, q.device, q.dtype, facts is self)
        if batch == 0 or heads == 0:
            return v.clone()
        if key is not None and recordable(kernel, q, k, v):
            return self._first_step(key, kernel, scale, state, q, k, v)
        return call_step(self._ops.step, facts is not self, state, q, k, v, scale, *state, kernel)

    @staticmethod
    def _forward_arguments(scale: float, q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
        return q, k, v, scale, None

    @staticmethod
    def _backward_arguments(
        scale: float, d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, kept: Tensor
    ) -> tuple[Any, ...]:
        return d_o, q, k, v, o, kept, scale, None

    def _start(
        self, batch: int, heads: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> SlidingWindowState:
        return SlidingWindowState(
            torch.zeros(batch, heads, self.window, self.qk, device=device, dtype=dtype),
            torch.zeros(batch, heads, self.window, self.v, device=device, dtype=dtype),
            torch.zeros(batch, heads, device=device, dtype=torch.int32),
        )

    def _start_bytes(self, batch: int, heads: int, dtype: torch.dtype | None) -> int:
        each = (dtype or torch.get_default_dtype()).itemsize
        return batch * heads * (self.window * (self.qk + self.v) * each + torch.int32.itemsize)

    def _setup(self) -> None:
        self._know(window=self.spec.window)

    def _reference(self, q: Tensor, k: Tensor, v: Tensor, scale: float, initial_state: Any) -> Any:
        from ..reference import sliding_window

        return sliding_window(self.window, q, k, v, scale, initial_state)

    def _autocast_rings(self, q: Tensor, state: Any) -> Any:
        """Keys and values of the past, cast like those of a call whose `q` autocast has seen."""
        if not isinstance(state, SlidingWindowState) or q.dtype != self.autocast_dtype(q):
            return state
        return SlidingWindowState(cast(state.k, q.dtype), cast(state.v, q.dtype), state.position)

    def _check_state(
        self, facts: Any, argument: str, state: SlidingWindowState, q: Tensor, in_place: bool = False
    ) -> None:
        if not isinstance(state, SlidingWindowState):
            fail(
                StateError, argument, type(state).__name__, f"a SlidingWindowState, as {self.name} returns it"
            )
        batch, _, heads, _ = q.shape
        k, v = (batch, heads, facts.window, facts.qk), (batch, heads, facts.window, facts.v)
        checks.state_part(argument, "k", state.k, k, q.dtype, q, in_place, _OTHER_DTYPE)
        checks.state_part(argument, "v", state.v, v, q.dtype, q, in_place, _OTHER_DTYPE)
        checks.state_part(argument, "position", state.position, (batch, heads), torch.int32, q, in_place)

    def _state_of_start(self, k: Tensor, v: Tensor) -> SlidingWindowState:
        batch, length, heads, _ = k.shape
        position = k.new_full((batch, heads), length, dtype=torch.int32)  # of k: torch.vmap maps over it too
        return SlidingWindowState(ring_of_start(k, self.window), ring_of_start(v, self.window), position)


VARIANT = SlidingWindowVariant
