"""Sliding window attention as PyTorch sees it: its state is a ring of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention import AttentionVariant
from ..heads import multiple, repeated
from ..packed import Laid, rings, spread
from ..state import SlidingWindowState, first_valid, linear_to_ring, ring_of_start, ring_to_linear
from ..tracing import constant
from ..variant import Tensors


class SlidingWindowVariant(AttentionVariant[SlidingWindowState]):
    """Causal softmax attention in which a query sees the last W keys, its own included."""

    _state_type = SlidingWindowState
    _other_dtype = (
        "; a window has the dtype of the call that made it, which under autocast is autocast's: go on as you "
        "began, or convert it, `state.to(dtype)`"
    )
    window: int = constant("window", "Keys that a query sees, its own included.")

    def _setup(self) -> None:
        super()._setup()
        spec: Any = self.spec
        self._know(window=spec.window)

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """With every token that a query sees; a state is taken for full."""
        missing = 0 if begun else min(self.window, length)  # of the first queries, which see fewer
        pairs = self.window * length
        if not begun:
            pairs = missing * length - missing * (missing - 1) // 2
        return 2.0 * (self.qk + self.v) * pairs

    def _enter(self, tensors: Tensors, state: SlidingWindowState) -> tuple[Tensors, Tensors]:
        """Keys and values of the past go in front of those of the call."""
        q, k, v = tensors
        k, v = _of_state(k, v)
        past = state.position.contiguous()
        k = torch.cat([ring_to_linear(state.k, past), k], dim=1)
        v = torch.cat([ring_to_linear(state.v, past), v], dim=1)
        return (q, k, v), (first_valid(past, self.window),)

    def _leave(
        self, tensors: Tensors, final: Sequence[Tensor], initial_state: SlidingWindowState | None, length: int
    ) -> SlidingWindowState:
        _, k, v = tensors
        k, v = _of_state(k, v)
        if initial_state is None:
            batch, _, heads, _ = k.shape
            position = k.new_full((batch, heads), length, dtype=torch.int32)  # of k: torch.vmap maps it too
            return SlidingWindowState(ring_of_start(k, self.window), ring_of_start(v, self.window), position)
        position = initial_state.position.contiguous() + length
        last_k, last_v = k.narrow(1, length, self.window), v.narrow(1, length, self.window)
        return SlidingWindowState(
            linear_to_ring(last_k, position), linear_to_ring(last_v, position), position
        )

    def _lay(self, tensors: Tensors, state: SlidingWindowState | None, sequences: Tensor) -> Laid:
        """The keys and values of each ring go in front of its sequence, with queries that nobody reads."""
        q, k, v = tensors
        assert q is not None and k is not None and v is not None
        if state is None:
            return Laid(tensors, (None,), sequences, (sequences,))
        k, v = _of_state(k, v)
        past, found = state.position.contiguous(), spread(sequences, k.shape[1], self.window)
        laid = (
            found.laid(q, q.new_zeros(sequences.shape[0], self.window, *q.shape[2:])),
            found.laid(k, ring_to_linear(state.k, past)),
            found.laid(v, ring_to_linear(state.v, past)),
        )
        sequences = found.sequences.to(torch.int32)
        return Laid(laid, (first_valid(past, self.window),), sequences, (sequences,), found.tokens)

    def _take(
        self, laid: Laid, final: Sequence[Tensor], initial_state: SlidingWindowState | None
    ) -> SlidingWindowState:
        _, k, v = laid.tensors
        k, v = _of_state(k, v)
        past = None if initial_state is None else initial_state.position
        found, position = rings((k, v), laid.sequences, past, self.window)
        return SlidingWindowState(*found, position)

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, SlidingWindowState]:
        from ..reference import sliding_window

        inputs = (*tensors, *numbers, initial_state)
        return sliding_window(self.window, *inputs)


def _of_state(k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values with the heads of a state, which has pairs of both."""
    assert k is not None and v is not None
    heads = multiple((k.shape[2], v.shape[2]))
    return repeated(k, heads), repeated(v, heads)


VARIANT = SlidingWindowVariant
