"""What generated Triton modules need besides Triton."""

from __future__ import annotations

import triton
import triton.language as tl


def operand(dtype: tl.dtype) -> tl.dtype:
    """The dtype in which a tile enters a matrix product.

    Triton's interpreter multiplies bfloat16 tiles as the integers that store them (3.7), so under it products
    are taken in float32; on a device the operands are what the schedule says.
    """
    return tl.float32 if triton.knobs.runtime.interpret else dtype
