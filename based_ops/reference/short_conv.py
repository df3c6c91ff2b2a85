"""The short convolution as its definition says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .feature_maps import elementwise

if TYPE_CHECKING:
    from based_ops.codegen.mixers.short_conv import ShortConv


def short_conv(
    spec: ShortConv,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y [B,T,D] and the last inputs [B,D,W-1], from x, gate [B,T,D] and weight [D,W], in x's dtype."""
    before = spec.width - 1
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], x.shape[2], before)
    inputs = torch.cat([initial_state.to(x.dtype), x.transpose(1, 2)], dim=2)
    seen = torch.stack([inputs.narrow(2, j, x.shape[1]) for j in range(spec.width)], 3)
    y = torch.einsum("bdtw,dw->btd", seen, weight)
    if bias is not None:
        y = y + bias
    if spec.activation is not None:
        y = elementwise(spec.activation, y)
    if gate is not None:
        y = y * gate
    return y, inputs[:, :, inputs.shape[2] - before :].contiguous()
