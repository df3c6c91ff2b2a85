"""Hankel matrices of filters: how well any state space of an order can do, and where a fit begins.

Of taps h_1 … h_(2m-1) the matrix is H_ij = h_(i+j+1), m by m.  Whatever a state space of order r has for taps
makes a Hankel matrix of rank r, so ‖H - H_r‖ ≥ σ_(r+1): no fit is nearer, in this norm, than the next
singular value (Adamjan, Arov and Krein; Laughing Hyena, arXiv 2310.18780, section 3.3).  h_0 is apart: it
is the skip connection.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXTRA, ROUNDS = 16, 4
"""Vectors besides those that are asked for, and products with the matrix that turn them to the largest."""


def size(length: int) -> int:
    """m, of filters of `length` taps."""
    return length // 2


def product(filters: Tensor, x: Tensor) -> Tensor:
    """H x [C,m,k] for filters [C,L] and x [C,m,k], by transforms."""
    m = x.shape[1]
    n = 1 << (2 * m - 2).bit_length()
    spectrum = torch.fft.rfft(filters[:, 1 : 2 * m], n=n).unsqueeze(-1) * torch.fft.rfft(
        x.flip(1), n=n, dim=1
    )
    return torch.fft.irfft(spectrum, n=n, dim=1)[:, m - 1 : 2 * m - 1]


def singular(filters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest singular values [C,k] of each matrix, and their vectors [C,m,k].

    k is less if m is.  Found within a space of a few more vectors, so that none is larger than it is: a
    bound stays a bound.
    """
    m = size(filters.shape[1])
    wide = min(m, count + EXTRA)
    drawn = torch.randn(m, wide, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    space = drawn.to(filters).expand(filters.shape[0], m, wide)
    for _ in range(ROUNDS):
        space = torch.linalg.qr(product(filters, space)).Q
    within = space.mT @ product(filters, space)
    values, vectors = torch.linalg.eigh((within + within.mT) / 2)
    order = values.abs().argsort(dim=1, descending=True)[:, :count]
    vectors = space @ vectors.gather(2, order.unsqueeze(1).expand(-1, wide, -1))
    return values.gather(1, order).abs(), vectors


def norm(filters: Tensor) -> Tensor:
    """‖H‖ [C], the largest singular value."""
    return singular(filters, 1)[0][:, 0]
