"""HiPPO's matrices as a normal one and a correction of low rank, and the poles that S4D starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import count
from ..errors import ArgumentValueError, fail
from .bases import BASES, Basis, system

DECAY = 0.5
"""Of all poles of normal parts but those whose correction carried it whole, which get it in its place."""

FORMULAS = ("lin", "inv", "real", "random")
"""Poles that no basis has, but a formula (arXiv 2206.11893)."""


@dataclass(frozen=True)
class NormalPlusLowRank:
    """A = V (diag(λ) - P P*) V*, B = V b: V [N,N] unitary, λ [N], P [N,R] and b [N] in complex128.

    Args:
        poles: λ [N].
        vectors: V [N,N].
        p: P [N,R].
        b: b [N].

    Examples:
        >>> from based_ops.hippo import normal_plus_low_rank
        >>> normal_plus_low_rank("legs", 4).p.shape
        torch.Size([4, 1])
    """

    poles: Tensor
    vectors: Tensor
    p: Tensor
    b: Tensor

    def dense(self) -> tuple[Tensor, Tensor]:
        """A and B again, real."""
        middle = self.poles.diag() - self.p @ self.p.mH
        return (self.vectors @ middle @ self.vectors.mH).real, (self.vectors @ self.b).real


def normal_plus_low_rank(basis: Basis | str, order: int) -> NormalPlusLowRank:
    """The form that S4 computes with (arXiv 2111.00396, theorem 1); poles by their imaginary part.

    Args:
        basis: A `Basis`, or the name of one in `BASES`.
        order: N.

    Raises:
        ArgumentValueError: the basis is unknown, or has no closed form.

    Examples:
        >>> import torch
        >>> from based_ops.hippo import matrices, normal_plus_low_rank
        >>> found = normal_plus_low_rank("legs", 4)
        >>> normal = torch.diag(found.poles) - found.p @ found.p.mH
        >>> a = found.vectors @ normal @ found.vectors.mH
        >>> torch.allclose(a.real, matrices("legs", 4)[0])
        True
    """
    found = system(basis, order)
    normal = found.a + found.p @ found.p.mT
    # A multiple of the identity and a skew part, whose eigenvectors `eigh` finds as exactly orthogonal.
    decay = normal.diagonal().mean()
    skew = normal - decay * torch.eye(order, dtype=normal.dtype)
    turns, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), -skew))
    poles = torch.complex(decay.expand(order), turns)
    p, b = (vectors.mH @ x.to(vectors.dtype) for x in (found.p, found.b))
    return NormalPlusLowRank(poles, vectors, p, b)


def poles(basis: str, order: int, generator: torch.Generator | None = None) -> Tensor:
    """Poles λ of a diagonal state space, one of each conjugate pair: complex128 [order // 2], Re λ < 0.

    They are of continuous time: a step Δ makes exp(Δ λ) of them.  `lin`, `inv` and `real` are S4D's formulas
    (arXiv 2206.11893, equations 8 and 9), `random` turns uniformly as far as `lin` does, and the name of a
    basis takes the poles of its normal part.  Where the correction carries all decay (`legt`, `fout`) they
    get ½ in its place, as the others have, which makes those of `fout` the same as `lin`.  Imaginary parts
    ascend, except for `inv`, whose fall with n as in its formula.

    Args:
        basis: `legs`, `legt`, `fout`, `foud`, `lin`, `inv`, `real` or `random`.
        order: N, an even number.
        generator: Of `random`; None: PyTorch's own.

    Raises:
        ArgumentValueError: the name is unknown, or the order odd.

    Examples:
        >>> from based_ops.hippo import poles
        >>> poles("lin", 6)
        tensor([-0.5000+0.0000j, -0.5000+3.1416j, -0.5000+6.2832j],
               dtype=torch.complex128)
    """
    count("order", order, 2)
    if order % 2:
        fail(ArgumentValueError, "order", order, "even: poles come in conjugate pairs")
    if basis in BASES:
        # Pairs at zero stand in the middle of the order, and one of each is in the upper half.
        turns = normal_plus_low_rank(basis, order).poles.imag[order // 2 :].clamp(min=0)
        return torch.complex(torch.full_like(turns, -DECAY), turns)
    n = torch.arange(order // 2, dtype=torch.float64)
    if basis == "lin":
        return torch.complex(torch.full_like(n, -DECAY), math.pi * n)
    if basis == "inv":
        return torch.complex(torch.full_like(n, -DECAY), order / math.pi * (order / (2 * n + 1) - 1))
    if basis == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    if basis == "random":
        turns = math.pi * n.numel() * torch.rand(n.shape, dtype=n.dtype, generator=generator)
        return torch.complex(torch.full_like(n, -DECAY), turns.sort().values)
    fail(ArgumentValueError, "basis", repr(basis), f"one of {', '.join((*BASES, *FORMULAS))}")
