"""Sliding window attention as its definition says it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..heads import multiple, repeated
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
    masked.  Each may have fewer heads; a window has those of keys and values.
    """
    batch, length, heads = q.shape[0], q.shape[1], multiple((k.shape[2], v.shape[2]))
    k, v = repeated(k, heads), repeated(v, heads)
    if initial_state is None:
        initial_state = SlidingWindowState(
            k.new_zeros(batch, heads, window, k.shape[-1]),
            v.new_zeros(batch, heads, window, v.shape[-1]),
            torch.zeros(batch, heads, dtype=torch.int32, device=q.device),
        )
    past = initial_state.position
    k = torch.cat([ring_to_linear(initial_state.k, past), k], dim=1)
    v = torch.cat([ring_to_linear(initial_state.v, past), v], dim=1)
    real = torch.arange(window + length, device=q.device) >= first_valid(past, window)[:, :, None]
    hidden = ~real.transpose(1, 2).unsqueeze(-1)
    rings = k[:, length:], v[:, length:]
    k_seen, v_seen = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
    every = multiple((q.shape[2], heads))
    q, k_seen, v_seen, hidden = (repeated(x, every) for x in (q, k_seen, v_seen, hidden))
    # One place in the window after the other, so that no query meets a key that it does not see, even by 0.
    places = [slice(1 + i, 1 + i + length) for i in range(window)]
    scores = torch.stack(
        [
            (scale * (q * k_seen[:, place]).sum(-1)).masked_fill(hidden[:, place, :, 0], float("-inf"))
            for place in places
        ]
    )
    o = sum(p.unsqueeze(-1) * v_seen[:, at] for p, at in zip(scores.softmax(0), places, strict=True))
    position = past + length
    return o, SlidingWindowState(*(linear_to_ring(x, position) for x in rings), position)
