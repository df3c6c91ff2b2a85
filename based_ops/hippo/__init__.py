"""HiPPO: orthogonal bases as state spaces, their poles, kernels, and signals read back from a state."""

from __future__ import annotations

from .bases import BASES, Basis, System, matrices
from .normal import NormalPlusLowRank, normal_plus_low_rank, poles

__all__ = [
    "BASES",
    "Basis",
    "NormalPlusLowRank",
    "System",
    "matrices",
    "normal_plus_low_rank",
    "poles",
]
