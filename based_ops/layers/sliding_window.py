"""Sliding window attention as a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError, fail
from ..state import SlidingWindowState
from ..variant import Variant
from .base import AttentionLayer
from .rotary import rotate


class SlidingWindowAttention(AttentionLayer):
    """Multi-head causal attention over the window of `variant`, with rotary embedding of q and k.

    There are no masks yet: padding before a sequence is keys that it sees.
    """

    mixer = "sliding_window"

    def __init__(
        self,
        d_model: int,
        heads: int,
        variant: Variant | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, heads, variant, device=device, dtype=dtype)
        if self.op.qk % 2:
            fail(
                ShapeError,
                "variant",
                f"{self.op.name} with qk {self.op.qk}",
                "of even qk, for rotary embedding",
            )

    def forward(
        self, x: Tensor, state: SlidingWindowState | None = None, output_state: bool = False
    ) -> tuple[Tensor, SlidingWindowState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`)."""
        q, k, v = self._project(x)
        position = torch.arange(x.shape[1], device=x.device).unsqueeze(-1)
        if state is not None:
            position = position + state.position.unsqueeze(1)
        q, k = rotate(q, position), rotate(k, position)
        o, final = self.op(q, k, v, initial_state=state, output_final_state=output_state)
        return self._leave(o), final

    def step(self, x: Tensor, state: SlidingWindowState) -> Tensor:
        """One token, [B,1,d_model] to the same shape; updates `state` in place.  Not differentiable."""
        q, k, v = self._project(x, tokens=1)
        position = state.position.unsqueeze(1)
        return self._leave(self.op.step(rotate(q, position), rotate(k, position), v, state))
