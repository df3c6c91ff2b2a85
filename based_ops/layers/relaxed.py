"""Long convolutions a token at a time, exactly, in O(L log² L) for a sequence (Flash Inference, 2410.12982).

An output needs the whole history, but most of what it needs is known long before.  After token i the newest U
inputs, U the largest power of two that divides i, are convolved at once with the filter's first 2U taps: what
they add to the next U outputs.  Each pair of an input and a later output is met exactly once, and the blocks
of U cost O(U log U) every 2U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import count as counted
from ..checks import sizes
from ..errors import ShapeError, StateError, fail


class LongConvState(NamedTuple):
    """What a long convolution keeps of sequences: room for R tokens, of which some have come."""

    history: Tensor
    """[B,D,R], in float32 at least: the inputs so far, and behind them what these add to outputs to come."""
    length: Tensor
    """How many inputs there are, int64 [B]."""
    start: Tensor
    """Behind which input blocks begin, int64 [B]: those before are in all outputs to come; -1, in none."""

    def with_room(self, least: int, most: int = 0) -> LongConvState:
        """The same with memory for `least` tokens or more; where it has to grow, for `most` at once."""
        room = self.history.shape[2]
        if least <= room:
            return self
        longer = torch.nn.functional.pad(self.history, (0, max(least, most, room + room // 2) - room))
        # Blocks ended where the room did: all is to be delivered anew.
        return self._replace(history=longer, start=torch.full_like(self.start, -1))


def convolved(u: Tensor, filters: Tensor) -> Tensor:
    """Σ_(s ≤ t) h_s u_(t-s) for u [..., T] and h [..., T] or shorter, by one transform of 2T."""
    length = u.shape[-1]
    if u.numel() == 0:  # of which there are no transforms
        return u * filters[..., :length]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(filters, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length]


class RelaxedConvolution:
    """y_t = Σ_(s ≤ t) h_s u_(t-s) as the tokens come, for filters [T,D] and up to T tokens.

    States are updated in place; nothing here is differentiable.  `name` is the layer's, for errors.
    """

    def __init__(self, filters: Tensor, name: str = "RelaxedConvolution") -> None:
        if filters.dim() != 2 or filters.shape[0] == 0:
            fail(ShapeError, "filters", sizes(filters), "of shape [T, D], T at least 1")
        wide = torch.promote_types(filters.dtype, torch.float32)
        self.filters = filters.detach().to(wide).t().contiguous()
        self.length, self.channels, self.name = filters.shape[0], filters.shape[1], name
        self._spectra: dict[int, Tensor] = {}

    def init_state(self, batch: int, most: int | None = None) -> LongConvState:
        """The state before the first of up to `most` tokens; None: as many as the filters are long."""
        counted("batch", batch, 0)
        room = self.length if most is None else min(most, self.length)
        state = begun(self.filters.new_zeros(batch, self.channels, room))
        return state._replace(start=torch.zeros_like(state.start))

    def extend(self, u: Tensor, state: LongConvState, counts: Tensor | None = None) -> Tensor:
        """y [B,T,D] of T more tokens u [B,T,D] at once, by one transform of all the room.

        With `counts`, int64 [B], only so many of each sequence are tokens; what is behind them is 0.
        """
        self._check(u, state, range(u.shape[0]))
        index = state.length.unsqueeze(1) + torch.arange(u.shape[1], device=u.device)
        index = index.unsqueeze(1).expand(-1, self.channels, -1)
        state.history.scatter_(2, index, u.transpose(1, 2).to(state.history.dtype))
        state.length.add_(u.shape[1] if counts is None else counts)
        state.start.fill_(-1)
        y = self._deliver(state, slice(None))
        return y.gather(2, index).transpose(1, 2).to(u.dtype)

    def step(self, u: Tensor, state: LongConvState, slots: Sequence[int] | None = None) -> Tensor:
        """y [B,T,D] of T more tokens u [B,T,D], one after the other.

        With `slots`, row b is the sequence in slot `slots[b]` of a state of more; -1 is none, whose y is 0.
        Rows that have as many tokens go together.
        """
        everyone = list(range(u.shape[0])) if slots is None else list(slots)
        self._check(u, state, everyone, slots is not None)
        places = list(zip(state.length.tolist(), state.start.tolist(), strict=True))
        together: dict[tuple[int, int], list[int]] = {}
        for row, slot in enumerate(everyone):
            if slot >= 0:
                together.setdefault(places[slot], []).append(row)
        y = torch.zeros_like(u)
        for (at, start), rows in together.items():
            own: Any = torch.tensor([everyone[row] for row in rows], device=u.device)
            here: Any = torch.tensor(rows, device=u.device)
            if slots is None and len(rows) == u.shape[0]:
                own = here = slice(None)  # which is no copy
            if start < 0:
                self._deliver(state, own)
                start = at
            for i, token in enumerate(u[here].to(state.history.dtype).unbind(1)):
                y[here, i] = self._token(token, state.history, own, at + i, start).to(u.dtype)
            state.length[own] = at + u.shape[1]
        return y

    def _token(self, u: Tensor, history: Tensor, own: Any, at: int, start: int) -> Tensor:
        y: Tensor = history[own, :, at] + self.filters[:, 0] * u
        history[own, :, at] = u
        number = at + 1 - start
        block = number & -number
        stop = min(at + 1 + block, history.shape[2])
        if stop > at + 1:
            recent = history[own, :, at + 1 - block : at + 1]
            spectrum = torch.fft.rfft(recent, n=2 * block) * self._spectrum(block)
            # What wraps around falls upon the first half, which nobody reads.
            coming = torch.fft.irfft(spectrum, n=2 * block)[..., block : block + stop - at - 1]
            history[own, :, at + 1 : stop] += coming
        return y

    def _spectrum(self, block: int) -> Tensor:
        """Of the first taps, for blocks of so many inputs."""
        if block not in self._spectra:
            self._spectra[block] = torch.fft.rfft(self.filters[:, : 2 * block], n=2 * block)
        return self._spectra[block]

    def _deliver(self, state: LongConvState, own: Any) -> Tensor:
        """Adds all inputs to all outputs to come; returns the outputs [B,D,R]."""
        history, count = state.history[own], state.length[own]
        known = torch.arange(history.shape[2], device=history.device) < count[:, None, None]
        inputs = torch.where(known, history, torch.zeros_like(history))
        y = convolved(inputs, self.filters[:, : history.shape[2]])
        state.history[own] = torch.where(known, inputs, y)
        state.start[own] = count
        return y

    def _check(self, u: Tensor, state: LongConvState, slots: Sequence[int], pool: bool = False) -> None:
        if not isinstance(state, LongConvState):
            fail(StateError, "state", type(state).__name__, f"a LongConvState, as {self.name} returns it")
        if u.dim() != 3 or u.shape[2] != self.channels:
            fail(ShapeError, "u", sizes(u), f"of shape [B, T, {self.channels}] for {self.name}")
        batch, channels, room = state.history.shape
        if channels != self.channels or not (pool or batch == u.shape[0]):
            wanted = f"of shape [{u.shape[0]}, {self.channels}, R] for {self.name}"
            fail(StateError, "state.history", sizes(state.history), wanted)
        counts = state.length.tolist()
        come = max((counts[slot] for slot in slots if slot >= 0), default=0)
        if come + u.shape[1] > room:
            got = f"room for {room} tokens, {come} of them taken and {u.shape[1]} more to come"
            what = f"of `init_state(batch, most)`, up to the {self.length} taps of the filter of {self.name}"
            fail(StateError, "state", got, what)


def begun(history: Tensor, length: Tensor | int = 0) -> LongConvState:
    """The state after so many inputs, which stand in history [B,D,R]."""
    number = torch.zeros(history.shape[0], dtype=torch.int64, device=history.device)
    return LongConvState(history, number + length, number - 1)
