"""Host helpers of generated modules."""

from __future__ import annotations

import functools

from torch import Tensor


def cdiv(x: int, y: int) -> int:
    """Division rounded up."""
    return -(-x // y)


def flat(x: Tensor | None, rows: int) -> Tensor | None:
    """The tensor as ``[rows, elements]``; None and empty tensors stand for something that is not there."""
    return x if x is None or x.numel() == 0 else x.reshape(rows, -1)


@functools.lru_cache(maxsize=4096)
def forward_plan(T: int, rows: int, LENGTH: int, DIRECT: int, SCORES: int, PROGRAMS: int) -> tuple[int, bool]:
    """How a forward pass over T tokens of `rows` (batch times heads) runs: its segments, and as a recurrence or not.

    Short sequences read their keys directly, as one segment: up to DIRECT tokens, and up to SCORES scores in all.
    Longer ones are a recurrence, cut into as many segments as give the GPU PROGRAMS programs, none shorter than
    LENGTH.  Where there is no recurrence (DIRECT is 0), segments are LENGTH long.
    """
    longest = cdiv(T, LENGTH)
    if not DIRECT:
        return longest, False
    if T <= DIRECT and T * T * rows <= SCORES:
        return 1, False
    return max(1, min(longest, PROGRAMS // rows)), True
