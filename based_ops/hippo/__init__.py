"""HiPPO: orthogonal bases as state spaces, their poles, kernels, and signals read back from a state."""

from __future__ import annotations

from .bases import BASES, Basis, System, matrices
from .construct import construct
from .kernels import discretise, kernel, remember, responses
from .normal import NormalPlusLowRank, normal_plus_low_rank, poles
from .reconstruct import history, recall, recall_history

__all__ = [
    "BASES",
    "Basis",
    "NormalPlusLowRank",
    "System",
    "construct",
    "discretise",
    "history",
    "kernel",
    "matrices",
    "normal_plus_low_rank",
    "poles",
    "recall",
    "recall_history",
    "remember",
    "responses",
]
