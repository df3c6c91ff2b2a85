"""Long convolutions in modal form: pairs of poles instead of taps, and a state of constant size.

s_t = λ s_(t-1) + u_t for each pole, and y_t = 2 Re Σ_n R_n s_t: a filter K_l = 2 Re Σ_n R_n λ_n^l.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import count, no_gradient, sizes
from ..errors import ArgumentValueError, ShapeError, StateError, fail
from .long_conv import MOST, Apart, fft_conv, finished, fits, widely


class ModalState(NamedTuple):
    """What every pole keeps of the tokens before, [B, channels, N/2, 2], real and imaginary parts."""

    modes: Tensor


def modal_filters(log_poles: Tensor, residues: Tensor, length: int) -> Tensor:
    """K_l = 2 Re Σ_n R_n exp(l · log λ_n) for l < length: [..., length] of complex [..., N/2] each."""
    t = torch.arange(length, dtype=log_poles.real.dtype, device=log_poles.device)
    powers = torch.exp(log_poles.unsqueeze(-1) * t)
    return 2 * torch.einsum("...n,...nt->...t", residues, powers).real


class ModalConv(nn.Module):
    """y = gate · (K ∗ x + bias · x), with `modes` pairs of poles for each of `channels` filters.

    log λ = -exp(rate) + i · angle, so no pole is unstable.  Each filter is shared by `share` channels in a
    row.  New poles are those of S4D-Lin at steps Δ of 0.001 to 0.1 (arXiv 2206.11893).
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
        super().__init__()
        for name, value in (("channels", channels), ("modes", modes), ("share", share)):
            count(name, value, 1)
        self.channels, self.modes, self.share = channels, modes, share
        # In half precision a pole would be another one.
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        made: dict[str, Any] = {"device": device, "dtype": wide}
        step = torch.empty(channels, 1, **made).uniform_(-6.9, -2.3)
        self.rate = nn.Parameter((step - 0.69).expand(channels, modes).clone())
        turns = torch.pi * torch.arange(modes, **made)
        self.angle = nn.Parameter(step.exp() * turns)
        self.residues = nn.Parameter(torch.randn(channels, modes, 2, **made) * step.exp().unsqueeze(-1))
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
            made.rate.copy_((-size.log()).log())
            made.angle.copy_(poles.angle())
            made.residues.copy_(torch.view_as_real(residues.resolve_conj()))
            made.bias.copy_(bias)
        return made

    def log_poles(self) -> Tensor:
        """log λ [channels, N/2], complex, of a precision that far powers can be taken of."""
        return torch.complex(-self.rate.double().exp(), self.angle.double())

    def filters(self, length: int) -> Tensor:
        """K [T, channels]."""
        residues = torch.view_as_complex(self.residues.double())
        wide = torch.promote_types(self.rate.dtype, torch.float32)
        return modal_filters(self.log_poles(), residues, length).t().to(wide)

    def forward(
        self,
        x: Tensor,
        state: ModalState | None = None,
        output_state: bool = False,
        gate: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ModalState | None]:
        """x [B,T,channels · share] to (y of its shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, with a state for each.
        """
        fits(self, x, self.channels * self.share)
        apart = None
        laid = x
        if cu_seqlens is not None or attention_mask is not None:
            apart = Apart(x, cu_seqlens, attention_mask)
            laid = apart.lay(x)
        with widely(x):
            y, final = self._convolved(laid, state, output_state, None if apart is None else apart.counts)
        y = y if apart is None else apart.back(y)
        return finished(y, x, self._shared(self.bias), gate), final

    def step(
        self,
        x: Tensor,
        state: ModalState,
        gate: Tensor | None = None,
        state_indices: Tensor | None = None,
    ) -> Tensor:
        """A few more tokens, [B,T,channels · share] to the same shape; updates `state` in place.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.  Not
        differentiable.
        """
        fits(self, x, self.channels * self.share)
        self._check(state, x, None if state_indices is None else state_indices.shape[0])
        if torch.is_grad_enabled():
            no_gradient(("x", "bias"), (x, self.bias))
        modes = state.modes
        if state_indices is not None:
            there = state_indices >= 0
            slots = torch.where(there, state_indices, 0).long()
            modes = modes.index_select(0, slots)
            x = x * there[:, None, None].to(x.dtype)
        wide = modes.dtype
        poles = self._shared(self.log_poles().exp().t()).t().to(wide.to_complex())
        read = self._shared(torch.view_as_complex(2 * self.residues.to(wide)).t()).t()
        now, found = torch.view_as_complex(modes), []
        for token in x.to(wide).unbind(1):
            now = poles * now + token.unsqueeze(-1)
            found.append((read * now).sum(-1).real)
        y = torch.stack(found, 1).to(x.dtype) if found else torch.empty_like(x)
        if state_indices is None:
            state.modes.copy_(torch.view_as_real(now))
        else:
            # Whoever has no slot writes into none: one more row, which is cut off again.
            longer = torch.cat([state.modes, state.modes[:1]])
            longer.index_copy_(0, torch.where(there, slots, state.modes.shape[0]), torch.view_as_real(now))
            state.modes.copy_(longer[:-1])
            y = y * there[:, None, None].to(y.dtype)
        return finished(y, x, self._shared(self.bias), gate)

    def init_state(self, batch: int, most: int = MOST) -> ModalState:
        """The state before the first token; it has one size for any number of tokens."""
        count("batch", batch, 0)
        wide = torch.promote_types(self.rate.dtype, torch.float32)
        shape = batch, self.channels * self.share, self.modes, 2
        return ModalState(torch.zeros(shape, dtype=wide, device=self.rate.device))

    def state_bytes(self, batch: int, most: int = MOST) -> int:
        """Bytes of such a state."""
        wide = torch.promote_types(self.rate.dtype, torch.float32)
        return batch * self.channels * self.share * self.modes * 2 * wide.itemsize

    def extra_repr(self) -> str:
        return f"{self.channels}, modes={self.modes}, share={self.share}"

    def _convolved(
        self, x: Tensor, state: ModalState | None, output_state: bool, counts: Tensor | None
    ) -> tuple[Tensor, ModalState | None]:
        """K ∗ x and the states; `counts` says how many of each sequence are tokens, if not all."""
        length = x.shape[1]
        y = fft_conv(x, self._shared(self.filters(length)))
        if state is None and not output_state:
            return y, None
        wide = torch.promote_types(x.dtype, torch.float32)
        times = torch.arange(length + 1, dtype=torch.float64, device=x.device)
        # λ^t [t, channels, N/2]; a state is read a token later than it was left.
        powers = torch.exp(times[:, None, None] * self.log_poles()).to(wide.to_complex())
        powers = powers.repeat_interleave(self.share, 1)
        before = None
        if state is not None:
            self._check(state, x)
            before = torch.view_as_complex(state.modes)
            read = torch.view_as_complex(2 * self.residues.to(wide)).repeat_interleave(self.share, 0)
            y = y + torch.einsum("dn,bdn,tdn->btd", read, before, powers[1:]).real.to(y.dtype)
        if not output_state:
            return y, None
        ends = torch.full((x.shape[0],), length, device=x.device) if counts is None else counts
        # The newest token first, so that each meets the power of its age.
        ages = ends.unsqueeze(1) - 1 - torch.arange(length, device=x.device)
        newest = x.to(wide).gather(1, ages.clamp(min=0).unsqueeze(-1).expand_as(x))
        newest = torch.where((ages >= 0).unsqueeze(-1), newest, torch.zeros_like(newest))
        after = torch.einsum("btd,tdn->bdn", newest.to(powers.dtype), powers[:-1])
        if before is not None:
            after = after + before * powers.index_select(0, ends)
        return y, ModalState(torch.view_as_real(after).contiguous())

    def _check(self, state: ModalState, x: Tensor, pool: int | None = None) -> None:
        if not isinstance(state, ModalState):
            fail(StateError, "state", type(state).__name__, "a ModalState, as this layer returns it")
        batch = state.modes.shape[0] if pool is not None else x.shape[0]
        wanted = batch, self.channels * self.share, self.modes, 2
        if tuple(state.modes.shape) != wanted:
            fail(StateError, "state.modes", sizes(state.modes), f"of shape {list(wanted)}")

    def _shared(self, x: Tensor) -> Tensor:
        return x if self.share == 1 else x.repeat_interleave(self.share, -1)
