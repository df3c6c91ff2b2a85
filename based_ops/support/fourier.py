"""State spaces as convolutions by fast Fourier transforms: for long sequences whose channels have filters.

Powers λ^l of lags l = LAGS·a + c are products of two, λ^(LAGS a) and λ^c, so sums over modes or lags are
matrix products of a channel, and exponentials are few.  They are found in complex128 and rounded.

A transform would spread what is not finite over all tokens of its channel.  It is 0 to the transform, and
tokens that it reaches are NaN afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LAGS = 64


class Powers(NamedTuple):
    """λ^c and λ^(LAGS a), [lags, modes, channels]."""

    near: Tensor
    far: Tensor

    @staticmethod
    def of(log_decay: Tensor, angle: Tensor, length: int) -> Powers:
        log_pole = torch.complex(log_decay.double(), angle.double())
        kept = torch.complex128 if log_decay.dtype == torch.float64 else torch.complex64
        lags = torch.arange(max(LAGS, -(-length // LAGS)), device=angle.device).view(-1, 1, 1)
        near = torch.exp(log_pole * lags[:LAGS]).to(kept)
        return Powers(near, torch.exp(log_pole * (LAGS * lags[: -(-length // LAGS)])).to(kept))

    def read(self, states: Tensor, length: int) -> Tensor:
        """Re Σ_n s_n λ_n^l of states [B, modes, channels], for each lag below `length`: [B, T, channels]."""
        begun = states.unsqueeze(1) * self.far
        return torch.einsum("bamd,cmd->bacd", begun, self.near).real.flatten(1, 2)[:, :length]

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_l λ^l x_l and Σ_l l λ^l x_l of [B, T, channels]: [B, modes, channels] each."""
        count = len(self.far)
        tokens = torch.nn.functional.pad(x, (0, 0, 0, LAGS * count - x.shape[1]))
        blocks = tokens.unflatten(1, (count, LAGS)).to(self.near.dtype)
        age = torch.arange(max(LAGS, count), device=x.device).view(-1, 1, 1)
        plain, aged = (
            torch.einsum("bacd,cmd->bamd", blocks, weights) for weights in (self.near, age[:LAGS] * self.near)
        )
        aged = aged + LAGS * age[:count] * plain
        return (plain * self.far).sum(1), (aged * self.far).sum(1)


def fourier_forward(
    x: Tensor,
    log_decay: Tensor,
    angle: Tensor,
    residues: Tensor,
    skip: Tensor | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    sequences: None = None,
) -> tuple[Tensor, Tensor]:
    """y of x [B, T, D], and the last state if it is asked for."""
    length, wide = x.shape[1], x.to(log_decay.dtype)
    powers, twice = Powers.of(log_decay, angle, length), 2 * torch.view_as_complex(residues)
    pole = powers.near[1]
    clean, spoilt = finite(wide)
    y = _back(_transformed(clean) * _transformed(powers.read(twice[None], length)), length)
    if skip is not None:
        y = y + skip * clean
    if initial_state is not None:
        y = y + powers.read(twice * pole * torch.view_as_complex(initial_state), length)
    if spoilt is not None:
        y = y.masked_fill(_reached(spoilt), torch.nan)
    if not output_final_state:
        return y.to(x.dtype).contiguous(), log_decay.new_empty(0)
    final = powers.sums(wide.flip(1))[0]
    if initial_state is not None:
        final = final + _power(log_decay, angle, length) * torch.view_as_complex(initial_state)
    return y.to(x.dtype).contiguous(), torch.view_as_real(final).contiguous()


def fourier_backward(
    dy: Tensor,
    d_final_state: Tensor | None,
    x: Tensor,
    log_decay: Tensor,
    angle: Tensor,
    residues: Tensor,
    skip: Tensor | None,
    initial_state: Tensor | None,
    sequences: None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all inputs and of the initial state; those of what is absent are empty."""
    length, wide = x.shape[1], x.to(log_decay.dtype)
    powers, twice = Powers.of(log_decay, angle, length), 2 * torch.view_as_complex(residues)
    pole, last = powers.near[1], _power(log_decay, angle, length)
    owed = dy.to(log_decay.dtype)
    clean, spoilt = finite(owed)
    taps = _transformed(powers.read(twice[None], length))
    dx = _back(_transformed(clean) * taps.conj(), length)
    if skip is not None:
        dx = dx + skip * clean
    crossed = (_transformed(owed) * _transformed(wide).conj()).sum(0, keepdim=True)
    by_residue, by_log = (total[0] for total in powers.sums(_back(crossed, length)))
    by_log = twice * by_log
    nothing = log_decay.new_empty(0)
    d_skip, d_initial = nothing, nothing
    if skip is not None:
        d_skip = (owed * wide).sum((0, 1))
    given = None if initial_state is None else torch.view_as_complex(initial_state)
    after = None if d_final_state is None else torch.view_as_complex(d_final_state.contiguous()).conj()
    if given is not None:
        read, aged = powers.sums(owed)
        read, aged = pole * read, pole * (aged + read)
        by_residue = by_residue + (read * given).sum(0)
        by_log = by_log + (twice * aged * given).sum(0)
        begun = twice * read if after is None else twice * read + after * last
        d_initial = torch.view_as_real(begun.conj().resolve_conj()).contiguous()
    if after is not None:
        dx = dx + powers.read(after.resolve_conj(), length).flip(1)
        by_log = by_log + (after * powers.sums(wide.flip(1))[1]).sum(0)
        if given is not None:
            by_log = by_log + (after * length * last * given).sum(0)
    if spoilt is not None:
        dx = dx.masked_fill(_reached(spoilt.flip(1)).flip(1), torch.nan)
    d_residues = torch.stack((2 * by_residue.real, -2 * by_residue.imag), -1)
    return (
        dx.to(x.dtype).contiguous(),
        by_log.real.contiguous(),
        -by_log.imag,
        d_residues,
        d_skip,
        d_initial,
    )


def _power(log_decay: Tensor, angle: Tensor, count: int) -> Tensor:
    """λ^count."""
    kept = torch.complex128 if log_decay.dtype == torch.float64 else torch.complex64
    return torch.exp(torch.complex(log_decay.double(), angle.double()) * count).to(kept)


def _transformed(x: Tensor) -> Tensor:
    """The spectrum of [B, T, D] over twice the tokens, [B, D, frequencies]."""
    return torch.fft.rfft(x.transpose(1, 2), _size(x.shape[1]))


def _back(spectrum: Tensor, length: int) -> Tensor:
    return torch.fft.irfft(spectrum, _size(length))[..., :length].transpose(1, 2)


def _size(length: int) -> int:
    """A power of two, in which nothing meets its own end."""
    return 1 << (2 * length - 1).bit_length()


def finite(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x with 0 for what is not finite, and where that is; None where all is, as far as looking is free."""
    spoilt = ~x.isfinite()
    if x.device.type == "cpu" and not bool(spoilt.any()):
        return x, None
    return x.masked_fill(spoilt, 0.0), spoilt


def _reached(spoilt: Tensor) -> Tensor:
    """The tokens at which there is one of these, or was."""
    return spoilt.cumsum(1, dtype=torch.int32) > 0
