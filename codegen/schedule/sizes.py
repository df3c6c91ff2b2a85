"""What all policies say sizes with."""

from __future__ import annotations

from ..ir.kernels import Sized

MATRIX_UNIT = 16
"""The smallest side of a matrix product on a tensor core, in elements."""
STATE_COLUMNS = 64
"""Those of the block of a state that one program sums."""
GRAIN = 128
"""The fewest tokens of a segment, but where less fits."""


def pick(subject: Sized, sizes: dict[str, int]) -> dict[str, int]:
    """Those of a kernel's or a plan's constants."""
    return {name: sizes[name] for name in subject.constants}


def power_of_two(n: int) -> int:
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()
