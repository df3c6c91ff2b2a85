"""Naive mathematics row by row in float64: every row reads what it sees and nothing else.

So whatever an element is, NaN or an infinity, it reaches what depends on it alone; autograd does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.reference.linear_attention import weights


def linear_attention(
    spec: LinearAttention, q: Tensor, k: Tensor, v: Tensor, scale: float, *decays: Tensor
) -> Tensor:
    """o, [B,T,H,V]."""
    rows = []
    g = [x.double().cpu().expand(q.shape[:3]).mT for x in decays]
    for t in range(q.shape[1]):
        a = weights(spec, q[:, t : t + 1], k[:, : t + 1], scale)
        for x in g:
            later = torch.cat([x[..., 1 : t + 1], torch.zeros_like(x[..., :1])], -1)
            a = a * later.flip(-1).cumsum(-1).flip(-1).exp().unsqueeze(-2)
        o = torch.einsum("bhij,bjhv->bihv", a, v[:, : t + 1])
        rows.append(o / (a.sum(-1).mT.unsqueeze(-1) + spec.eps) if spec.normalize else o)
    return torch.cat(rows, 1)


def sliding_window(
    window: int, q: Tensor, k: Tensor, v: Tensor, scale: float, first: Tensor | None = None
) -> Tensor:
    """o, [B,T,H,V]; keys may reach further back than queries, from `first` [B,H] on."""
    past = k.shape[1] - q.shape[1]
    rows = []
    for t in range(q.shape[1]):
        row = []
        for b in range(q.shape[0]):
            for h in range(q.shape[2]):
                oldest = max(t + past + 1 - window, 0 if first is None else int(first[b, h]))
                near = slice(oldest, t + past + 1)
                p = (scale * k[b, near, h] @ q[b, t, h]).softmax(0)
                row.append(p @ v[b, near, h])
        rows.append(torch.stack(row).view(q.shape[0], q.shape[2], -1))
    return torch.stack(rows, 1)
