"""Naive mathematics row by row in float64: every row reads what it sees and nothing else.

So whatever an element is, NaN or an infinity, it reaches what depends on it alone; autograd does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from based_ops.codegen.mixers.hybrid import Hybrid
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


def hybrid(
    spec: Hybrid, q: Tensor, k: Tensor, v: Tensor, scale: float, *more: Tensor, first: Tensor | None = None
) -> Tensor:
    """o, [B,T,H,V]; keys may reach one window further back than queries, from `first` [B,H] on.

    `more` are q and k of the window, if it has its own; factors are 1.
    """
    past, window = k.shape[1] - q.shape[1], spec.window
    near_q, near_k, near_scale = (*more, more[0].shape[-1] ** -0.5) if more else (q, k, scale)
    batches = []
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            rows, oldest = [], 0 if first is None else int(first[b, h])
            for t in range(q.shape[1]):
                edge = t + past + 1 - window
                far, near = slice(oldest, max(edge, oldest)), slice(max(edge, oldest), t + past + 1)
                s = near_scale * near_k[b, near, h] @ near_q[b, t, h]
                one, keys = q[b : b + 1, t : t + 1, h : h + 1], k[b : b + 1, far, h : h + 1]
                a, v_far, v_near = weights(spec, one, keys, scale).flatten(), v[b, far, h], v[b, near, h]
                if spec.combine == "sum":
                    rows.append(s.softmax(0) @ v_near + a @ v_far / (a.sum() + spec.eps))
                    continue
                alone = spec.rescale == "window"
                top = s.max() if alone else s.detach().max().clamp(min=0)
                p, share = (s - top).exp(), 1.0 if alone else (-top).exp()
                rows.append((p @ v_near + share * (a @ v_far)) / (p.sum() + share * (a.sum() + spec.eps)))
            batches.append(torch.stack(rows))
    o = torch.stack(batches).unflatten(0, (q.shape[0], q.shape[2]))
    return o.transpose(1, 2)


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
