"""DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464) on compiled operators."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from ..checks import count, sizes
from ..errors import ArgumentTypeError, ShapeError, StateError, fail
from ..mixers.short_conv import ShortConv, ShortConvState
from ..registry import get
from ..state import LinearAttentionState
from ..state_base import State
from ..variant import Variant


class DeltaNetState(NamedTuple):
    """What a `DeltaNet` keeps between calls: of its convolution, and of the delta rule.

    Examples:
        >>> from based_ops.layers import DeltaNet
        >>> state = DeltaNet(64, heads=2).init_state(1)
        >>> state.memory.state.shape  # [B, H, features, v]
        torch.Size([1, 2, 64, 64])
    """

    conv: ShortConvState
    memory: LinearAttentionState


class DeltaNet(nn.Module):
    """q, k and v through a short convolution with SiLU; the delta rule; RMSNorm of each head; o_proj.

    `variant` is a linear attention with `update: delta`; `unit_keys` in its spec divides q and k by their
    lengths.  β = σ(b_proj(x)), or twice that with `negative_eigenvalues`, for which states turn and can track
    more than they can remember (arXiv 2411.12537).  A variant with `decay: token` has g = -exp(A_log) ·
    softplus(a_proj(x) + dt_bias), as Mamba-2.  With `gate` what leaves a head is times silu(g_proj(x)).

    Args:
        d_model: Width of x and of the result.
        heads: Heads of queries, keys, values and state.
        variant: A linear attention with `update: delta`, or the name of one.
        conv: A short_conv variant, or the name of one.
        gate: Whether what leaves a head is gated.
        negative_eigenvalues: Whether rates go up to 2.
        eps: Of the norm of each head.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentTypeError: `variant` or `conv` is of another kind.
        ArgumentValueError: a number is below 1.
        UnknownVariant: there is none of that name.

    Examples:
        >>> import torch
        >>> from based_ops.layers import DeltaNet
        >>> layer = DeltaNet(64, heads=2)
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
        variant: Variant[State] | str = "gated_delta_qk64_v64",
        conv: Variant[State] | str = "conv4_silu",
        gate: bool = True,
        negative_eigenvalues: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count("d_model", d_model, 1)
        count("heads", heads, 1)
        op = variant if isinstance(variant, Variant) else get(variant)
        if not getattr(op.spec, "corrects", False) or op.spec.decay == "head":
            what = "a linear attention with `update: delta`, and without a decay or with `decay: token`"
            fail(ArgumentTypeError, "variant", f"{op.name}, {op.spec.describe()}", what)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.heads = d_model, heads
        self.op = cast("Variant[LinearAttentionState]", op)
        self.most = 2.0 if negative_eigenvalues else 1.0
        self.widths = [heads * width for width in (op.qk, op.qk, op.v)]
        self.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=False, **made)
        self.conv = ShortConv(sum(self.widths), conv, **made)
        self.b_proj = nn.Linear(d_model, heads, bias=False, **made)
        self.fades = op.spec.decay == "token"
        if self.fades:
            self.a_proj = nn.Linear(d_model, heads, bias=False, **made)
            # Steps of 0.001 to 0.1 and decays of up to 16 a unit of time, as in Mamba-2.
            step = torch.empty(heads, device=device).uniform_(-6.9, -2.3).exp()
            self.dt_bias = nn.Parameter((step + torch.log(-torch.expm1(-step))).to(dtype))
            self.A_log = nn.Parameter(torch.empty(heads, device=device).uniform_(1, 16).log().to(dtype))
        self.g_proj = nn.Linear(d_model, heads * op.v, bias=False, **made) if gate else None
        self.norm = nn.RMSNorm(op.v, eps, **made)
        self.o_proj = nn.Linear(heads * op.v, d_model, bias=False, **made)

    def forward(
        self,
        x: Tensor,
        state: DeltaNetState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, DeltaNetState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        mixed = self._enter(x)
        conv, memory = self._parts(state) if state is not None else (None, None)
        sequences: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        mixed, conv = self.conv(mixed, conv, output_state, None, cu_seqlens, attention_mask)
        options = sequences | self._rates(x)
        o, after = self.op(
            *self._split(mixed), initial_state=memory, output_final_state=output_state, **options
        )
        return self._leave(o, x), None if after is None else DeltaNetState(conv, after)

    def step(self, x: Tensor, state: DeltaNetState, state_indices: Tensor | None = None) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        mixed = self._enter(x)
        conv, memory = self._parts(state)
        mixed = self.conv.step(mixed, conv, None, state_indices)
        options = {"state_indices": state_indices} | self._rates(x)
        return self._leave(self.op.step(*self._split(mixed), memory, **options), x)

    def init_state(self, batch: int) -> DeltaNetState:
        """The state before the first token, on the layer's device and for its dtype."""
        weight = self.o_proj.weight
        memory = self.op.init_state(batch, self.heads, device=weight.device, dtype=weight.dtype)
        return DeltaNetState(self.conv.init_state(batch), memory)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        memory = self.op.state_bytes(batch, self.heads, dtype=self.o_proj.weight.dtype)
        return self.conv.state_bytes(batch) + memory

    def extra_repr(self) -> str:
        return f"heads={self.heads}, variant={self.op.name}"

    def _parts(self, state: DeltaNetState) -> DeltaNetState:
        if not isinstance(state, DeltaNetState):
            fail(StateError, "state", type(state).__name__, "a DeltaNetState, as this layer returns it")
        return state

    def _enter(self, x: Tensor) -> Tensor:
        """q, k and v side by side, before the convolution."""
        if x.dim() != 3 or x.shape[2] != self.d_model:
            fail(ShapeError, "x", sizes(x), f"of shape [B, T, {self.d_model}]")
        mixed: Tensor = self.qkv_proj(x)
        return mixed

    def _split(self, mixed: Tensor) -> tuple[Tensor, ...]:
        """q, k and v by heads."""
        return tuple(y.unflatten(-1, (self.heads, -1)) for y in mixed.split(self.widths, dim=-1))

    def _rates(self, x: Tensor) -> dict[str, Tensor]:
        """β and, where the state fades, g."""
        wide = torch.promote_types(x.dtype, torch.float32)
        rates = {"beta": self.most * self.b_proj(x).to(wide).sigmoid()}
        if self.fades:
            steps = softplus(self.a_proj(x).to(wide) + self.dt_bias.to(wide))
            rates["g"] = -self.A_log.to(wide).exp() * steps
        return rates

    def _leave(self, o: Tensor, x: Tensor) -> Tensor:
        y = self.norm(o).flatten(-2)
        if self.g_proj is not None:
            y = y * silu(self.g_proj(x))
        out: Tensor = self.o_proj(y)
        return out
