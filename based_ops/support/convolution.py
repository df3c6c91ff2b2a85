"""Long convolutions by fast Fourier transforms, as generated modules call them.

A transform would spread what is not finite over all tokens of its channel.  It is 0 to the transform, and
tokens that it reaches are NaN afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .fourier import finite


class _Call(NamedTuple):
    """One call as transforms see it: tensors of tokens are [B, T, H, P], P channels a filter."""

    seen: Tensor
    """The inputs, those before the first that filters reach included."""
    earlier: int
    """How many these are."""
    taps: Tensor
    """[K, H], no more than there are inputs."""
    size: int
    """Of transforms: a power of two, in which nothing that is read meets its own end."""

    @staticmethod
    def of(u: Tensor, filters: Tensor, before: Tensor | None) -> _Call:
        seen, earlier = _by_filters(u, filters), 0
        if before is not None:
            earlier = min(before.shape[1], len(filters) - 1)
            seen = torch.cat((_by_filters(before[:, before.shape[1] - earlier :], filters), seen), 1)
        taps = filters[: seen.shape[1]]
        size = max(seen.shape[1], u.shape[1] + len(taps) - 1)
        return _Call(seen, earlier, taps, 1 << (size - 1).bit_length())

    def transformed(self, x: Tensor) -> Tensor:
        """The spectrum of [B, T, H, P], [B, H, P, frequencies]."""
        return torch.fft.rfft(x.movedim(1, -1), self.size)

    def of_taps(self) -> Tensor:
        return torch.fft.rfft(self.taps.t().unsqueeze(1), self.size)

    def back(self, spectrum: Tensor, length: int) -> Tensor:
        return torch.fft.irfft(spectrum, self.size)[..., :length].movedim(-1, 1)

    def sums(self) -> Tensor:
        """Σ_l h_l u_{t−l} of the call's own tokens."""
        clean, spoilt = finite(self.seen)
        y = self.back(self.transformed(clean) * self.of_taps(), self.seen.shape[1])
        if spoilt is not None:
            y = y.masked_fill(self.reached(spoilt), torch.nan)
        return y[:, self.earlier :]

    def reached(self, spoilt: Tensor) -> Tensor:
        """The tokens at which a filter sees one of these."""
        count = spoilt.cumsum(1, dtype=torch.int32)
        return count > pad(count, (0, 0, 0, 0, len(self.taps), 0))[:, : count.shape[1]]


def convolution_forward(
    u: Tensor,
    filters: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    before: Tensor | None,
    sequences: None = None,
) -> Tensor:
    """Σ_l h_l u_{t−l} of u [B, T, D] or [B, T, H, P], as wide as the filters [L, D] or [L, H]."""
    return _Call.of(u, filters, before).sums().reshape(u.shape).contiguous()


def convolution_backward(
    dy: Tensor,
    u: Tensor,
    filters: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    before: Tensor | None,
    sequences: None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all inputs and of those before; those of what is absent are empty."""
    call, wide, owed = _Call.of(u, filters, before), u.to(filters.dtype), dy.to(filters.dtype)
    d_gate, d_skip, d_before = u.new_empty(0), filters.new_empty(0), u.new_empty(0)
    if gate is not None:
        y = call.sums().reshape(u.shape)
        d_gate = (owed * (y if skip is None else torch.addcmul(y, skip, wide))).to(u.dtype).contiguous()
        owed = owed * gate
    late = pad(_by_filters(owed, filters), (0, 0, 0, 0, call.earlier, 0))
    (clean, spoilt), (seen, unseen) = finite(late), finite(call.seen)
    of_owed = call.transformed(clean)
    d_seen = call.back(of_owed * call.of_taps().conj(), call.seen.shape[1])
    crossed = (of_owed * call.transformed(seen).conj()).sum((0, 2))
    d_filters = torch.zeros_like(filters)
    d_filters[: len(call.taps)] = torch.fft.irfft(crossed, call.size)[:, : len(call.taps)].t()
    if spoilt is not None:
        d_seen = d_seen.masked_fill(call.reached(spoilt.flip(1)).flip(1), torch.nan)
    for others in (spoilt, unseen):
        if others is not None:
            d_filters = d_filters.masked_fill(others.any(1).any(-1).any(0), torch.nan)
    d_seen = d_seen.reshape(*d_seen.shape[:2], *u.shape[2:])
    du = d_seen[:, call.earlier :]
    if skip is not None:
        du = torch.addcmul(du, skip, owed)
        d_skip = (owed * wide).sum((0, 1))
    if before is not None:
        d_before = torch.zeros_like(before)
        d_before[:, before.shape[1] - call.earlier :] = d_seen[:, : call.earlier]
    return du.to(u.dtype).contiguous(), d_filters, d_skip, d_gate, d_before


def _by_filters(x: Tensor, filters: Tensor) -> Tensor:
    """[B, T, H, P], as wide as the filters."""
    return (x.unsqueeze(-1) if x.dim() == 3 else x).to(filters.dtype)
