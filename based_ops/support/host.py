"""Host helpers of generated modules."""

from __future__ import annotations

from torch import Tensor


def cdiv(x: int, y: int) -> int:
    """Division rounded up."""
    return -(-x // y)


def flat(x: Tensor | None, rows: int) -> Tensor | None:
    """The tensor as ``[rows, elements]``; None and empty tensors stand for something that is not there."""
    return x if x is None or x.numel() == 0 else x.reshape(rows, -1)
