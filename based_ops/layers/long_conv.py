"""Gated convolutions as long as the sequence: Hyena, H3 and BaseConv, by fast Fourier transforms of PyTorch.

They have no `step`: what a long filter reads is the whole history, `state_bytes` of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import count, sizes
from ..errors import ShapeError, fail
from ..mixers.short_conv import ShortConv
from ..state_base import State
from ..variant import Variant

FAST, SLOW, LEFT = 0.3, 1.5, 1e-2
"""Hyena's windows: the fastest and the slowest channel have `LEFT` left after these parts of the length."""


def fft_conv(u: Tensor, filters: Tensor) -> Tensor:
    """y_t = Σ_{s ≤ t} h_s u_(t-s) for u [B,T,D] and h [T,D], in float32 at least; y is of u's dtype."""
    wide = torch.promote_types(u.dtype, torch.float32)
    length = u.shape[1]
    with torch.autocast(u.device.type, enabled=False):
        spectrum = torch.fft.rfft(u.to(wide), n=2 * length, dim=1)
        spectrum = spectrum * torch.fft.rfft(filters.to(wide), n=2 * length, dim=0)
        return torch.fft.irfft(spectrum, n=2 * length, dim=1)[:, :length].to(u.dtype)


def _fits(x: Any, d_model: int, length: int | None = None) -> None:
    if x.dim() != 3 or x.shape[2] != d_model or (length is not None and x.shape[1] > length):
        most = "T" if length is None else f"T up to {length}"
        fail(ShapeError, "x", sizes(x), f"of shape [B, {most}, {d_model}]")


class ImplicitConv(nn.Module):
    """y = h ∗ x + bias · x, h_t = window(t) · MLP(t): the filter of Hyena (arXiv 2302.10866, section 3.3).

    The MLP has sines between its layers, `order` wide, and sees the position t / length and its first
    harmonic; windows are exponentials, of another decay in each channel.  Channels are in `groups` of
    equal width, each with an MLP of its own.
    """

    POSITION = 3

    def __init__(
        self,
        channels: int,
        length: int,
        order: int = 64,
        inner: int = 2,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("length", length), ("order", order), ("groups", groups)):
            count(name, value, 1)
        if channels % groups:
            fail(ShapeError, "channels", channels, f"a multiple of groups, {groups}")
        self.channels, self.length = channels, length
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = [self.POSITION, *[order] * (inner + 1)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for of_input, of_output in zip(widths, widths[1:], strict=False):
            bound = of_input**-0.5  # as torch.nn.Linear begins
            self.weights.append(torch.empty(groups, of_input, of_output, **made).uniform_(-bound, bound))
            self.biases.append(torch.empty(groups, 1, of_output, **made).uniform_(-bound, bound))
        self.frequency = nn.Parameter(torch.ones(groups, 1, order, **made))
        last = torch.empty(groups, order, channels // groups, **made).uniform_(-(order**-0.5), order**-0.5)
        self.last = nn.Parameter(last)
        self.bias = nn.Parameter(torch.randn(channels, **made))
        rates = torch.linspace(-math.log(LEFT) / SLOW, -math.log(LEFT) / FAST, channels // groups, **made)
        self.register_buffer("rates", rates)
        self.rates: Tensor

    def filters(self, length: int) -> Tensor:
        """h [T, channels]."""
        t = torch.arange(length, device=self.last.device, dtype=self.last.dtype).unsqueeze(1)
        turn = 2 * math.pi * t / self.length
        x = torch.cat([t / max(1, self.length - 1), turn.cos(), -turn.sin()], 1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.sin(self.frequency * (x @ weight + bias))
        window = torch.exp(-self.rates * t / max(1, self.length - 1))
        found: Tensor = x @ self.last * window  # [groups, T, of each]
        return found.transpose(0, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,channels] to the same shape, T up to `length`."""
        _fits(x, self.channels, self.length)
        with torch.autocast(x.device.type, enabled=False):
            filters = self.filters(x.shape[1])
        return fft_conv(x, filters) + self.bias.to(x.dtype) * x

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of the inputs that the filter reads, of `batch` sequences of `most` tokens."""
        return batch * most * self.channels * self.last.element_size()


class BaseConv(nn.Module):
    """y = conv(x) · proj(x) + x (Zoology, arXiv 2312.04927, section 5).

    The convolution is that of a short_conv `variant`, or with `length` instead an implicit filter for so many
    tokens.
    """

    def __init__(
        self,
        d_model: int,
        variant: Variant[State] | str | None = None,
        length: int | None = None,
        order: int = 16,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count("d_model", d_model, 1)
        if (variant is None) == (length is None):
            fail(ShapeError, "length", length, "given, unless a variant is")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model = d_model
        self.projection = nn.Linear(d_model, d_model, **made)
        self.conv: ShortConv | ImplicitConv
        if variant is not None:
            self.conv = ShortConv(d_model, variant, **made)
        else:
            self.conv = ImplicitConv(d_model, length or 0, order, groups=groups, **made)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,d_model] to the same shape."""
        _fits(x, self.d_model)
        y = self.conv(x)
        y = y[0] if isinstance(y, tuple) else y
        found: Tensor = y * self.projection(x) + x
        return found

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of the inputs that the convolution reads."""
        if isinstance(self.conv, ShortConv):
            return self.conv.state_bytes(batch)
        return self.conv.state_bytes(batch, most)


class Hyena(nn.Module):
    """[a, b, v] = conv(in_proj(x)); y = out_proj(b · long(a · v)): Hyena of order 2 (arXiv 2302.10866)."""

    def __init__(
        self,
        d_model: int,
        length: int,
        conv: Variant[State] | str,
        order: int = 64,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`conv` is a short_conv variant, in the paper three taps without an activation."""
        super().__init__()
        count("d_model", d_model, 1)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 3 * d_model, **made)
        self.short = ShortConv(3 * d_model, conv, **made)
        self.long = ImplicitConv(d_model, length, order, groups=groups, **made)
        self.out_proj = nn.Linear(d_model, d_model, **made)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,d_model] to the same shape, T up to `length`."""
        _fits(x, self.d_model, self.long.length)
        a, b, v = self.short(self.in_proj(x))[0].chunk(3, dim=-1)
        y: Tensor = self.out_proj(b * self.long(a * v))
        return y

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of the inputs that both convolutions read."""
        return self.short.state_bytes(batch) + self.long.state_bytes(batch, most)


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
        _fits(x, self.d_model)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        with torch.autocast(x.device.type, enabled=False):
            shift, diagonal = self.filters(x.shape[1])
        k = fft_conv(k, shift) + self.shift_skip.to(k.dtype) * k
        y = k * v
        y = fft_conv(y, diagonal) + self.skip.to(y.dtype) * y
        found: Tensor = self.out_proj(q * y)
        return found

    def state_bytes(self, batch: int) -> int:
        """Bytes of the states of both models, as recurrences."""
        return batch * self.d_model * 2 * self.state * self.shift.element_size()
