"""Rotary position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import DtypeError, fail

BASE = 10000.0
TURN = 2.0**64


def rotate(x: Tensor, position: Tensor, width: int | None = None) -> Tensor:
    """x [B,T,H,D] with its halves turned by angles position · BASE^(-2i/`width`), i < D/2; D is even.

    `width` is D unless it is given: an odd one, D - 1, is what models with odd rotary widths have.

    `position`, of integers, broadcasts to [B,T,H].  Angles are counted in 2^-64 of a turn, of which whole
    turns overflow, so that they stay exact in long sequences and cost one multiplication of integers.

    Args:
        x: [B,T,H,D], D even.
        position: Integers, of any shape that broadcasts to [B,T,H].
        width: By which angles fall from one pair to the next.

    Returns:
        [B,T,H,D], of x's dtype.

    Raises:
        DtypeError: `position` is of floating numbers.

    Examples:
        >>> import torch
        >>> from based_ops.layers import rotate
        >>> x = torch.randn(1, 3, 2, 8)
        >>> turned = rotate(x, torch.arange(3)[None, :, None])
        >>> torch.equal(turned[:, 0], x[:, 0]), torch.allclose(turned.norm(), x.norm())
        (True, True)
    """
    if position.is_floating_point():
        fail(DtypeError, "position", str(position.dtype), "torch.int32 or torch.int64")
    half = x.shape[-1] // 2
    index = torch.arange(half, device=x.device, dtype=torch.float64)
    frequency = torch.exp(index * (-2 * math.log(BASE) / (width or 2 * half)))
    parts = (frequency * (TURN / (2 * math.pi))).to(torch.int64) * position.to(torch.int64).unsqueeze(-1)
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    angle = parts.to(kept) * (2 * math.pi / TURN)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half].to(kept), x[..., half:].to(kept)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
