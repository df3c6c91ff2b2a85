"""Sliding window attention as a layer."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import packed, slots
from ..arguments import refuse
from ..checks import state_part
from ..errors import ShapeError, StateError, fail
from ..heads import repeated
from ..state import SlidingWindowState
from ..state_base import State
from ..tracing import is_traced
from ..variant import Variant
from .base import AttentionLayer
from .rotary import rotate


class SlidingWindowAttention(AttentionLayer[SlidingWindowState]):
    """Multi-head causal attention over the window of `variant`, with rotary embedding of q and k.

    Without `rotary` there are no positions.

    Args:
        d_model: Width of x and of the result.
        heads: Heads of queries.
        variant: A sliding_window variant, or the name of one.
        device: Of the parameters.
        dtype: Of the parameters.
        kv_heads: Heads of keys, values and state, a divisor of `heads`; None means as many.
        rotary: Whether q and k turn with their position.

    Raises:
        ArgumentTypeError: `variant` is of another mixer.
        ArgumentValueError: a number is below 1, or `kv_heads` divides `heads` not.
        UnknownVariant: there is no variant of that name; the message has the nearest.

    Examples:
        >>> import torch
        >>> from based_ops.layers import SlidingWindowAttention
        >>> layer = SlidingWindowAttention(64, heads=2, variant="window64_d64")
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    mixer = "sliding_window"

    def __init__(
        self,
        d_model: int,
        heads: int,
        variant: Variant[State] | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
        rotary: bool = True,
        **foreign: NoReturn,
    ) -> None:
        super().__init__(d_model, heads, variant, device, dtype, kv_heads, **foreign)
        self.rotary = rotary
        if rotary and self.op.qk % 2:
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
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **foreign: NoReturn,
    ) -> tuple[Tensor, SlidingWindowState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant; the
        positions of each begin at 0, or go on from its state.
        """
        if foreign:
            refuse(SlidingWindowAttention.forward, tuple(foreign))
        q, k, v = self._project(x)
        if self.rotary:
            if cu_seqlens is None and attention_mask is None:
                position = self._places(x, state)
            else:
                position = self._apart(x, state, packed.numbers(cu_seqlens, attention_mask, x, is_traced()))
            q, k = self._rotated(q, k, position)
        options: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        o, final = self.op(q, k, v, initial_state=state, output_final_state=output_state, **options)
        return self._leave(o), final

    def step(
        self,
        x: Tensor,
        state: SlidingWindowState,
        state_indices: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        if foreign:
            refuse(SlidingWindowAttention.step, tuple(foreign))
        q, k, v = self._project(x)
        if self.rotary:
            if state_indices is not None:
                position = self._in_slots(x, state, state_indices)
            else:
                position = self._past(state, x) if x.shape[1] == 1 else self._places(x, state)
            q, k = self._rotated(q, k, position)
        return self._leave(self.op.step(q, k, v, state, state_indices=state_indices))

    def _rotated(self, q: Tensor, k: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """q and k at their positions, of which each head of keys has its own."""
        of_q = position if position.shape[-1] == 1 else repeated(position, self.heads, -1)
        return rotate(q, of_q), rotate(k, position)

    def _places(self, x: Tensor, state: SlidingWindowState | None) -> Tensor:
        """The positions of the tokens of x, [T,1] or after a state [B,T,kv_heads]."""
        position = torch.arange(x.shape[1], device=x.device).unsqueeze(-1)
        return position if state is None else position + self._past(state, x)

    def _apart(self, x: Tensor, state: SlidingWindowState | None, at: packed.Numbers) -> Tensor:
        """The positions of tokens of several sequences, [B,T,1] or after states [B,T,kv_heads]."""
        position = at.number.unsqueeze(-1)
        if state is None:
            return position
        past = self._past(state, x, at.counts.shape[0]).squeeze(1)
        return position + past.index_select(0, at.sequence.flatten()).view(*at.sequence.shape, -1)

    def _in_slots(self, x: Tensor, state: SlidingWindowState, indices: Tensor) -> Tensor:
        """The positions of the tokens of x after states in slots, [B,T,kv_heads]; without one, of any."""
        past = self._past(state, x, slots.count("state", state, indices, x, x.shape[0], is_traced()))
        chosen = past.squeeze(1).index_select(0, indices.long().clamp(0, past.shape[0] - 1))
        return self._places(x, None) + chosen.unsqueeze(1)

    def _past(self, state: SlidingWindowState, x: Tensor, count: int | None = None) -> Tensor:
        """How many tokens came before x, [B,1,kv_heads]; of `count` sequences if they are not a batch."""
        if not isinstance(state, SlidingWindowState):
            fail(StateError, "state", type(state).__name__, "a SlidingWindowState, as this layer returns it")
        shape = (x.shape[0] if count is None else count, self.kv_heads)
        state_part("state", "position", state.position, shape, torch.int32, x, in_place=False)
        return state.position.unsqueeze(1)
