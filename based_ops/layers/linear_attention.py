"""Linear attention as a layer."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from ..arguments import refuse
from ..state import LinearAttentionState
from .base import AttentionLayer


class LinearAttention(AttentionLayer):
    """Multi-head causal linear attention with the feature map of `variant`, without positions.

    There are no masks yet.  Zeros in x are zero keys, and those are no padding: all maps with φ(0) ≠ 0, among
    them Taylor's and elu(x) + 1, give them a weight.  Padding before a sequence changes its outputs; padding
    after it changes the state that is returned.
    """

    mixer = "linear_attention"

    def forward(
        self,
        x: Tensor,
        state: LinearAttentionState | None = None,
        output_state: bool = False,
        **foreign: NoReturn,
    ) -> tuple[Tensor, LinearAttentionState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`)."""
        if foreign:
            refuse(LinearAttention.forward, tuple(foreign))
        o, final = self.op(*self._project(x), initial_state=state, output_final_state=output_state)
        return self._leave(o), final

    def step(self, x: Tensor, state: LinearAttentionState, **foreign: NoReturn) -> Tensor:
        """One token, [B,1,d_model] to the same shape; updates `state` in place.  Not differentiable."""
        if foreign:
            refuse(LinearAttention.step, tuple(foreign))
        return self._leave(self.op.step(*self._project(x, tokens=1), state))
