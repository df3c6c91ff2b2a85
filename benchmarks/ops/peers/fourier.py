"""A long convolution by fast Fourier transforms: cuFFT on a GPU.

Its taps are given: making them of poles is not timed.  Transforms are in float32, over twice the length.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..contender import Call, Contender
from ..inputs import Inputs
from ..works import Work
from .common import sequence_call


class Fourier(Contender):
    """The outputs of a state space."""

    by = "FFT convolution"
    compiles = False

    def takes(self, work: Work) -> bool:
        return work.spec.mixer == "state_space" and work.task == "forward"

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        return sequence_call(work, inputs, _leaves(inputs, work.length), convolve)


class FourierTraining(Contender):
    """The gradients of x, D and taps, where ours are of poles and residues."""

    by = "FFT convolution, gradients of taps"
    same = False
    compiles = False

    def takes(self, work: Work) -> bool:
        return work.spec.mixer == "state_space" and work.task == "training"

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        leaves = tuple(x.detach().requires_grad_() for x in _leaves(inputs, work.length))
        return sequence_call(work, inputs, leaves, convolve)


def _leaves(inputs: Inputs, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, taps and D."""
    x, log_decay, angle, residues, skip = inputs.leaves
    return x, taps(log_decay.detach(), angle.detach(), residues.detach(), length), skip


def taps(log_decay: Tensor, angle: Tensor, residues: Tensor, length: int) -> Tensor:
    """K_l = 2 Re Σ R λ^l, [T, filters], a few lags at once."""
    log_pole = torch.complex(log_decay.double(), angle.double())
    twice = 2 * torch.view_as_complex(residues.double())
    pieces = torch.arange(length, device=angle.device).split(256)
    found = [(twice * torch.exp(log_pole * lags[:, None, None])).real.sum(1).float() for lags in pieces]
    return torch.cat(found)


def convolve(x: Tensor, taps: Tensor, skip: Tensor) -> Tensor:
    """y of x [B, T, H, P], taps [T, H] and D [H, P]; or of [B, T, D], [T, D] and [D]."""
    length = x.shape[1]
    filters = taps.unsqueeze(-1) if x.dim() == 4 else taps
    spectrum = torch.fft.rfft(x.float(), 2 * length, 1) * torch.fft.rfft(filters, 2 * length, 0)
    y = torch.fft.irfft(spectrum, 2 * length, 1)[:, :length] + skip * x
    return cast(Tensor, y.to(x.dtype))
