"""Full causal attention as the baseline has it: rotary positions, PyTorch's attention, a static cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from .. import packed
from ..checks import sizes
from ..errors import ShapeError, StateError, fail
from ..layers.projections import projected
from ..layers.rotary import rotate
from ..tracing import is_traced


class KeyValueCache(NamedTuple):
    """Keys and values of all tokens so far, in memory for `S` of them, and how many each sequence has."""

    k: Tensor
    """[B,H,S,D], turned to their positions."""
    v: Tensor
    length: Tensor
    """int64 [B]."""

    def with_room(self, least: int, most: int = 0) -> KeyValueCache:
        """The same with memory for `least` tokens or more; where it has to grow, for `most` at once."""
        room = self.k.shape[2]
        if least <= room:
            return self
        more = 0, 0, 0, max(least, most, room + room // 2) - room
        return self._replace(k=pad(self.k, more), v=pad(self.v, more))


class FullAttention(nn.Module):
    """Multi-head causal attention over all tokens; time and memory grow with the sequence.

    The first `rotary` of each head turns with the position.  Several queries share a head of k and v where
    there are fewer `kv_heads`.
    """

    grows = True
    """Whether the state grows with the tokens: `init_state` is told how many there may be."""

    def __init__(
        self,
        d_model: int,
        heads: int,
        kv_heads: int | None = None,
        rotary: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model % heads:
            fail(ShapeError, "d_model", d_model, f"a multiple of heads, {heads}")
        self.heads, self.kv_heads, self.width = heads, kv_heads or heads, d_model // heads
        if heads % self.kv_heads:
            fail(ShapeError, "kv_heads", self.kv_heads, f"a divisor of heads, {heads}")
        self.angles = int(rotary * self.width)
        self.turning = -(-self.angles // 2) * 2  # components come in pairs
        options: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(d_model, heads * self.width, **options)
        self.k_proj = nn.Linear(d_model, self.kv_heads * self.width, **options)
        self.v_proj = nn.Linear(d_model, self.kv_heads * self.width, **options)
        self.o_proj = nn.Linear(heads * self.width, d_model, **options)

    def forward(
        self,
        x: Tensor,
        state: KeyValueCache | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValueCache | None]:
        """x [B,T,d_model] to (y of the same shape, the cache after x or None unless `output_state`).

        A cache that is given is extended in place, and must have room.  Packed sequences have no cache.
        """
        if cu_seqlens is not None and (state is not None or output_state):
            fail(StateError, "cu_seqlens", "packed sequences with a cache", "given without one")
        if state is not None:
            y = self._extend(x, state) if attention_mask is None else self._after(x, state, attention_mask)
            return y, state if output_state else None
        at = packed.numbers(cu_seqlens, attention_mask, x, is_traced())
        q, k, v = self._project(x, at.number.unsqueeze(-1))
        if cu_seqlens is None and attention_mask is None:
            y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            there = (at.number >= 0) & (
                at.number < at.counts.index_select(0, at.sequence.flatten()).view_as(at.number)
            )
            alike = at.sequence.unsqueeze(-1) == at.sequence.unsqueeze(-2)
            order = at.number.unsqueeze(-1) >= at.number.unsqueeze(-2)
            seen = (alike & order & there.unsqueeze(-2)).unsqueeze(1)
            v = v * there[:, None, :, None]
            y = scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).nan_to_num()
            y = torch.where(there[:, None, :, None], y, torch.zeros_like(y))
        final = None
        if output_state:
            final = self._first_cache(k, v, at, attention_mask is not None)
        return self._leave(y), final

    def step(self, x: Tensor, state: KeyValueCache, state_indices: Tensor | None = None) -> Tensor:
        """A few more tokens, [B,T,d_model] to the same shape; `state` is extended in place.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none; PyTorch
        copies the caches out of it and back.
        """
        if state_indices is None:
            return self._extend(x, state)
        there = state_indices >= 0
        slots = torch.where(there, state_indices, 0).long()
        taken = KeyValueCache(*(part.index_select(0, slots) for part in state))
        y = self._extend(x, taken)
        for part, new in zip(state, taken, strict=True):
            # Whoever has no slot writes into none: one more row, which is cut off again.
            longer = torch.cat([part, part[:1]])
            longer.index_copy_(0, torch.where(there, slots, part.shape[0]), new)
            part.copy_(longer[:-1])
        return torch.where(there[:, None, None], y, torch.zeros_like(y))

    def init_state(self, batch: int, most: int = 2048) -> KeyValueCache:
        """A cache without tokens and with room for `most`."""
        weight = self.o_proj.weight
        shape = batch, self.kv_heads, most, self.width
        return KeyValueCache(
            weight.new_zeros(shape), weight.new_zeros(shape), weight.new_zeros(batch, dtype=torch.int64)
        )

    def with_room(self, state: KeyValueCache, least: int, most: int = 0) -> KeyValueCache:
        """The cache with memory for `least` tokens or more; where it has to grow, for `most` at once."""
        if not isinstance(state, KeyValueCache):
            fail(StateError, "state", type(state).__name__, "a KeyValueCache, as this layer returns it")
        return state.with_room(least, most)

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of such a cache."""
        row = 2 * self.kv_heads * self.width * self.o_proj.weight.element_size()
        return batch * (most * row + 8)

    def _extend(self, x: Tensor, state: KeyValueCache) -> Tensor:
        self._check(x, state)
        length, room = x.shape[1], state.k.shape[2]
        if x.device.type == "cpu" and not is_traced() and int(state.length.max()) + length > room:
            got = f"room for {room} tokens after {int(state.length.max())}"
            fail(StateError, "state", got, f"a cache with room for {length} more: `init_state(batch, most)`")
        place = state.length.unsqueeze(1) + torch.arange(length, device=x.device)
        q, k, v = self._project(x, place.unsqueeze(-1))
        index = place[:, None, :, None].expand(-1, self.kv_heads, -1, self.width)
        state.k.scatter_(2, index, k)
        state.v.scatter_(2, index, v)
        seen = torch.arange(room, device=x.device) <= place.unsqueeze(-1)
        y = scaled_dot_product_attention(q, state.k, state.v, seen.unsqueeze(1), enable_gqa=True)
        state.length.add_(length)
        return self._leave(y)

    def _check(self, x: Tensor, state: KeyValueCache) -> None:
        if not isinstance(state, KeyValueCache):
            fail(StateError, "state", type(state).__name__, "a KeyValueCache, as this layer returns it")
        batch, heads, _, width = state.k.shape
        if (batch, heads, width) != (x.shape[0], self.kv_heads, self.width):
            wanted = f"of shape [{x.shape[0]}, {self.kv_heads}, S, {self.width}]"
            fail(StateError, "state.k", sizes(state.k), wanted)

    def _after(self, x: Tensor, state: KeyValueCache, mask: Tensor) -> Tensor:
        """The same of tokens of which some are padding: it goes behind the others, and is nobody's there."""
        there = mask.bool()
        order = there.logical_not().long().argsort(dim=1, stable=True)
        y = self._extend(x.gather(1, order.unsqueeze(-1).expand_as(x)), state)
        state.length.sub_(there.logical_not().sum(1))
        y = y.gather(1, order.argsort(dim=1).unsqueeze(-1).expand_as(y))
        return torch.where(there.unsqueeze(-1), y, torch.zeros_like(y))

    def _first_cache(self, k: Tensor, v: Tensor, at: packed.Numbers, padded: bool) -> KeyValueCache:
        """A cache of these tokens alone, those of each sequence from its beginning."""
        if padded:
            length = k.shape[2]
            first = (-at.number[:, :1]).clamp(min=0)
            index = (torch.arange(length, device=k.device) + first).clamp(max=max(length - 1, 0))
            index = index[:, None, :, None].expand_as(k)
            k, v = k.gather(2, index), v.gather(2, index)
        return KeyValueCache(k, v, at.counts)

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [B,H,T,D], the first two turned."""
        q, k, v = (y.unflatten(-1, (-1, self.width)) for y in projected(self, x))
        return (
            self._turned(q, position).transpose(1, 2),
            self._turned(k, position).transpose(1, 2),
            v.transpose(1, 2),
        )

    def _turned(self, x: Tensor, position: Tensor) -> Tensor:
        if self.turning == 0:
            return x
        turning, still = x.split([self.turning, self.width - self.turning], -1)
        return torch.cat([rotate(turning, position, self.angles), still], -1)

    def _leave(self, y: Tensor) -> Tensor:
        found: Tensor = self.o_proj(y.transpose(1, 2).flatten(-2))
        return found
