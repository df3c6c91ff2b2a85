"""The hybrid of a softmax window and linear attention as its definition says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..heads import multiple, repeated
from ..mixers.hybrid import HybridState
from ..state import first_valid, linear_to_ring, ring_to_linear
from .feature_maps import key_features, query_features
from .linear_attention import causal_sums

if TYPE_CHECKING:
    from based_ops.codegen.mixers.hybrid import Hybrid

SMALLEST = 1e-30
"""What smaller factors count as under one normaliser."""


def hybrid(
    spec: Hybrid,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    initial_state: HybridState | None = None,
    q_window: Tensor | None = None,
    k_window: Tensor | None = None,
    window_factor: Tensor | None = None,
    linear_factor: Tensor | None = None,
) -> tuple[Tensor, HybridState]:
    """o [B,T,H,V] and the final state, from q, k [B,T,H,D] and v [B,T,H,V], all computed in q's dtype.

    `q_window` and `k_window` are those of a window that has its own; factors are [H].  Queries, keys and
    values may each have fewer heads.  A window is put in front of the sequence, empty where no state is
    given.  So query i has token i in front of its window, and the tokens before; entries that are no tokens
    weigh nothing.
    """
    length, window = q.shape[1], spec.window
    states = multiple((k.shape[2], v.shape[2]))
    heads = multiple((q.shape[2], states))
    q, k, v = repeated(q, heads), repeated(k, states), repeated(v, states)
    if initial_state is None:
        initial_state = empty(spec, k, v)
    past = initial_state.position
    real = torch.arange(window + length, device=q.device) >= first_valid(past, window)[:, :, None]
    hidden = ~real.transpose(1, 2).unsqueeze(-1)

    def longer(ring: Tensor, x: Tensor) -> Tensor:
        return torch.cat([ring_to_linear(ring, past).to(x.dtype), x], dim=1).masked_fill(hidden, 0)

    rings = [longer(initial_state.k, k), longer(initial_state.v, v)]
    k, v = (repeated(x, heads) for x in rings)
    near_q, near_k, near_scale = q, k, scale
    if q_window is not None and k_window is not None and initial_state.k_window is not None:
        rings.append(longer(initial_state.k_window, repeated(k_window, states)))
        near_q, near_k, near_scale = (
            repeated(q_window, heads),
            repeated(rings[2], heads),
            q_window.shape[-1] ** -0.5,
        )
    every_hidden = repeated(hidden, heads)
    least = SMALLEST if spec.combine == "normalizer" else None
    a, c = (_factor(x, q, least).unsqueeze(-1) for x in (window_factor, linear_factor))

    # One place in the window after the other, so that no query meets a key that it does not see, even by 0.
    places = [slice(1 + i, 1 + i + length) for i in range(window)]
    scores = torch.stack(
        [
            (near_scale * (near_q * near_k[:, at]).sum(-1)).masked_fill(
                every_hidden[:, at, :, 0], float("-inf")
            )
            for at in places
        ]
    )
    top = scores.amax(0)  # it cancels, unless it rescales the window alone
    if spec.rescale == "shared":
        top = top.detach()
        top = top.clamp(min=0) if spec.combine == "normalizer" else top
    near = (scores - top).exp()
    o = sum(p.unsqueeze(-1) * v[:, at] for p, at in zip(near, places, strict=True))
    n = near.sum(0)

    # A column of ones, 0 where there is no token, sums the weights.  A map need not have a value at 0.
    old_k = rings[0].masked_fill(hidden, 1)[:, :length]
    old_v = torch.cat([rings[1], (~hidden).to(v.dtype)], dim=-1)[:, :length]
    pairs = repeated(old_k, heads), repeated(old_v, heads)
    older = causal_sums(spec, q, *pairs, torch.zeros_like(q[..., :1]), scale)[0]
    phi_q = query_features(spec, q, scale)
    state, normalizer = initial_state.state.to(q.dtype), initial_state.normalizer.to(q.dtype)
    older_o = older[..., :-1] + torch.einsum("bihf,bhfv->bihv", phi_q, repeated(state, heads, 1))
    older_n = older[..., -1] + torch.einsum("bihf,bhf->bih", phi_q, repeated(normalizer, heads, 1))
    n, older_n = n.unsqueeze(-1), older_n.unsqueeze(-1)
    if spec.combine == "sum":
        o = a * (o / n) + c * (older_o / (older_n + spec.eps))
    else:
        share = 1.0 if spec.rescale == "window" else (-top).exp().unsqueeze(-1)
        o = (a * o + share * (c * older_o)) / (a * n + share * (c * older_n + spec.eps))

    phi_k = key_features(spec, old_k) * old_v[..., -1:]
    state = state + torch.einsum("bjhf,bjhv->bhfv", phi_k, old_v[..., :-1])
    normalizer = normalizer + phi_k.sum(dim=1)
    position = past + length
    rings = [linear_to_ring(x[:, length:], position) for x in rings]
    return o, HybridState(*rings[:2], position, *_kept(spec, q, state, normalizer), *rings[2:])


def _factor(given: Tensor | None, q: Tensor, least: float | None) -> Tensor:
    """A factor of each head [H]."""
    if given is None:
        return q.new_ones(q.shape[2])
    return given.to(q.dtype) if least is None else given.to(q.dtype).clamp(min=least)


def empty(spec: Hybrid, k: Tensor, v: Tensor) -> HybridState:
    """The state before the first token, for calls with k and v of as many heads."""
    batch, _, heads, width = k.shape
    sizes = (batch, heads, spec.window)
    sums = k.new_zeros(batch, heads, spec.features, v.shape[-1]), k.new_zeros(batch, heads, spec.features)
    position = torch.zeros(batch, heads, dtype=torch.int32, device=k.device)
    rings = k.new_zeros(*sizes, width), v.new_zeros(*sizes, v.shape[-1])
    own = None if spec.window_qk is None else k.new_zeros(*sizes, spec.window_qk)
    return HybridState(*rings, position, *_kept(spec, k, *sums), own)


def _kept(spec: Hybrid, q: Tensor, state: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
    """Sums in the dtypes in which a state has them."""
    if q.dtype == torch.float64:
        return state, normalizer
    return state.to(getattr(torch, spec.state_dtype)), normalizer.float()
