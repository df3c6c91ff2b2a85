"""Filters as sums of decaying oscillations: poles from the Hankel matrix, then non-linear least squares.

All filters of a batch at once, in float64.  A filter's taps but the first are h_t ≈ 2 Re Σ_n R_n λ_n^t with
log λ = -exp(rate) + i · angle, so no pole is unstable, whatever a step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.modal import modal_filters
from . import hankel

LEAST_DECAY = 1e-5
"""A pole that comes out as unstable, or as never fading, begins with so much decay a token."""
GONE = 4.0
"""The rate of a pole that stands for none: exp(-exp(4)) is nothing after a token."""
RIDGE, NOTHING = 1e-13, 1e-24
"""Added to the diagonal of normal equations; what a column's square is nothing beside."""
STEPS, ROUNDS, STEPS_OF_ROUND = 60, 4, 10
"""Steps of a fit; rounds of new weights, and steps of each."""
PATIENCE = 1e-4
"""A fit ends when no square falls by this part in a step."""


Told = Callable[[str], None] | None


@dataclass
class Modes:
    """Poles, of a pair the upper one, and their residues: rate and angle [C,M], residues complex [C,M].

    A real pole has the angle 0 and a real residue, and keeps both in a fit: so pairs count as an order of 2,
    real poles as 1.
    """

    rate: Tensor
    angle: Tensor
    residues: Tensor

    @property
    def log_poles(self) -> Tensor:
        """log λ."""
        return torch.complex(-self.rate.exp(), self.angle)

    def taps(self, length: int) -> Tensor:
        """2 Re Σ R λ^t for t < length, [C, length]."""
        return modal_filters(self.log_poles, self.residues, length)

    @staticmethod
    def cat(several: Sequence[Modes]) -> Modes:
        """Those of all filters, with poles that stand for none where some have fewer."""
        places = max(x.rate.shape[1] for x in several)

        def filled(x: Tensor, value: float) -> Tensor:
            return torch.nn.functional.pad(x, (0, places - x.shape[1]), value=value)

        return Modes(
            torch.cat([filled(x.rate, GONE) for x in several]),
            torch.cat([filled(x.angle, 0.0) for x in several]),
            torch.cat([filled(x.residues, 0.0) for x in several]),
        )

    def where(self, chosen: Tensor, other: Modes) -> Modes:
        """Of each filter these modes if it is chosen [C], else the other's."""
        row = chosen.unsqueeze(1)
        return Modes(
            torch.where(row, self.rate, other.rate),
            torch.where(row, self.angle, other.angle),
            torch.where(row, self.residues, other.residues),
        )


def begin(filters: Tensor, vectors: Tensor) -> Modes:
    """Poles of the shift that the leading singular vectors [C,m,N] undergo (Kung), with their best residues.

    Of N poles a pair takes one place and a real one too: there are as many places as the filter with the most
    needs, and poles that fade at once stand in those that are left.
    """
    shift = torch.linalg.lstsq(vectors[:, :-1], vectors[:, 1:]).solution
    modes, _, _ = _of_poles(torch.linalg.eigvals(shift))
    modes.residues = residues(filters, modes)
    return modes


def begin_stable(filters: Tensor, vectors: Tensor, order: int, told: Told = None) -> Modes:
    """Another start: Kung's poles of a stable fit of a higher order, that of `vectors`, over twice the taps.

    Within its taps a filter may grow, and its Hankel matrix wants poles outside of the circle.  Such a fit
    goes on as a stable filter does, so the poles of all of it lie inside.
    """
    long = refine(filters, begin(filters, vectors), told=told).taps(2 * filters.shape[1])
    return begin(filters, hankel.singular(long, order)[1])


