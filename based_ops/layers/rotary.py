"""Rotary position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BASE = 10000.0


def rotate(x: Tensor, position: Tensor, width: int | None = None) -> Tensor:
    """x [B,T,H,D] with its halves turned by angles position · BASE^(-2i/`width`), i < D/2; D is even.

    `width` is D unless it is given: an odd one, D - 1, is what models with odd rotary widths have.

    `position` broadcasts to [B,T,H].  Angles are reduced in float64, so that they stay exact in long
    sequences.
    """
    half = x.shape[-1] // 2
    index = torch.arange(half, device=x.device, dtype=torch.float64)
    frequency = torch.exp(index * (-2 * math.log(BASE) / (width or 2 * half)))
    angle = torch.remainder(position.to(torch.float64).unsqueeze(-1) * frequency, 2 * math.pi)
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = angle.cos().to(kept), angle.sin().to(kept)
    a, b = x[..., :half].to(kept), x[..., half:].to(kept)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
