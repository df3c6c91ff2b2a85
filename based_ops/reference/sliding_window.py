"""Sliding window attention as its definition says it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import SlidingWindowState, first_valid, linear_to_ring, ring_to_linear


def sliding_window(
    window: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    initial_state: SlidingWindowState | None = None,
) -> tuple[Tensor, SlidingWindowState]:
    """o [B,T,H,V] and the final state, from q, k [B,T,H,D] and v [B,T,H,V], all computed in q's dtype.

    An empty window is put in front of the sequence where no state is given; entries that are no tokens are
    masked.
    """
    batch, length, heads, _ = q.shape
    if initial_state is None:
        initial_state = SlidingWindowState(
            k.new_zeros(batch, heads, window, k.shape[-1]),
            v.new_zeros(batch, heads, window, v.shape[-1]),
            torch.zeros(batch, heads, dtype=torch.int32, device=q.device),
        )
    past = initial_state.position
    k = torch.cat([ring_to_linear(initial_state.k, past), k], dim=1)
    v = torch.cat([ring_to_linear(initial_state.v, past), v], dim=1)
    own = torch.arange(length, device=q.device)[:, None] + window
    key = torch.arange(window + length, device=q.device)[None, :]
    near = (key <= own) & (key > own - window)
    real = key >= first_valid(past, window)[:, :, None, None]
    scores = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    probabilities = scores.masked_fill(~(near & real), float("-inf")).softmax(dim=-1)
    o = torch.einsum("bhij,bjhv->bihv", probabilities, v)
    position = past + length
    rings = [linear_to_ring(x[:, length:], position) for x in (k, v)]
    return o, SlidingWindowState(rings[0], rings[1], position)
