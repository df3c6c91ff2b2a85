"""Softmax attention of PyTorch without positions: over all keys, or over the last ones and the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class SoftmaxAttention(nn.Module):
    """Causal attention of `heads` heads of one width.

    With a `window`, a query sees the last `window` keys, its own included, and the first `sinks` of the
    sequence (attention sinks, arXiv 2309.17453).
    """

    def __init__(self, d_model: int, heads: int, window: int | None = None, sinks: int = 0) -> None:
        super().__init__()
        self.heads, self.width, self.window, self.sinks = heads, d_model // heads, window, sinks
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,d_model] to the same shape."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, self.width)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.window is None:
            y = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            place = torch.arange(x.shape[1], device=x.device)
            back = place.unsqueeze(1) - place
            seen = (back >= 0) & ((back < self.window) | (place < self.sinks))
            y = scaled_dot_product_attention(q, k, v, seen)
        found: Tensor = self.o_proj(y.transpose(1, 2).flatten(-2))
        return found

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of the keys and values that later queries may see, after `most` tokens."""
        kept = most if self.window is None else min(most, self.window + self.sinks)
        return batch * 2 * self.heads * self.width * kept * self.q_proj.weight.element_size()