def begin_balanced(filters: Tensor, order: int) -> Modes:
    """Balanced truncation of each filter as it is, with nothing behind its taps: poles and their residues.

    It is stable, and over all frequencies within twice the sum of the singular values that it neglects, those
    of the Hankel matrix of all taps with zeros behind them (Glover, Int. J. Control 39, 1984), but for what
    the space leaves out in which `hankel.singular` finds them.  A Hankel norm is no larger than that.
    """
    taps = torch.nn.functional.pad(filters, (0, filters.shape[1]))
    values, vectors = hankel.singular(taps, order)
    signs = (vectors * hankel.product(taps, vectors)).sum(1).sign()
    half = values.clamp(min=RIDGE * values[:, :1]).rsqrt()
    right = vectors * (signs * half).unsqueeze(1)
    turned = (vectors * half.unsqueeze(1)).mT @ hankel.product(taps.roll(-1, 1), right)
    found, eigenvectors = torch.linalg.eig(turned)
    read = (vectors[:, 0] / half).unsqueeze(1).to(found.dtype) @ eigenvectors
    given = (vectors[:, 0] * signs / half).unsqueeze(2).to(found.dtype)
    weights = read.squeeze(1) * torch.linalg.solve(eigenvectors, given).squeeze(2) / found
    modes, first, upper = _of_poles(found)
    weights = torch.where(found.imag == 0, weights / 2, weights).gather(1, first)
    modes.residues = torch.where(upper, weights, 0.0)
    return modes


def nearest(filters: Tensor, several: Sequence[Modes]) -> Modes:
    """Of each filter those modes whose error has the smallest Hankel norm."""
    misses = torch.stack([distance(filters, modes) for modes in several]).nan_to_num(torch.inf)
    every, count = Modes.cat(several), len(filters)
    chosen = misses.argmin(0) * count + torch.arange(count, device=filters.device)
    return Modes(every.rate[chosen], every.angle[chosen], every.residues[chosen])


def residues(filters: Tensor, modes: Modes) -> Tensor:
    """The residues that are best for given poles, by linear least squares."""
    ages = torch.arange(1, filters.shape[1], dtype=filters.dtype, device=filters.device)
    powers = torch.exp(modes.log_poles.unsqueeze(1) * ages.unsqueeze(1))  # [C, L-1, N/2]
    columns = torch.cat([2 * powers.real, -2 * powers.imag], 2)
    solved = _solved(columns.mT @ columns, columns.mT @ filters[:, 1:].unsqueeze(-1), RIDGE)
    return torch.complex(*solved.squeeze(-1).chunk(2, dim=1))


def refine(
    filters: Tensor,
    modes: Modes,
    weights: Tensor | None = None,
    steps: int = STEPS,
    told: Told = None,
) -> Modes:
    """Levenberg and Marquardt's method for poles and residues together, each filter with its own damping.

    Squares are summed over taps, or with `weights` [C,F] over the frequencies of a transform of twice the
    length, which they weigh.
    """

    def seen(x: Tensor) -> Tensor:
        """What is squared, of rows of taps [C,L-1,K]."""
        if weights is None:
            return x
        spectrum = torch.fft.rfft(x, n=2 * filters.shape[1], dim=1) * weights.sqrt().unsqueeze(-1)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def missed(some: Modes) -> Tensor:
        return seen((filters - some.taps(filters.shape[1]))[:, 1:].unsqueeze(-1))

    rest = missed(modes)
    cost = rest.square().sum((1, 2))
    damping = torch.full_like(cost, 1e-3)
    for number in range(steps):
        if told:
            told(f"step {number}")
        slopes = seen(_slopes(modes, filters.shape[1]))
        step = _solved(slopes.mT @ slopes, slopes.mT @ rest, damping[:, None, None]).squeeze(-1)
        rate, angle, real, imaginary = step.chunk(4, dim=1)
        # A pole moves by a factor of its decay, of e at most.
        tried = Modes(
            modes.rate + rate.clamp(-1, 1),
            modes.angle + angle,
            modes.residues + torch.complex(real, imaginary),
        )
        rest_then = missed(tried)
        cost_then = rest_then.square().sum((1, 2))
        better = cost_then < cost
        modes = tried.where(better, modes)
        rest = torch.where(better[:, None, None], rest_then, rest)
        fallen = torch.where(better, 1 - cost_then / cost.clamp(min=1e-300), 0.0)
        cost = torch.where(better, cost_then, cost)
        damping = torch.where(better, damping / 4, damping * 4).clamp(1e-12, 1e8)
        if bool(((fallen < PATIENCE) & better | (damping >= 1e8)).all()):
            break
    return modes


