"""Long convolutions in modal form: pairs of poles instead of taps, and a state of constant size.

s_t = λ s_(t-1) + u_t for each pole, and y_t = 2 Re Σ_n R_n s_t: a filter K_l = 2 Re Σ_n R_n λ_n^l.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import count, sizes
from ..errors import ArgumentValueError, ShapeError, fail
from ..mixers.state_space import StateSpaceState
from .long_conv import MOST, fits


def modal_filters(log_poles: Tensor, residues: Tensor, length: int) -> Tensor:
    """K_l = 2 Re Σ_n R_n exp(l · log λ_n) for l < length: [..., length] of complex [..., N/2] each."""
    t = torch.arange(length, dtype=log_poles.real.dtype, device=log_poles.device)
    powers = torch.exp(log_poles.unsqueeze(-1) * t)
    return 2 * torch.einsum("...n,...nt->...t", residues, powers).real


class ModalConv(nn.Module):
    """y = gate · (K ∗ x + bias · x), with `modes` pairs of poles for each of `channels` filters.

    log λ = -exp(rate) + i · angle, so no pole is unstable.  Each filter is shared by `share` channels in a
    row.  It runs on the variant of the mixer state_space that has as many modes.  New poles are those of
    S4D-Lin at steps Δ of 0.001 to 0.1 (arXiv 2206.11893).
    """

    grows = False

    def __init__(
        self,
        channels: int,
        modes: int,
        share: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        from based_ops.codegen.mixers.state_space import StateSpace

        from ..jit import meaning

        super().__init__()
        for name, value in (("channels", channels), ("modes", modes), ("share", share)):
            count(name, value, 1)
        self.channels, self.modes, self.share = channels, modes, share
        heads: dict[str, Any] = {"filters": "head", "width": share} if share > 1 else {}
        self.op: Any = meaning(StateSpace(f"modal{modes}_h{share}", 2 * modes, **heads))
        # In half precision a pole would be another one.
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        made: dict[str, Any] = {"device": device, "dtype": wide}
        step = torch.empty(channels, **made).uniform_(-6.9, -2.3)
        self.rate = nn.Parameter((step - math.log(2)).expand(modes, channels).clone())
        self.angle = nn.Parameter(step.exp() * math.pi * torch.arange(modes, **made).unsqueeze(1))
        self.residues = nn.Parameter(torch.randn(modes, channels, 2, **made) * step.exp().unsqueeze(1))
        self.bias = nn.Parameter(torch.randn(channels, **made))

    @classmethod
    def of(cls, poles: Tensor, residues: Tensor, bias: Tensor, share: int = 1) -> ModalConv:
        """That of given poles λ and residues, complex [channels, N/2], and bias [channels].

        Raises `ArgumentValueError` for poles that are not stable: |λ| must be below 1, and above 0.
        """
        if poles.dim() != 2 or residues.shape != poles.shape or bias.shape != poles.shape[:1]:
            got = f"{sizes(poles)}, {sizes(residues)} and {sizes(bias)}"
            fail(ShapeError, "poles, residues and bias", got, "of shapes [C, N/2], [C, N/2] and [C]")
        for name, x in (("poles", poles), ("residues", residues), ("bias", bias)):
            if not bool(x.isfinite().all()):
                fail(ArgumentValueError, name, "a number that is not finite", "finite")
        size = poles.abs()
        if not bool(((size < 1) & (size > 0)).all()):
            wrong = float(size.max() if bool((size >= 1).any()) else size.min())
            fail(ArgumentValueError, "poles", f"one of magnitude {wrong:g}", "stable, of magnitude below 1")
        channels, modes = poles.shape
        made = cls(channels, modes, share, device=poles.device, dtype=bias.dtype)
        with torch.no_grad():
            made.rate.copy_((-size.log()).log().t())
            made.angle.copy_(poles.angle().t())
            made.residues.copy_(torch.view_as_real(residues.resolve_conj()).transpose(0, 1))
            made.bias.copy_(bias)
        return made

    def filters(self, length: int) -> Tensor:
        """K [T, channels], without the bias."""
        log_poles = torch.complex(-self.rate.double().exp(), self.angle.double()).t()
        residues = torch.view_as_complex(self.residues.double()).t()
        return modal_filters(log_poles, residues, length).t().to(self.rate.dtype)

    def forward(
        self,
        x: Tensor,
        state: StateSpaceState | None = None,
        output_state: bool = False,
        gate: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, StateSpaceState | None]:
        """x [B,T,channels · share] to (y of its shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        sequences: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        y, final = self.op(self._by_filters(x), *self._modes(), state, output_state, **sequences)
        y = y.reshape(x.shape)
        return y if gate is None else gate * y, final

    def step(
        self,
        x: Tensor,
        state: StateSpaceState,
        gate: Tensor | None = None,
        state_indices: Tensor | None = None,
    ) -> Tensor:
        """Up to 16 tokens, [B,T,channels · share] to the same shape; updates `state` in place.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.  Not
        differentiable.
        """
        y = self.op.step(self._by_filters(x), state, *self._modes(), state_indices=state_indices)
        y = y.reshape(x.shape)
        return y if gate is None else gate * y

    def init_state(self, batch: int, most: int = MOST) -> StateSpaceState:
        """The state before the first token; it has one size for any number of tokens."""
        state: StateSpaceState = self.op.init_state(batch, self.channels, self.rate.device, self.rate.dtype)
        return state

    def state_bytes(self, batch: int, most: int = MOST) -> int:
        """Bytes of such a state."""
        return int(self.op.state_bytes(batch, self.channels, self.rate.dtype))

    def extra_repr(self) -> str:
        return f"{self.channels}, modes={self.modes}, share={self.share}"

    def _modes(self) -> tuple[Tensor, ...]:
        """log |λ|, angle, residues and skip, as the variant takes them."""
        skip = self.bias if self.share == 1 else self.bias.unsqueeze(1).expand(-1, self.share).contiguous()
        return -self.rate.exp(), self.angle, self.residues, skip

    def _by_filters(self, x: Tensor) -> Tensor:
        fits(self, x, self.channels * self.share)
        return x if self.share == 1 else x.unflatten(2, (self.channels, self.share))
