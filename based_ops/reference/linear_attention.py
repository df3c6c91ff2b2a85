"""Linear attention as its definition says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..heads import multiple, repeated
from ..state import LinearAttentionState
from .feature_maps import elementwise, key_features, query_features, weight

if TYPE_CHECKING:
    from based_ops.codegen.mixers.linear_attention import LinearAttention

    from .feature_maps import Mapped


def weights(spec: Mapped, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """A_ij for every pair of a query and a key, [B,H,Tq,Tk], without causality."""
    if spec.feature_map.kind == "elementwise":
        q, k = elementwise(spec.feature_map.expression, q), elementwise(spec.feature_map.expression, k)
        return scale * torch.einsum("bihd,bjhd->bhij", q, k)
    return weight(spec.feature_map, scale * torch.einsum("bihd,bjhd->bhij", q, k))


LEAST = -1000.0
"""A decay that leaves nothing; differences of -inf would be NaN."""


def causal_sums(
    spec: Mapped, q: Tensor, k: Tensor, v: Tensor, decayed: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The sums over j ≤ i of A_ij v_j, [B,T,H,V], and of A_ij, [B,T,H], with exp(G_i - G_j) in A_ij.

    `decayed` is G, [B,T,H,1].

    Pairs that do not meet are left out, where zeros in their place would make NaN of what is not finite.  So
    every token has itself; and of spans of 2, 4, 8, ... tokens the later half has all of the earlier half.
    """
    length, batch = q.shape[1], q.shape[0]
    whole = 1 << max(length - 1, 0).bit_length()
    past = whole - length
    inputs = [*(_filled(x, past) for x in (q, k)), *(pad(x, (0, 0, 0, 0, 0, past)) for x in (v, decayed))]
    own = [x.flatten(0, 1).unsqueeze(1) for x in inputs]
    o, n = (x.unflatten(0, (batch, whole)).squeeze(2) for x in _sums(spec, own, own, scale))
    size = 1
    while size < whole:
        earlier, later = ([_half(x, i, size) for x in inputs] for i in (0, 1))
        more = _sums(spec, later, earlier, scale)
        o, n = (
            torch.stack([_half(x, 0, size), _half(x, 1, size) + y], 1).unflatten(0, (batch, -1)).flatten(1, 3)
            for x, y in zip((o, n), more, strict=True)
        )
        size *= 2
    return o[:, :length], n[:, :length]


def _filled(x: Tensor, more: int) -> Tensor:
    """[B,T,H,D] with more tokens, of which nothing is used.

    They are like the first, where a map has values and slopes: 0 times what is infinite at 0 would be NaN.
    """
    if x.shape[1] == 0:
        return pad(x, (0, 0, 0, 0, 0, more))
    first = x.detach()[:, :1].nan_to_num(1.0, 1.0, 1.0)
    return torch.cat([x, first.expand(-1, more, -1, -1)], 1)


def _half(x: Tensor, number: int, size: int) -> Tensor:
    """[B,T,...]'s halves, of `size` tokens, with that number in spans of two: [B·T/(2 size),size,...]."""
    return x.unflatten(1, (-1, 2, size))[:, :, number].flatten(0, 1)


def _sums(spec: Mapped, later: list[Tensor], earlier: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    """The same over all pairs of later queries and earlier keys."""
    (q, _, _, now), (_, k, v, then) = later, earlier
    a = weights(spec, q, k, scale)
    if spec.decay != "none":
        a = a * (now.permute(0, 2, 1, 3) - then.permute(0, 2, 3, 1)).exp()
    return torch.einsum("bhij,bjhv->bihv", a, v), a.sum(dim=-1).transpose(1, 2)


def linear_attention(
    spec: LinearAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    initial_state: LinearAttentionState | None = None,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, LinearAttentionState]:
    """o [B,T,H,V] and the final state, from q, k [B,T,H,D] and v [B,T,H,V], all computed in q's dtype.

    Each may have fewer heads.  `log_decay` is [H] or [B,T,H], as the spec says, with the heads of the state.
    """
    states = multiple((k.shape[2], v.shape[2]))
    heads = multiple((q.shape[2], states))
    given = q.new_zeros(1) if log_decay is None else log_decay.to(q.dtype).clamp(min=LEAST)
    decayed = given.expand(*q.shape[:2], states).cumsum(1)
    last = decayed[:, -1:] if q.shape[1] else decayed.new_zeros(q.shape[0], 1, states)
    q, every_decay = repeated(q, heads), repeated(decayed, heads)
    keys, values = repeated(k, heads), repeated(v, heads)
    o, n = causal_sums(spec, q, keys, values, every_decay.unsqueeze(-1), scale)
    k, v = repeated(k, states), repeated(v, states)
    phi_k = key_features(spec, k) * (last - decayed).exp().unsqueeze(-1)
    state = torch.einsum("bjhf,bjhv->bhfv", phi_k, v)
    normalizer = phi_k.sum(dim=1)
    if initial_state is not None:
        phi_q = query_features(spec, q, scale) * every_decay.exp().unsqueeze(-1)
        lasting = last[:, 0, :, None].exp()
        earlier = initial_state.state.to(q.dtype)
        o = o + torch.einsum("bihf,bhfv->bihv", phi_q, repeated(earlier, heads, 1))
        state = state + earlier * lasting.unsqueeze(-1)
        if initial_state.normalizer is not None:
            earlier_n = initial_state.normalizer.to(q.dtype)
            n = n + torch.einsum("bihf,bhf->bih", phi_q, repeated(earlier_n, heads, 1))
            normalizer = normalizer + earlier_n * lasting
    if spec.normalize:
        o = o / (n + spec.eps).unsqueeze(-1)
    sums = torch.float64 if q.dtype == torch.float64 else torch.float32
    kept = torch.float64 if q.dtype == torch.float64 else getattr(torch, spec.state_dtype)
    return o, LinearAttentionState(state.to(kept), normalizer.to(sums) if spec.normalize else None)


def entered(
    spec: LinearAttention, state: LinearAttentionState, k: Tensor, v: Tensor, there: Tensor
) -> LinearAttentionState:
    """The state after keys [B,T,H,D] and values [B,T,H,V], of which those count that are `there` [B,T,H]."""
    wide = torch.promote_types(state.state.dtype, k.dtype)
    features = torch.where(there.unsqueeze(-1), key_features(spec, k.to(wide)), 0.0)
    values = torch.where(there.unsqueeze(-1), v.to(wide), 0.0)
    sums = state.state + torch.einsum("bjhf,bjhv->bhfv", features, values)
    normalizer = None if state.normalizer is None else state.normalizer + features.sum(dim=1)
    return LinearAttentionState(sums, normalizer)
