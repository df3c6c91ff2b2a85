"""Filters to state spaces: which order, how near, and how near any could come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..checks import sizes
from ..errors import ArgumentTypeError, ArgumentValueError, ShapeError, fail
from . import hankel
from .fit import Modes, Told, begin, begin_balanced, begin_stable, distance, flatten, nearest, refine

Norm = Literal["l2", "hinf"]
TOLERANCE = 1e-5
"""`auto` takes the order at which the bound of every filter is below this part of its largest value."""
MOST_ORDER = 64
"""`auto` goes no further."""
WIDE = 24
"""Order of the stable fit that another start is taken from."""
AT_ONCE = 2**25
"""Numbers of a matrix of derivatives: filters of more are fitted in several batches."""


@dataclass(frozen=True)
class Fitted:
    """Filters of C channels as state spaces of one order N: h_0 = bias, h_t ≈ 2 Re Σ_n R_n λ_n^t after it.

    Errors and bounds are of the taps behind the first, and each a part of the same norm of the filter.

    Examples:
        >>> import torch
        >>> from based_ops.distill import fitted
        >>> fitted(0.9 ** torch.arange(64).double()[None], order=2).order
        2
    """

    order: int
    modes: Modes
    skip: Tensor
    """What the skip connection gets besides its own, so that h_0 is met exactly, [C]."""
    bound: Tensor
    """σ_(N+1) / σ_1 of the Hankel matrix: no state space of this order has a smaller `hankel` [C]."""
    hankel: Tensor
    """The Hankel norm of the error [C]."""
    l2: Tensor
    """The error of the taps [C]."""
    hinf: Tensor
    """The largest error over frequencies [C]."""
    needed: Tensor
    """The order at which a filter's bound falls below the tolerance, int64 [C]; `MOST_ORDER` if none does."""


def fitted(
    filters: Tensor,
    order: int | Literal["auto"] = "auto",
    norm: Norm = "l2",
    tolerance: float = TOLERANCE,
    told: Told = None,
    name: str = "filters",
) -> Fitted:
    """State spaces for `filters` [C,L], fitted in float64 on their device; `name` is theirs in errors.

    `order` is even: N poles for every filter, so N/2 modes, or more where poles are real.  `auto` finds the
    smallest whose bounds are below `tolerance`.  `norm` says what is small at the end: the sum of squares of
    the taps' errors, or (`hinf`) the largest error over frequencies.

    Args:
        filters: [C,L], finite.
        order: An even number, or `auto`.
        norm: `l2` or `hinf`.
        tolerance: Of `auto`, as a part of each filter's largest singular value.
        told: Called with a line after each step.
        name: Of the filters, in errors.

    Raises:
        ArgumentValueError: filters are not finite, or too short for the order.

    Examples:
        >>> import torch
        >>> from based_ops.distill import fitted
        >>> found = fitted(0.9 ** torch.arange(64).double()[None], order=2)
        >>> bool(found.l2.max() < 1e-6)
        True
    """
    if filters.dim() != 2 or filters.shape[0] == 0 or filters.shape[1] < 8:
        fail(ShapeError, name, sizes(filters), "of shape [C, L], with 8 taps or more")
    if norm not in ("l2", "hinf"):
        fail(ArgumentValueError, "norm", repr(norm), "l2 or hinf")
    filters = filters.detach().double()
    if not bool(filters.isfinite().all()):
        wrong = filters.isfinite().all(1).logical_not().nonzero().flatten().tolist()
        fail(ArgumentValueError, name, f"NaN or infinity in filter {wrong[0]}", "finite")
    most = (hankel.size(filters.shape[1]) - 1) // 2 * 2
    if order != "auto":
        if isinstance(order, bool) or not isinstance(order, int):
            fail(ArgumentTypeError, "order", type(order).__name__, "an int or 'auto'")
        if order < 2 or order % 2 or order > most:
            what = f"even, from 2 to {most}: {name} has {filters.shape[1]} taps"
            fail(ArgumentValueError, "order", order, what)
    values, vectors = hankel.singular(
        filters, max(min(most, MOST_ORDER), 0 if order == "auto" else order) + 1
    )
    # A filter that is 0 is met by any state space.
    largest = values[:, :1].clamp(min=1e-300)
    small = values / largest <= tolerance
    first = torch.where(small.any(1), small.int().argmax(1), MOST_ORDER)
    needed = ((first + 1) // 2 * 2).clamp(2, min(most, MOST_ORDER))
    chosen = int(needed.max()) if order == "auto" else order
    rows = max(1, AT_ONCE // (filters.shape[1] * 2 * chosen))
    parts = []
    for own, leading in zip(filters.split(rows), vectors.split(rows), strict=True):
        modes = _fit(own, leading, chosen, told)
        parts.append(modes if norm == "l2" else flatten(own, modes, told))
    modes = Modes.cat(parts)
    error = (filters - modes.taps(filters.shape[1]))[:, 1:]
    taps = filters[:, 1:]

    def part(of: Callable[[Tensor], Tensor]) -> Tensor:
        return of(error) / of(taps).clamp(min=1e-300)

    return Fitted(
        chosen,
        modes,
        filters[:, 0] - 2 * modes.residues.real.sum(1),
        values[:, chosen] / largest[:, 0],
        distance(filters, modes) / largest[:, 0],
        part(lambda x: x.norm(dim=1)),
        part(lambda x: torch.fft.rfft(x, n=2 * filters.shape[1]).abs().amax(1)),
        needed,
    )


def _fit(filters: Tensor, vectors: Tensor, order: int, told: Told) -> Modes:
    """The fit from the filters' own poles; where it misses twice the bound, the nearest of further starts, of
    which balanced truncation is one, and of the fits from them.  So none is further than balanced truncation.
    """
    modes = refine(filters, begin(filters, vectors[:, :, :order]), told=told)
    # σ_(N+1) is the length of what H makes of its vector.
    bound = hankel.product(filters, vectors[:, :, order : order + 1]).norm(dim=(1, 2))
    missed = (distance(filters, modes) > 2 * bound).nonzero().flatten()
    if missed.numel() == 0:
        return modes
    own = filters[missed]
    starts = [begin_balanced(own, order)]
    if order < WIDE < vectors.shape[2]:
        starts.append(begin_stable(own, vectors[missed, :, :WIDE], order, told))
    several = [Modes(modes.rate[missed], modes.angle[missed], modes.residues[missed])]
    for start in starts:
        several += [start, refine(own, start, told=told)]
    every = Modes.cat([modes, nearest(own, several)])
    chosen = torch.arange(len(filters), device=filters.device)
    chosen[missed] = len(filters) + torch.arange(len(missed), device=filters.device)
    return Modes(every.rate[chosen], every.angle[chosen], every.residues[chosen])
