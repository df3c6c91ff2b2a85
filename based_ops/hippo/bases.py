"""The bases of HiPPO: what a state remembers, x_n(t) = ∫ p_n(s) ω(s) u(t - s) ds over the ages s ≥ 0.

With K_n = p_n ω the memory is a state space, x' = A x + B u with K(s) = exp(sA) B (arXiv 2206.12037); of
windows it is so as the order grows.  The windowed ones see the ages from 0 to 2, so that a step Δ makes a
window of 2/Δ samples.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import count
from ..errors import ArgumentTypeError, ArgumentValueError, fail

WINDOW = 2.0
"""The greatest age that a windowed basis sees."""


@dataclass(frozen=True)
class System:
    """x' = A x + B u as a closed form: A [N,N], B [N], and the correction P [N,R]: A + PPᵀ is normal.

    Args:
        a: A [N,N].
        b: B [N].
        p: The correction [N,R].

    Examples:
        >>> from based_ops.hippo import BASES
        >>> found = BASES["legs"].closed(4)
        >>> found.a.shape, found.b.shape, found.p.shape
        (torch.Size([4, 4]), torch.Size([4]), torch.Size([4, 1]))
    """

    a: Tensor
    b: Tensor
    p: Tensor


@dataclass(frozen=True)
class Basis:
    """Functions of the age and their measure.

    `functions(order, s)` are p_n(s), [order, *s]; `measure(s)` is ω(s), which is over at `end`.  Both are
    of torch, differentiable, in float64.  `orthonormal` says that ∫ p_n p_m ω = [n = m], as signals are read
    back by it.  `closed(order)` is its `System`, if one is known.

    Args:
        name: In messages.
        functions: p_n(s), [order, *s], for an order and ages s.
        measure: ω(s).
        end: The age at which the measure is over.
        closed: The system of an order, if one is known.
        orthonormal: Whether signals can be read back.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import Basis, construct
        >>> fading = Basis("fading", lambda order, s: s.new_ones(order, *s.shape), lambda s: torch.exp(-s))
        >>> construct(fading, 1)[0].round(decimals=3)  # x' = -x + u
        tensor([[-1.]], dtype=torch.float64)
    """

    name: str
    functions: Callable[[int, Tensor], Tensor]
    measure: Callable[[Tensor], Tensor]
    end: float = math.inf
    closed: Callable[[int], System] | None = None
    orthonormal: bool = True

    def kernels(self, order: int, s: Tensor) -> Tensor:
        """K_n(s) = p_n(s) ω(s), [order, *s]."""
        return self.functions(order, s) * self.measure(s)


def legendre(order: int, x: Tensor) -> Tensor:
    """√(2n+1) P_n(x), [order, *x], orthonormal for half the length of [-1, 1]."""
    found = [torch.ones_like(x), x]
    for n in range(1, order - 1):
        found.append(((2 * n + 1) * x * found[n] - n * found[n - 1]) / (n + 1))
    return torch.stack([(2 * n + 1) ** 0.5 * p for n, p in enumerate(found[:order])])


def _laguerre(order: int, x: Tensor) -> Tensor:
    """L_n(x), orthonormal for the weight exp(-x)."""
    found = [torch.ones_like(x), 1 - x]
    for n in range(1, order - 1):
        found.append(((2 * n + 1 - x) * found[n] - n * found[n - 1]) / (n + 1))
    return torch.stack(found[:order])


def _fourier(order: int, turns: Tensor) -> Tensor:
    """1, √2 cos 2πt, √2 sin 2πt and so on in pairs; the sine of pair 0 is no function, and left as 0."""
    pairs = torch.arange(-(-order // 2), dtype=turns.dtype, device=turns.device)
    pairs = pairs.reshape(-1, *[1] * turns.dim())
    angle = 2 * math.pi * pairs * turns
    size = (2 - (pairs == 0).to(turns.dtype)).sqrt()
    return torch.stack([size * angle.cos(), size * angle.sin()], 1).flatten(0, 1)[:order]


def _uniform(s: Tensor) -> Tensor:
    return torch.full_like(s, 1 / WINDOW)


def _roots(order: int) -> Tensor:
    return (2 * torch.arange(order, dtype=torch.float64) + 1).sqrt()


def _legs(order: int) -> System:
    root = _roots(order)
    a = -torch.outer(root, root).tril(-1) - torch.arange(1, order + 1, dtype=torch.float64).diag()
    return System(a, root, (root / 2**0.5).unsqueeze(1))


def _legt(order: int) -> System:
    root = _roots(order)
    sign = (-1.0) ** torch.arange(order)
    outer = torch.outer(root, root)
    a = -0.5 * torch.where(torch.ones(order, order).tril().bool(), outer, torch.outer(sign, sign) * outer)
    even = root * (sign > 0)
    return System(a, root / 2, torch.stack([even, root - even], 1) / 2**0.5)


def _lagt(order: int) -> System:
    one = torch.ones(order, dtype=torch.float64)
    return System(-torch.outer(one, one).tril(), one, (one / 2**0.5).unsqueeze(1))


def _turning(order: int, speed: float) -> tuple[Tensor, Tensor]:
    """Pairs that turn by `speed` times their number, and what the input adds to each."""
    d = torch.zeros(order, dtype=torch.float64)
    d[1::2] = speed * torch.arange(order // 2, dtype=d.dtype)
    a = torch.diag(d[1:], -1) - torch.diag(d[1:], 1)
    b = torch.zeros(order, dtype=torch.float64)
    b[::2] = 2**0.5
    b[0] = 1
    return a, b


def _fout(order: int) -> System:
    a, b = _turning(order, math.pi)
    return System(a - torch.outer(b, b), b, b.unsqueeze(1))


def _foud(order: int) -> System:
    a, b = _turning(order, 2 * math.pi)
    return System(a - 0.5 * torch.eye(order, dtype=torch.float64), b, b.new_zeros(order, 0))


BASES = {
    basis.name: basis
    for basis in (
        # Legendre over the exponentially warped age.
        Basis("legs", lambda n, s: legendre(n, 2 * torch.exp(-s) - 1), lambda s: torch.exp(-s), closed=_legs),
        # Legendre over a window; its age runs against the polynomials' argument.
        Basis("legt", lambda n, s: legendre(n, 1 - s), _uniform, WINDOW, _legt),
        Basis("fout", lambda n, s: _fourier(n, s / WINDOW), _uniform, WINDOW, _fout),
        # Fourier of ever fainter periods: a state space without being orthogonal.
        Basis("foud", _fourier, lambda s: torch.exp(-s / 2), closed=_foud, orthonormal=False),
        Basis("lagt", _laguerre, lambda s: torch.exp(-s), closed=_lagt),
    )
}


def find(basis: Basis | str) -> Basis:
    """The basis of that name, or itself."""
    if isinstance(basis, Basis):
        return basis
    if not isinstance(basis, str):
        fail(ArgumentTypeError, "basis", type(basis).__name__, "a name or a Basis")
    if basis not in BASES:
        near = difflib.get_close_matches(basis, BASES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        fail(ArgumentValueError, "basis", repr(basis), f"one of {', '.join(BASES)}, or a Basis{hint}")
    return BASES[basis]


def system(basis: Basis | str, order: int) -> System:
    """The closed form of a basis at `order`.  Raises `ArgumentValueError` if none is known."""
    count("order", order, 1)
    found = find(basis)
    if found.closed is None:
        what = "one with a closed form; `construct` builds the matrices of any basis by quadrature"
        fail(ArgumentValueError, "basis", repr(found.name), what)
    return found.closed(order)


def matrices(basis: Basis | str, order: int) -> tuple[Tensor, Tensor]:
    """A [order, order] and B [order] of x' = A x + B u, in float64 (arXiv 2008.07669, 2206.12037).

    Args:
        basis: A `Basis`, or the name of one in `BASES`.
        order: N, functions of the basis.

    Raises:
        ArgumentValueError: the basis is unknown, or has no closed form.

    Examples:
        >>> from based_ops.hippo import matrices
        >>> a, b = matrices("legs", 2)  # [N, N] and [N]
        >>> a.diagonal()
        tensor([-1., -2.], dtype=torch.float64)
    """
    found = system(basis, order)
    return found.a, found.b
