"""The block of Mamba-2 (Dao and Gu, arXiv 2405.21060, section 7) on compiled operators."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from ..checks import count, sizes
from ..errors import ArgumentTypeError, ArgumentValueError, ShapeError, StateError, fail
from ..mixers.short_conv import ShortConv, ShortConvState
from ..registry import get
from ..state import LinearAttentionState
from ..state_base import State
from ..variant import Variant


class Mamba2State(NamedTuple):
    """What a `Mamba2Mixer` keeps between calls: of its convolution, and of its state-space model.

    Examples:
        >>> from based_ops.layers import Mamba2Mixer
        >>> state = Mamba2Mixer(64).init_state(1)
        >>> state.ssm.state.shape  # [B, H, N, head]
        torch.Size([1, 2, 64, 64])
    """

    conv: ShortConvState
    ssm: LinearAttentionState


class Mamba2Mixer(nn.Module):
    """z, (x, B, C), Δ = in_proj(u); SSD of the convolved x, B and C; a gated RMSNorm; out_proj.

    The state-space model is linear attention with q = C, k = B, v = Δ x and the decay g = Δ A, plus D x: a
    `variant` with `decay: token`, without a normaliser, whose `v` is the width of a head and whose `qk` is
    that of the state.  `groups` heads share B and C.  Parameters have the shapes and the order of those of
    the authors' block, whose `conv1d.weight` is `conv.weight` with an axis more.

    Args:
        d_model: Width of u and of the result.
        variant: A linear attention with a decay of each token and no normaliser, or the name of one.
        conv: A short_conv variant, or the name of one.
        expand: Times that the mixer is as wide as u.
        groups: Of heads that share B and C.
        eps: Of the gated norm.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentTypeError: `variant` or `conv` is of another kind.
        ArgumentValueError: widths, heads and groups do not divide.
        UnknownVariant: there is none of that name.

    Examples:
        >>> import torch
        >>> from based_ops.layers import Mamba2Mixer
        >>> layer = Mamba2Mixer(64)
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    def __init__(
        self,
        d_model: int,
        variant: Variant[State] | str = "mamba2_qk64_v64",
        conv: Variant[State] | str = "conv4_silu",
        expand: int = 2,
        groups: int = 1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("expand", expand), ("groups", groups)):
            count(name, value, 1)
        op = variant if isinstance(variant, Variant) else get(variant)
        if getattr(op.spec, "decay", None) != "token" or op.spec.normalize:
            what = "a linear attention with `decay: token` and `normalize: false`"
            fail(ArgumentTypeError, "variant", f"{op.name}, {op.spec.describe()}", what)
        inner = expand * d_model
        if inner % op.v or inner // op.v % groups:
            what = f"a width whose double or so, {inner}, makes whole heads of {op.v} in {groups} groups"
            fail(ArgumentValueError, "d_model", str(d_model), what)
        self.d_model, self.inner, self.heads, self.groups = d_model, inner, inner // op.v, groups
        self.op = cast("Variant[LinearAttentionState]", op)
        mixed = inner + 2 * groups * op.qk
        self.in_proj = nn.Linear(d_model, inner + mixed + self.heads, bias=False, device=device, dtype=dtype)
        self.conv = ShortConv(mixed, conv, device=device, dtype=dtype)
        # Steps of 0.001 to 0.1 and decays of 1 to 16 a unit of time, as in the paper's code.
        step = torch.empty(self.heads, device=device).uniform_(-6.9, -2.3).exp()
        self.dt_bias = nn.Parameter((step + torch.log(-torch.expm1(-step))).to(dtype))
        self.A_log = nn.Parameter(torch.empty(self.heads, device=device).uniform_(1, 16).log().to(dtype))
        self.D = nn.Parameter(torch.ones(self.heads, device=device, dtype=dtype))
        self.norm = nn.RMSNorm(inner, eps, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, d_model, bias=False, device=device, dtype=dtype)

    def forward(
        self,
        u: Tensor,
        state: Mamba2State | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Mamba2State | None]:
        """u [B,T,d_model] to (y of the same shape, the state after u or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        z, mixed, steps = self._enter(u)
        conv, ssm = self._parts(state) if state is not None else (None, None)
        sequences: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        mixed, conv = self.conv(mixed, conv, output_state, None, cu_seqlens, attention_mask)
        x, (q, k, v, g) = self._operands(mixed, steps)
        y, after = self.op(q, k, v, g, initial_state=ssm, output_final_state=output_state, **sequences)
        return self._leave(y, x, z), None if after is None else Mamba2State(conv, after)

    def step(self, u: Tensor, state: Mamba2State, state_indices: Tensor | None = None) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        z, mixed, steps = self._enter(u)
        conv, ssm = self._parts(state)
        mixed = self.conv.step(mixed, conv, None, state_indices)
        x, (q, k, v, g) = self._operands(mixed, steps)
        return self._leave(self.op.step(q, k, v, ssm, g, state_indices=state_indices), x, z)

    def init_state(self, batch: int) -> Mamba2State:
        """The state before the first token, on the layer's device and for its dtype."""
        weight = self.in_proj.weight
        ssm = self.op.init_state(batch, self.heads, device=weight.device, dtype=weight.dtype)
        return Mamba2State(self.conv.init_state(batch), ssm)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        ssm = self.op.state_bytes(batch, self.heads, dtype=self.in_proj.weight.dtype)
        return self.conv.state_bytes(batch) + ssm

    def extra_repr(self) -> str:
        return f"heads={self.heads}, groups={self.groups}, variant={self.op.name}"

    def _parts(self, state: Mamba2State) -> Mamba2State:
        if not isinstance(state, Mamba2State):
            fail(StateError, "state", type(state).__name__, "a Mamba2State, as this layer returns it")
        return state

    def _enter(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z; x, B and C side by side; Δ before its softplus."""
        if u.dim() != 3 or u.shape[2] != self.d_model:
            fail(ShapeError, "u", sizes(u), f"of shape [B, T, {self.d_model}]")
        z, mixed, steps = self.in_proj(u).split([self.inner, self.conv.d_model, self.heads], dim=-1)
        return z, mixed, steps

    def _operands(self, mixed: Tensor, steps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x by heads, and q, k, v and g."""
        of_group = self.groups * self.op.qk
        x, k, q = mixed.split([self.inner, of_group, of_group], dim=-1)
        x = x.unflatten(-1, (self.heads, self.op.v))
        wide = torch.promote_types(steps.dtype, torch.float32)
        steps = softplus(steps.to(wide) + self.dt_bias.to(wide))
        g = steps * -self.A_log.to(wide).exp()
        v = x * steps.unsqueeze(-1).to(x.dtype)
        q, k = (y.unflatten(-1, (self.groups, self.op.qk)) for y in (q, k))
        return x, (q, k, v, g)

    def _leave(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        y = (y + self.D.unsqueeze(-1) * x).flatten(-2)
        return self.out_proj(self.norm(y * silu(z)))
