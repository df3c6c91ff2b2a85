"""The fading sum as PyTorch sees it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from based_ops.codegen.dtypes import ACC

from ..state import storable
from ..state_base import State
from ..tracing import is_traced
from ..variant import Tensors, Variant


class _Sums(NamedTuple):
    sums: Tensor


@storable(layout=1, roles=(ACC,))
class FadingSumState(State, _Sums):
    """The last sums, [B,H,D] in float32 (float64 for float64 inputs)."""


class FadingSumVariant(Variant):
    """s_t = a_h s_{t-1} + x_t + c_d, with x [B,T,H,D], a [H] and c [D]; y_t is s_t."""

    _state_type = FadingSumState

    def __call__(
        self,
        x: Tensor,
        a: Tensor,
        c: Tensor,
        initial_state: FadingSumState | None = None,
        output_final_state: bool = False,
        backend: str | None = None,
    ) -> tuple[Tensor, FadingSumState | None]:
        """The sums after every token, y [B,T,H,D], and the state after the last."""
        return self._call((x, a, c), None, initial_state, output_final_state, backend)

    def step(
        self, x: Tensor, state: FadingSumState, a: Tensor, c: Tensor, backend: str | None = None
    ) -> Tensor:
        """A few more tokens; updates `state` in place.  Not differentiable."""
        return self._step((x, a, c), None, state, backend)

    def init_state(self, batch: int, heads: int, device: Any = None, dtype: Any = None) -> FadingSumState:
        """The state before the first token."""
        state: FadingSumState = self._form.zeros(batch, heads, device, dtype, is_traced())
        return state

    def state_bytes(self, batch: int, heads: int, dtype: Any = None) -> int:
        """Bytes of such a state."""
        return self._form.bytes(batch, heads, dtype)

    def reference(self, x: Tensor, a: Tensor, c: Tensor, initial_state: FadingSumState | None = None) -> Any:
        """Naive mathematics in x's precision: y and the state."""
        return self._reference((x, a, c), (), initial_state)

    def _reference(self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any) -> Any:
        from ..reference.fading_sum import fading_sum

        y, sums = fading_sum(*tensors, *(initial_state or ()))
        return y, FadingSumState(sums)


VARIANT = FadingSumVariant
