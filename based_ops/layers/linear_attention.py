"""Linear attention as a layer."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..arguments import refuse
from ..errors import ArgumentTypeError, fail
from ..state import LinearAttentionState
from ..state_base import State
from ..variant import Variant
from .base import AttentionLayer


class LinearAttention(AttentionLayer[LinearAttentionState]):
    """Multi-head causal linear attention with the feature map of `variant`, without positions.

    Zeros in x are zero keys, and those are no padding: all maps with φ(0) ≠ 0, among them Taylor's and
    elu(x) + 1, give them a weight.  `attention_mask` says what is padding.

    Args:
        d_model: Width of x and of the result.
        heads: Heads of queries.
        variant: A linear_attention variant, or the name of one.
        device: Of the parameters.
        dtype: Of the parameters.
        kv_heads: Heads of keys, values and state, a divisor of `heads`; None means as many.

    Raises:
        ArgumentTypeError: `variant` is of another mixer.
        ArgumentValueError: a number is below 1, or `kv_heads` divides `heads` not.
        UnknownVariant: there is no variant of that name; the message has the nearest.

    Examples:
        >>> import torch
        >>> from based_ops.layers import LinearAttention
        >>> layer = LinearAttention(64, heads=2, variant="taylor2_qk16_v64")
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    mixer = "linear_attention"
    GATE = 16.0
    """By what gates are divided, so that a new layer remembers (arXiv 2312.06635, section 4.4)."""

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
        """The decay of a variant that has one is made here.

        Of each token it is log σ(g_proj(x)) / 16, of each head that of RetNet, log(1 - 2^(-5 - head)), which
        is not trained.  The rate of a delta rule is σ(b_proj(x)) of each token.
        """
        super().__init__(d_model, heads, variant, device, dtype, kv_heads, **foreign)
        if self.op.spec.corrects:
            self.most = 1.0
            self.b_proj: nn.Linear = nn.Linear(d_model, self.kv_heads, bias=False, device=device, dtype=dtype)
        self.decay: str = self.op.spec.decay
        self.g: Tensor | None
        if self.decay == "token":
            self.g_proj = nn.Linear(d_model, self.kv_heads, bias=False, device=device, dtype=dtype)
        exponents = torch.arange(self.kv_heads, device=device, dtype=torch.float32) + 5
        self.register_buffer("g", torch.log1p(-torch.exp2(-exponents)) if self.decay == "head" else None)

    def forward(
        self,
        x: Tensor,
        state: LinearAttentionState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **foreign: NoReturn,
    ) -> tuple[Tensor, LinearAttentionState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        if foreign:
            refuse(LinearAttention.forward, tuple(foreign))
        options: dict[str, Any] = {"initial_state": state, "output_final_state": output_state}
        options |= {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        options |= self._options() | self._rates(x)
        o, final = self.op(*self._project(x), self._decays(x), **options)
        return self._leave(o), final

    def step(
        self,
        x: Tensor,
        state: LinearAttentionState,
        state_indices: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        if foreign:
            refuse(LinearAttention.step, tuple(foreign))
        options = {"state_indices": state_indices} | self._options() | self._rates(x)
        return self._leave(self.op.step(*self._project(x), state, self._decays(x), **options))

    def _decays(self, x: Tensor) -> Tensor | None:
        if self.decay == "token":
            # log σ(x), by a function whose gradient `DTensor`s have too; exact to float64 below its threshold
            return -softplus(-self.g_proj(x).float(), threshold=50.0) / self.GATE
        return self.g

    def _rates(self, x: Tensor) -> dict[str, Tensor]:
        """β of a delta rule."""
        if not self.op.spec.corrects:
            return {}
        given: Tensor = self.b_proj(x)
        wide = torch.promote_types(given.dtype, torch.float32)
        return {"beta": self.most * given.to(wide).sigmoid()}


class BasedDelta(LinearAttention):
    """Based's linear attention (arXiv 2402.18668) that learns by the delta rule.

    Neither convolutions nor gates: what it has besides `LinearAttention` is a rate for each token and head.

    Args:
        d_model: Width of x and of the result.
        heads: Heads of queries.
        variant: A linear_attention variant, or the name of one.
        device: Of the parameters.
        dtype: Of the parameters.
        kv_heads: Heads of keys, values and state, a divisor of `heads`; None means as many.
        negative_eigenvalues: Whether rates go up to 2, where a state turns (arXiv 2411.12537).

    Raises:
        ArgumentTypeError: `variant` is of another mixer.
        ArgumentValueError: a number is below 1, or `kv_heads` divides `heads` not.
        UnknownVariant: there is no variant of that name; the message has the nearest.

    Examples:
        >>> import torch
        >>> from based_ops.layers import BasedDelta
        >>> layer = BasedDelta(64, heads=2)
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        variant: Variant[State] | str = "taylor2_delta_qk16_v64",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
        negative_eigenvalues: bool = False,
        **foreign: NoReturn,
    ) -> None:
        super().__init__(d_model, heads, variant, device, dtype, kv_heads, **foreign)
        if not self.op.spec.corrects:
            got = f"{self.op.name}, {self.op.spec.describe()}"
            fail(ArgumentTypeError, "variant", got, "a linear attention with `update: delta`")
        self.most = 2.0 if negative_eigenvalues else 1.0
