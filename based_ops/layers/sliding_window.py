"""Sliding window attention as a layer."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ..arguments import refuse
from ..checks import state_part
from ..errors import ShapeError, StateError, fail
from ..heads import repeated
from ..state import SlidingWindowState
from ..variant import Variant
from .base import AttentionLayer
from .rotary import rotate


class SlidingWindowAttention(AttentionLayer):
    """Multi-head causal attention over the window of `variant`, with rotary embedding of q and k.

    A layer takes no mask, calls of its variant do: padding before a sequence is keys that it sees.
    """

    mixer = "sliding_window"

    def __init__(
        self,
        d_model: int,
        heads: int,
        variant: Variant | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
        **foreign: NoReturn,
    ) -> None:
        super().__init__(d_model, heads, variant, device, dtype, kv_heads, **foreign)
        if self.op.qk % 2:
            fail(
                ShapeError,
                "variant",
                f"{self.op.name} with qk {self.op.qk}",
                "of even qk, for rotary embedding",
            )

    def forward(
        self,
        x: Tensor,
        state: SlidingWindowState | None = None,
        output_state: bool = False,
        **foreign: NoReturn,
    ) -> tuple[Tensor, SlidingWindowState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`)."""
        if foreign:
            refuse(SlidingWindowAttention.forward, tuple(foreign))
        q, k, v = self._project(x)
        position = self._places(x, state)
        q, k = self._rotated(q, k, position)
        o, final = self.op(q, k, v, initial_state=state, output_final_state=output_state)
        return self._leave(o), final

    def step(self, x: Tensor, state: SlidingWindowState, **foreign: NoReturn) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable."""
        if foreign:
            refuse(SlidingWindowAttention.step, tuple(foreign))
        q, k, v = self._project(x)
        position = self._past(state, x) if x.shape[1] == 1 else self._places(x, state)
        return self._leave(self.op.step(*self._rotated(q, k, position), v, state))

    def _rotated(self, q: Tensor, k: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """q and k at their positions, of which each head of keys has its own."""
        of_q = position if position.shape[-1] == 1 else repeated(position, self.heads, -1)
        return rotate(q, of_q), rotate(k, position)

    def _places(self, x: Tensor, state: SlidingWindowState | None) -> Tensor:
        """The positions of the tokens of x, [T,1] or after a state [B,T,kv_heads]."""
        position = torch.arange(x.shape[1], device=x.device).unsqueeze(-1)
        return position if state is None else position + self._past(state, x)

    def _past(self, state: SlidingWindowState, x: Tensor) -> Tensor:
        """How many tokens came before x, [B,1,kv_heads]."""
        if not isinstance(state, SlidingWindowState):
            fail(StateError, "state", type(state).__name__, "a SlidingWindowState, as this layer returns it")
        shape = (x.shape[0], self.kv_heads)
        state_part("state", "position", state.position, shape, torch.int32, x, in_place=False)
        return state.position.unsqueeze(1)
