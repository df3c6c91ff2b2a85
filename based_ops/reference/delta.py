"""The delta rule as its definition says it: token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..heads import multiple, repeated
from ..state import LinearAttentionState
from .feature_maps import key_features, query_features, weight
from .linear_attention import LEAST

if TYPE_CHECKING:
    from based_ops.codegen.mixers.linear_attention import LinearAttention


def of_unit_keys(spec: LinearAttention, scale: float) -> float:
    """κ(k, k) of a key of length 1."""
    one = torch.full((), scale, dtype=torch.float64)
    return scale if spec.feature_map.kind == "elementwise" else float(weight(spec.feature_map, one))


def delta_rule(
    spec: LinearAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    initial_state: LinearAttentionState | None = None,
    *,
    beta: Tensor,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, LinearAttentionState]:
    """o [B,T,H,V] and the final state, from q, k [B,T,H,D] and v [B,T,H,V], all computed in q's dtype.

    Each may have fewer heads.  `beta` is [B,T,H], and `log_decay` [H] or [B,T,H], as the spec says, with the
    heads of the state.  S_t = α_t S_{t-1} + β_t/c φ(k_t) (v_t - α_t S_{t-1}ᵀ φ(k_t))ᵀ and o_t = S_tᵀ φ(q_t)
    (Yang et al., arXiv 2412.06464, equation 10), with c = κ(k, k) of keys of length 1.
    """
    states = multiple((k.shape[2], v.shape[2]))
    heads = multiple((q.shape[2], states))
    batch, length = q.shape[:2]
    given = q.new_zeros(1) if log_decay is None else log_decay.to(q.dtype).clamp(min=LEAST)
    remaining = given.exp().expand(batch, length, states)
    rates = beta.to(q.dtype) / of_unit_keys(spec, scale)
    k, values = repeated(k, states), repeated(v, states)
    entering, asking = key_features(spec, k), query_features(spec, k, scale)
    queries = repeated(query_features(spec, q, scale), heads)
    state = q.new_zeros(batch, states, entering.shape[-1], v.shape[-1])
    if initial_state is not None:
        state = initial_state.state.to(q.dtype)
    outputs = []
    for t in range(length):
        state = state * remaining[:, t, :, None, None]
        error = values[:, t] - torch.einsum("bhfv,bhf->bhv", state, asking[:, t])
        state = state + torch.einsum("bhf,bhv->bhfv", entering[:, t], rates[:, t, :, None] * error)
        outputs.append(torch.einsum("bhfv,bhf->bhv", repeated(state, heads, 1), queries[:, t]))
    o = torch.stack(outputs, 1) if outputs else q.new_zeros(batch, 0, heads, v.shape[-1])
    kept = torch.float64 if q.dtype == torch.float64 else torch.float32
    return o, LinearAttentionState(state.to(kept), None)
