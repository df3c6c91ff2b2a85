"""H3: a shift register and a diagonal state space between three projections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import count
from ..errors import ShapeError, fail
from .long_conv import fft_conv, fits, widely


class H3(nn.Module):
    """y = out_proj(q · diag(shift(k) · v)), with two state-space models (arXiv 2212.14052, section 3).

    Heads are one wide.  The shift model is a filter of `state` taps.  The diagonal one has `state`/2 complex
    numbers, of S4D-Lin, λ_n = -½ + iπn, with steps Δ of 0.001 to 0.1 (arXiv 2206.11893).
    """

    def __init__(
        self,
        d_model: int,
        state: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count("d_model", d_model, 1)
        count("state", state, 2)
        if state % 2:
            fail(ShapeError, "state", state, "even: it holds complex numbers")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.state = d_model, state
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, **made) for _ in range(4)
        )
        self.shift = nn.Parameter(torch.randn(d_model, state, **made) / math.sqrt(state))
        self.shift_skip = nn.Parameter(torch.randn(d_model, **made))
        half = d_model, state // 2
        self.log_step = nn.Parameter(torch.empty(d_model, **made).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_decay = nn.Parameter(torch.full(half, math.log(0.5), **made))
        frequency = math.pi * torch.arange(half[1], **made)
        self.frequency = nn.Parameter(frequency.expand(half).clone())
        self.read = nn.Parameter(torch.randn(*half, 2, **made) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(d_model, **made))

    def filters(self, length: int) -> tuple[Tensor, Tensor]:
        """Those of the shift model and of the diagonal one, [T,d_model]; zero-order hold."""
        shift = nn.functional.pad(self.shift[:, :length], (0, max(0, length - self.state))).t()
        pole = torch.complex(-self.log_decay.exp(), self.frequency)
        step = self.log_step.exp().unsqueeze(-1)
        weight = torch.view_as_complex(self.read) * torch.expm1(pole * step) / pole
        t = torch.arange(length, device=step.device)
        powers = torch.exp((pole * step).unsqueeze(-1) * t)
        return shift, 2 * torch.einsum("dn,dnt->td", weight, powers).real

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,d_model] to the same shape."""
        fits(self, x, self.d_model)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        with widely(x):
            shift, diagonal = self.filters(x.shape[1])
        found: Tensor = self.out_proj(
            fft_conv(fft_conv(k, shift, self.shift_skip, v), diagonal, self.skip, q)
        )
        return found

    def state_bytes(self, batch: int) -> int:
        """Bytes of the states of both models, as recurrences."""
        return batch * self.d_model * 2 * self.state * self.shift.element_size()
