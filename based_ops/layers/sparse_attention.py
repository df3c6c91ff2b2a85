"""Softmax attention for the few tokens that ask for it: the other half of Zoology's hybrids."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..checks import count, sizes
from ..errors import ArgumentValueError, ShapeError, fail


class SparseAttention(nn.Module):
    """Causal attention whose output a gate of each token lets through (arXiv 2312.04927, section 5).

    The gate is σ(gate(x)), from 0 to 1.  In training it multiplies what attention gives at every token, and
    `penalty` is what pulls the number of open gates down to √T.  In evaluation only the ⌈√T⌉ tokens with the
    highest gates attend, to all tokens up to them, so that is T^1.5 products instead of T².  Which those are
    depends on the whole sequence, later tokens too: it is a measurement of how few are enough, and no `step`
    can do the same.

    Args:
        d_model: Width of x and of the result.
        heads: A divisor of it.
        groups: Gates a token, each of so many heads that follow each other.
        penalized: Whether training keeps `penalty`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentValueError: a number is below 1, or does not divide.

    Examples:
        >>> import torch
        >>> from based_ops.layers import SparseAttention
        >>> SparseAttention(8, heads=2).eval()(torch.randn(1, 20, 8)).shape
        torch.Size([1, 20, 8])
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        groups: int = 1,
        penalized: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("heads", heads), ("groups", groups)):
            count(name, value, 1)
        if d_model % heads:
            fail(ArgumentValueError, "heads", heads, f"a divisor of d_model, {d_model}")
        if heads % groups:
            fail(ArgumentValueError, "groups", groups, f"a divisor of heads, {heads}")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.heads, self.groups, self.width = d_model, heads, groups, d_model // heads
        self.penalized = penalized
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(d_model, d_model, bias=False, **made) for _ in range(4)
        )
        self.gate = nn.Linear(d_model, groups, **made)
        self.penalty: Tensor | None = None
        """[groups], of the last call in training if `penalized`: what a trainer adds to its loss, the mean
        over sequences of max(0, Σ gates - √T) / T."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,d_model] to the same shape; raises `ShapeError` for others."""
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            fail(ShapeError, "x", sizes(x), f"of shape [B, T, {self.d_model}]")
        q, k, v = (
            project(x).unflatten(-1, (self.heads, self.width)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        gates = self.gate(x).float().sigmoid().transpose(1, 2)  # [B,groups,T]
        most = sqrt(x.shape[1])
        self.penalty = None
        if self.training:
            if self.penalized:
                self.penalty = (gates.sum(-1) - most).relu().mean(0) / max(1, x.shape[1])
            y = scaled_dot_product_attention(q, k, v, is_causal=True) * self._of_heads(gates).to(q.dtype)
        else:
            y = self._few(q, k, v, gates, min(x.shape[1], ceil(most)))
        found: Tensor = self.o_proj(y.transpose(1, 2).flatten(-2))
        return found

    def _of_heads(self, x: Tensor) -> Tensor:
        """[B,groups,n] as [B,heads,n,1]."""
        return x.repeat_interleave(self.heads // self.groups, 1).unsqueeze(-1)

    def _few(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, most: int) -> Tensor:
        """What attention gives at the tokens with the highest gates, and 0 elsewhere."""
        highest = gates.topk(most, dim=-1)
        places = self._of_heads(highest.indices)
        wide = places.expand(-1, -1, -1, self.width)
        seen = torch.arange(k.shape[2], device=k.device) <= places
        few = scaled_dot_product_attention(q.gather(2, wide), k, v, seen)
        return torch.zeros_like(q).scatter(2, wide, few * self._of_heads(highest.values).to(q.dtype))

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of the keys and values that later queries may see, after `most` tokens."""
        return batch * 2 * self.d_model * most * self.q_proj.weight.element_size()
