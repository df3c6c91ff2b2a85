"""The matrices of any basis by quadrature, for those without a closed form and as a check of the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import count
from ..errors import ArgumentValueError, fail
from .bases import Basis, find

REACH = 2.0**12
"""No measure is followed further than this."""
OVER, MORE = 1e-17, 32
"""When a measure is over; nodes of each unit of age, besides two for every function."""


def construct(basis: Basis | str, order: int) -> tuple[Tensor, Tensor]:
    """A [order, order] and B [order] of x' = A x + B u for a basis, in float64.

    Of x(t) = ∫ K(s) u(t - s) ds the derivative is K(0) u(t) + ∫ K'(s) u(t - s) ds - K(end) u(t - end).  K' is
    written in K by least squares, and u at the end as the basis reads it back: Σ x_n p_n(end), or for a
    periodic basis, whose series meets u(t) and u(t - end) half-way, twice that without u(t)
    (arXiv 2206.12037, theorem 6).

    Args:
        basis: A `Basis`, or the name of one in `BASES`.
        order: N, functions of the basis.

    Raises:
        ArgumentValueError: the functions are not finite, or the measure does not end within `REACH`.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import construct, matrices
        >>> torch.allclose(construct("legt", 4)[0], matrices("legt", 4)[0])
        True
    """
    count("order", order, 1)
    found = find(basis)
    s, weights = _nodes(found, order)
    functions = found.functions(order, s)
    kernels = found.kernels(order, s)
    slopes = torch.func.jvp(lambda x: found.kernels(order, x), (s,), (torch.ones_like(s),))[1]
    ends = torch.tensor([0.0, found.end if math.isfinite(found.end) else 0.0], dtype=torch.float64)
    at, weight_at = found.functions(order, ends), found.measure(ends)
    for name, value in (("functions", functions), ("functions", at), ("measure", weight_at)):
        if not bool(value.isfinite().all()):
            fail(ArgumentValueError, f"basis.{name}", f"{found.name}, not finite", "finite up to the end")
    # A G = ∫ K' p, where G is one for orthonormal functions, and functions that are 0 are left out.
    gram = (kernels * weights) @ functions.mT
    a = (slopes * weights) @ functions.mT @ torch.linalg.pinv(gram, hermitian=True)
    b = at[:, 0] * weight_at[0]
    if math.isfinite(found.end):
        several = found.functions(max(order, 4), ends)  # a constant alone does not tell
        periodic = torch.allclose(several[:, 0], several[:, 1], atol=1e-9)
        a = a - (1 + periodic) * weight_at[1] * torch.outer(at[:, 1], at[:, 1])
        b = (1 + periodic) * b
    return a, b


def _nodes(basis: Basis, order: int) -> tuple[Tensor, Tensor]:
    """Ages and weights of Gauss and Legendre's rule on pieces of a measure, each at most one long."""
    end = basis.end
    if math.isinf(end):
        end = 1.0
        while _left(basis, order, end) > OVER:
            end *= 2
            if end > REACH:
                fail(ArgumentValueError, "basis.measure", f"{basis.name}, without end", f"over at {REACH:g}")
    pieces, inner = math.ceil(end), 2 * order + MORE
    x, w = _gauss(inner)
    width = end / pieces
    starts = width * torch.arange(pieces, dtype=torch.float64)
    return (starts.unsqueeze(1) + width * x).flatten(), (width * w).repeat(pieces)


def _left(basis: Basis, order: int, end: float) -> float:
    s = torch.tensor([end], dtype=torch.float64)
    return float((basis.functions(order, s).square() * basis.measure(s)).max())


def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """The rule on [0, 1], by the eigenvalues of Legendre's recurrence (Golub and Welsch)."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    beside = k / (4 * k.square() - 1).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (x + 1) / 2, vectors[0].square()
