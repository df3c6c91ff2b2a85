"""The hybrid of a window and linear attention as a layer."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..arguments import refuse
from ..mixers.hybrid import FACTORS, HybridState
from ..state_base import State
from ..variant import Variant
from .base import AttentionLayer


class HybridAttention(AttentionLayer[HybridState]):
    """Multi-head causal attention: softmax over the window of `variant`, its feature map over all older keys.

    There are no positions.

    Args:
        d_model: Width of x and of the result.
        heads: Heads of queries.
        variant: A hybrid variant, or the name of one.
        device: Of the parameters.
        dtype: Of the parameters.
        kv_heads: Heads of keys, values and state, a divisor of `heads`; None means as many.

    Raises:
        ArgumentTypeError: `variant` is of another mixer.
        ArgumentValueError: a number is below 1, or `kv_heads` divides `heads` not.
        UnknownVariant: there is no variant of that name; the message has the nearest.

    Examples:
        >>> import torch
        >>> from based_ops.layers import HybridAttention
        >>> layer = HybridAttention(64, heads=2, variant="hybrid_taylor2_qk16_v64_w64")
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    mixer = "hybrid"

    def __init__(
        self,
        d_model: int,
        heads: int,
        variant: Variant[State] | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
        **foreign: NoReturn,
    ) -> None:
        """A variant with `window_dims` has projections of its own for the window's queries and keys.

        The factors that it takes are learned as logarithms, 0 at first: `window_log_factor`,
        `linear_log_factor`, [heads] in float32.
        """
        super().__init__(d_model, heads, variant, device, dtype, kv_heads, **foreign)
        spec = self.op.spec
        self.factors: tuple[str, ...] = spec.factors
        self.window_qk: int | None = spec.window_qk
        if self.window_qk is not None:
            of_q, of_k = (n * self.window_qk for n in (heads, self.kv_heads))
            self.q_window_proj = nn.Linear(d_model, of_q, bias=False, device=device, dtype=dtype)
            self.k_window_proj = nn.Linear(d_model, of_k, bias=False, device=device, dtype=dtype)
        for name in FACTORS:
            start = torch.zeros(heads, device=device) if name in self.factors else None
            log_name = name.replace("factor", "log_factor")
            self.register_parameter(log_name, None if start is None else nn.Parameter(start))

    def forward(
        self,
        x: Tensor,
        state: HybridState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **foreign: NoReturn,
    ) -> tuple[Tensor, HybridState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        if foreign:
            refuse(HybridAttention.forward, tuple(foreign))
        inputs = self._project(x)
        more = self._more(x) | {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        o, final = self.op(*inputs, initial_state=state, output_final_state=output_state, **more)
        return self._leave(o), final

    def step(
        self,
        x: Tensor,
        state: HybridState,
        state_indices: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        if foreign:
            refuse(HybridAttention.step, tuple(foreign))
        more = {"state_indices": state_indices} | self._more(x)
        return self._leave(self.op.step(*self._project(x), state, **more))

    def _more(self, x: Tensor) -> dict[str, Any]:
        """The inputs of the variant besides q, k and v, and the parameters of its parts."""
        more = self._options()
        more |= {name: getattr(self, name.replace("factor", "log_factor")).exp() for name in self.factors}
        if self.window_qk is not None:
            more["q_window"] = self.q_window_proj(x).unflatten(-1, (self.heads, self.window_qk))
            more["k_window"] = self.k_window_proj(x).unflatten(-1, (self.kv_heads, self.window_qk))
        return more
