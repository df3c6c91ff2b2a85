"""The fading sum as its definition says it."""

from __future__ import annotations

import torch
from torch import Tensor


def fading_sum(x: Tensor, a: Tensor, c: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y [B,T,H,D] and the last sum [B,H,D], from x [B,T,H,D], a [H] and c [D], in x's dtype."""
    s = torch.zeros_like(x[:, 0]) if initial is None else initial.to(x.dtype)
    y = []
    for token in x.unbind(1):
        s = a[:, None] * s + token + c
        y.append(s)
    return torch.stack(y, 1), s
