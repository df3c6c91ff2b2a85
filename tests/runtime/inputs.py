"""Random inputs of a variant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from based_ops.variant import Variant


def qkv(
    variant: Variant,
    batch: int = 2,
    length: int = 21,
    heads: int = 2,
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v."""
    tensors = [
        torch.randn(batch, length, heads, width, dtype=torch.float64) * 0.5
        for width in (variant.qk, variant.qk, variant.v)
    ]
    q, k, v = (tensor.to(dtype).requires_grad_(requires_grad) for tensor in tensors)
    return q, k, v


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    return [tensor for tensor in state if tensor is not None]
