"""Linear attention: operators over the generated passes, and the public object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch
from ..errors import StateError, fail
from ..ops import call, call_step
from ..replay import recordable
from ..state import LinearAttentionState, feature_count
from ..variant import Variant, constant, dtype_named


class LinearAttentionVariant(Variant):
    """o_i = Σ_{j≤i} A_ij v_j / (Σ_{j≤i} A_ij + eps), with A the kernel of the spec's feature map."""

    _state_type = LinearAttentionState
    features = constant("features", "Rows of the state.")

    def _sequence(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        initial_state: LinearAttentionState | None,
        output_final_state: bool,
        backend: str | None,
    ) -> tuple[Tensor, LinearAttentionState | None]:
        if torch._C._is_any_autocast_enabled():
            q, k, v = self._autocast(q, k, v)
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
        state, normalizer = (None, None) if initial_state is None else initial_state
        rest = scale, state, normalizer, output_final_state, kernel
        o, _, final, final_n = call(self._ops.forward, facts is not self, q, k, v, *rest)
        if not output_final_state:
            return o, None
        return o, LinearAttentionState(final, final_n if self.normalize else None)

    def _token(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: LinearAttentionState,
        scale: float | None,
        backend: str | None,
    ) -> Tensor:
        if torch._C._is_any_autocast_enabled():
            q, k, v = self._autocast(q, k, v)
        batch, _, heads = checks.qkv(facts, q, k, v, tokens=1)
        scale = facts.default_scale if scale is None else checks.scale(scale)
        self._check_state(facts, "state", state, q, True)
        self._check_overlap(facts, state, q, k, v)
        if torch.is_grad_enabled():
            checks.no_gradient(q=q, k=k, v=v, state=state.state, normalizer=state.normalizer)
        kernel = dispatch.kernel(self.name, backend, q.device, q.dtype, facts is self)
        if batch == 0 or heads == 0:
            return v.clone()
        if key is not None and recordable(kernel, q, k, v):
            return self._first_step(key, kernel, scale, state, q, k, v)
        return call_step(self._ops.step, facts is not self, state, q, k, v, scale, *state, kernel)

    @staticmethod
    def _forward_arguments(scale: float, q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
        return q, k, v, scale, None, None, False

    @staticmethod
    def _backward_arguments(
        scale: float, d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, kept: Tensor
    ) -> tuple[Any, ...]:
        return d_o, None, None, q, k, v, o, kept, scale, None, None

    def _start(
        self, batch: int, heads: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> LinearAttentionState:
        kept = torch.float64 if dtype == torch.float64 else self.state_dtype
        state = torch.zeros(batch, heads, self.features, self.v, device=device, dtype=kept)
        if not self.normalize:
            return LinearAttentionState(state, None)
        return LinearAttentionState(
            state, torch.zeros(batch, heads, self.features, device=device, dtype=kept)
        )

    def _start_bytes(self, batch: int, heads: int, dtype: torch.dtype | None) -> int:
        kept = torch.float64 if dtype == torch.float64 else self.state_dtype
        return batch * heads * self.features * (self.v + (1 if self.normalize else 0)) * kept.itemsize

    def _setup(self) -> None:
        self._know(features=feature_count(self.spec))
        self.normalize: bool = self.spec.normalize
        self.state_dtype = dtype_named(self.spec.state_dtype)

    def _reference(self, q: Tensor, k: Tensor, v: Tensor, scale: float, initial_state: Any) -> Any:
        from ..reference import linear_attention

        return linear_attention(self.spec, q, k, v, scale, initial_state)

    def _check_state(
        self, facts: Any, argument: str, state: LinearAttentionState, q: Tensor, in_place: bool = False
    ) -> None:
        if not isinstance(state, LinearAttentionState):
            fail(
                StateError,
                argument,
                type(state).__name__,
                f"a LinearAttentionState, as {self.name} returns it",
            )
        batch, _, heads, _ = q.shape
        shape = (batch, heads, facts.features, facts.v)
        kept = torch.float64 if q.dtype == torch.float64 else self.state_dtype
        checks.state_part(argument, "state", state.state, shape, kept, q, in_place)
        if self.normalize:
            if state.normalizer is None:
                fail(StateError, f"{argument}.normalizer", None, f"a tensor, since {self.name} normalises")
            checks.state_part(argument, "normalizer", state.normalizer, shape[:3], kept, q, in_place)
        elif state.normalizer is not None:
            fail(
                StateError,
                f"{argument}.normalizer",
                "a tensor",
                f"None, since {self.name} does not normalise",
            )


VARIANT = LinearAttentionVariant