def flatten(filters: Tensor, modes: Modes, told: Told = None) -> Modes:
    """Smaller largest errors over frequencies, by weights that grow where the error is large (Lawson).

    Of each filter the modes with the smallest Hankel norm of the error are kept.
    """
    length = filters.shape[1]
    best, least = modes, distance(filters, modes)
    weights = filters.new_ones(filters.shape[0], length + 1)
    for _ in range(ROUNDS):
        error = (filters - modes.taps(length))[:, 1:]
        spectrum = torch.fft.rfft(error, n=2 * length).abs()
        # A frequency that is met keeps some weight; where all are, all weigh the same.
        weights = weights * (spectrum / spectrum.mean(1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-3)
        weights = (weights / weights.mean(1, keepdim=True)).clamp(min=1e-6)
        modes = refine(filters, modes, weights, STEPS_OF_ROUND, told)
        now = distance(filters, modes)
        best = modes.where(now < least, best)
        least = torch.minimum(now, least)
    return best


def distance(filters: Tensor, modes: Modes) -> Tensor:
    """The Hankel norm [C] of what the modes miss."""
    return hankel.norm(filters - modes.taps(filters.shape[1]))


def _of_poles(found: Tensor) -> tuple[Modes, Tensor, Tensor]:
    """Modes of poles [C,N] without residues, the places they are from, and which of these there are."""
    upper = found.imag >= 0
    places = int(upper.sum(1).max())
    first = torch.argsort(upper.int(), dim=1, descending=True, stable=True)[:, :places]
    found, upper = found.gather(1, first), upper.gather(1, first)
    rate = found.abs().clamp(min=1e-12).log().neg().clamp(min=LEAST_DECAY).log()
    nothing = torch.full_like(rate, GONE)
    modes = Modes(torch.where(upper, rate, nothing), torch.where(upper, found.angle(), 0.0), found)
    return modes, first, upper


def _slopes(modes: Modes, length: int) -> Tensor:
    """Derivatives of the taps by rate, angle, and real and imaginary residues, [C, L-1, 2N]."""
    ages = torch.arange(1, length, dtype=modes.rate.dtype, device=modes.rate.device).unsqueeze(1)
    powers = torch.exp(modes.log_poles.unsqueeze(1) * ages)
    terms = modes.residues.unsqueeze(1) * powers * ages
    by_rate = -2 * modes.rate.exp().unsqueeze(1) * terms.real
    return torch.cat([by_rate, -2 * terms.imag, 2 * powers.real, -2 * powers.imag], 2)


def _solved(gram: Tensor, right: Tensor, damping: Tensor | float) -> Tensor:
    """x of (G + damping · diag G) x = right, with G scaled to a diagonal of ones first."""
    squares = gram.diagonal(dim1=1, dim2=2)
    # A column of rounding errors alone, such as an imaginary part of a real pole, has no part.
    there = squares > NOTHING * squares.amax(1, keepdim=True)
    scale = torch.where(there, squares.clamp(min=1e-300).rsqrt(), 0.0).unsqueeze(-1)
    one = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    scaled = gram * scale * scale.mT + (damping + RIDGE) * one
    # Where rounding leaves the matrix indefinite, a larger ridge.
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if bool(failed.any()):
        factor = torch.linalg.cholesky(scaled + 1e-9 * one)
    return torch.cholesky_solve(right * scale, factor) * scale
