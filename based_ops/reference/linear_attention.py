"""Linear attention as its definition says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..state import LinearAttentionState
from .feature_maps import elementwise, key_features, query_features

if TYPE_CHECKING:
    from based_ops.codegen.mixers.linear_attention import LinearAttention


def weights(spec: LinearAttention, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """A_ij for every pair of tokens, [B,H,T,T], without causality."""
    if spec.feature_map.kind == "elementwise":
        q, k = elementwise(spec.feature_map.expression, q), elementwise(spec.feature_map.expression, k)
        return scale * torch.einsum("bihd,bjhd->bhij", q, k)
    s = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    return 1 + s if spec.feature_map.order == 1 else 1 + s + s * s / 2


def linear_attention(
    spec: LinearAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    initial_state: LinearAttentionState | None = None,
) -> tuple[Tensor, LinearAttentionState]:
    """o [B,T,H,V] and the final state, from q, k [B,T,H,D] and v [B,T,H,V], all computed in q's dtype."""
    a = weights(spec, q, k, scale).tril()
    o = torch.einsum("bhij,bjhv->bihv", a, v)
    n = a.sum(dim=-1).transpose(1, 2)
    phi_k = key_features(spec, k)
    state = torch.einsum("bjhf,bjhv->bhfv", phi_k, v)
    normalizer = phi_k.sum(dim=1)
    if initial_state is not None:
        phi_q = query_features(spec, q, scale)
        earlier = initial_state.state.to(q.dtype)
        o = o + torch.einsum("bihf,bhfv->bihv", phi_q, earlier)
        state = state + earlier
        if initial_state.normalizer is not None:
            earlier_n = initial_state.normalizer.to(q.dtype)
            n = n + torch.einsum("bihf,bhf->bih", phi_q, earlier_n)
            normalizer = normalizer + earlier_n
    if spec.normalize:
        o = o / (n + spec.eps).unsqueeze(-1)
    sums = torch.float64 if q.dtype == torch.float64 else torch.float32
    kept = torch.float64 if q.dtype == torch.float64 else getattr(torch, spec.state_dtype)
    return o, LinearAttentionState(state.to(kept), normalizer.to(sums) if spec.normalize else None)
