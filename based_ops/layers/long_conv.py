"""Convolutions as long as the sequence: at once by the mixer long_conv, and exactly a token at a time.

A filter is a parameter, the output of a network of the position, or of a state space (`modal.py`).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import packed
from ..checks import count, no_gradient, sizes
from ..errors import ShapeError, StateError, fail
from ..mixers.long_conv import require_finite
from ..tracing import is_traced
from .relaxed import LongConvState, RelaxedConvolution, begun

FAST, SLOW, LEFT = 0.3, 1.5, 1e-2
"""Hyena's windows: the fastest and the slowest channel have `LEFT` left after these parts of the length."""
MOST = 2048
"""Tokens for which a state has room, where nobody says."""


def widely(x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast, which x's device may not know."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def variant_of(share: int = 1) -> Any:
    """The variant of the mixer long_conv whose filters have `share` channels each, of any length."""
    from based_ops.codegen.mixers.long_conv import LongConv

    from ..jit import meaning

    heads: dict[str, Any] = {"filters": "head", "width": share} if share > 1 else {}
    return meaning(LongConv(f"long_conv_l{MOST}_h{share}", MOST, **heads))


def finished(y: Tensor, u: Tensor, skip: Tensor | None, gate: Tensor | None) -> Tensor:
    """gate · (y + skip · u)."""
    if skip is not None:
        y = y + skip.to(u.dtype) * u
    return y if gate is None else gate * y


def fits(layer: nn.Module, x: Any, d_model: int, length: int | None = None) -> None:
    """Raises `ShapeError` unless x is of `d_model` channels, and of no more tokens than `length`."""
    if x.dim() != 3 or x.shape[2] != d_model or (length is not None and x.shape[1] > length):
        most = "T" if length is None else f"T up to {length}"
        fail(ShapeError, "x", sizes(x), f"of shape [B, {most}, {d_model}] for {type(layer).__name__}")


class LongConv(nn.Module):
    """y = gate · (h ∗ x + bias · x) for filters h of `length` taps, each shared by `share` channels in a row.

    A subclass makes the filters, with which a variant of the mixer long_conv convolves.  The state is the
    history, see `RelaxedConvolution`: its blocks need spectra of the filters, which are the layer's, so steps
    are its own and no operator's.

    Args:
        channels: Filters; x has `share` times as many channels.
        length: Taps of a filter.
        share: Channels in a row that share one.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentValueError: a number is below 1.

    Examples:
        >>> from based_ops.layers import ExplicitConv, LongConv
        >>> isinstance(ExplicitConv(8, length=32), LongConv)
        True
    """

    grows = True
    """Whether the state grows with the tokens: `init_state` is told how many there may be.  No packed call
    has such states."""

    def __init__(
        self,
        channels: int,
        length: int,
        share: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("length", length), ("share", share)):
            count(name, value, 1)
        self.channels, self.length, self.share = channels, length, share
        self.op: Any = variant_of(share)
        self.bias = nn.Parameter(torch.randn(channels, device=device, dtype=dtype))
        self._made: tuple[Any, RelaxedConvolution] | None = None

    def filters(self, length: int) -> Tensor:
        """h [T, channels], the first so many taps, in float32 at least."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: LongConvState | None = None,
        output_state: bool = False,
        gate: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, LongConvState | None]:
        """x [B,T,channels · share] to (y of its shape, the state after x or None unless `output_state`).

        A sequence has up to `length` tokens, those before x included.  A state that is given is extended in
        place, and must have room for x: begin with `init_state(batch, most)`.  There are no gradients then.
        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart; the host reads how long the longest
        is.  Packed sequences have no state.
        """
        if cu_seqlens is None and attention_mask is None:
            fits(self, x, self.channels * self.share, self.length)
            return self._convolved(x, gate, state, output_state)
        if cu_seqlens is not None and (state is not None or output_state):
            fail(StateError, "cu_seqlens", "packed sequences with a state", "given without one")
        fits(self, x, self.channels * self.share)
        apart = _Apart(x, cu_seqlens, attention_mask)
        fits(self, laid := apart.lay(x), self.channels * self.share, self.length)
        laid_gate = None if gate is None else apart.lay(gate)
        y, final = self._convolved(laid, laid_gate, state, output_state, apart.counts)
        return apart.back(y), final

    def _convolved(
        self,
        x: Tensor,
        gate: Tensor | None,
        state: LongConvState | None,
        output_state: bool,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, LongConvState | None]:
        """gate · (h ∗ x + bias · x); `counts` says how many of each sequence are tokens, if not all."""
        if state is not None:
            self._no_gradient(x)
            y = self.relaxed().extend(x, state, counts)
            return finished(y, x, self._shared(self.bias), gate), state if output_state else None
        with widely(x):
            filters = self._taps(max(1, x.shape[1]))
        final = None
        if output_state:
            wide = torch.promote_types(x.dtype, torch.float32)
            history = x.detach().to(wide).transpose(1, 2).clone(memory_format=torch.contiguous_format)
            final = begun(history, x.shape[1] if counts is None else counts)
        by_filters = (self._by_filters(t) for t in (x, gate))
        y, _ = self.op(next(by_filters), filters, self._skip(), next(by_filters))
        return y.view(x.shape), final

    def step(
        self,
        x: Tensor,
        state: LongConvState,
        gate: Tensor | None = None,
        state_indices: Tensor | None = None,
    ) -> Tensor:
        """A few more tokens, [B,T,channels · share] to the same shape; updates `state` in place.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.  They and
        the number of tokens of each sequence are read by the host.  Not differentiable.
        """
        fits(self, x, self.channels * self.share, self.length)
        self._no_gradient(x)
        y = self.relaxed().step(x, state, None if state_indices is None else state_indices.tolist())
        if state_indices is not None:
            x = x * (state_indices >= 0)[:, None, None].to(x.dtype)
        return finished(y, x, self._shared(self.bias), gate)

    def init_state(self, batch: int, most: int = MOST) -> LongConvState:
        """The state before the first of up to `most` tokens, and up to `length`."""
        return self.relaxed().init_state(batch, most)

    def state_bytes(self, batch: int, most: int = MOST) -> int:
        """Bytes of such a state: of the inputs that the filter reads, and of two numbers a sequence."""
        wide = torch.promote_types(self.bias.dtype, torch.float32)
        return batch * (min(most, self.length) * self.channels * self.share * wide.itemsize + 16)

    def relaxed(self) -> RelaxedConvolution:
        """The convolution with the filters as they are; made anew when a parameter has changed."""
        key = tuple((x.data_ptr(), x._version, x.dtype, x.device) for x in self.parameters())
        if self._made is None or self._made[0] != key:
            with torch.no_grad(), widely(self.bias):
                filters = self._shared(self._taps(self.length))
            self._made = key, RelaxedConvolution(filters, type(self).__name__)
        return self._made[1]

    def extra_repr(self) -> str:
        return f"{self.channels}, length={self.length}, share={self.share}"

    def _no_gradient(self, x: Tensor) -> None:
        if torch.is_grad_enabled():
            no_gradient(
                ("x", "bias"), (x, self.bias), "a state is extended in place and is not differentiable"
            )

    def _taps(self, length: int) -> Tensor:
        """The first taps of the filters, which are finite."""
        filters = self.filters(length)
        if not is_traced():
            require_finite(filters, type(self).__name__)
        return filters

    def _skip(self) -> Tensor:
        """The bias as the variant takes it."""
        return self.bias if self.share == 1 else self.bias.unsqueeze(1).expand(-1, self.share)

    def _by_filters(self, x: Tensor | None) -> Tensor | None:
        """x with a dimension of the channels that share a filter, if any do."""
        return x if x is None or self.share == 1 else x.unflatten(2, (self.channels, self.share))

    def _shared(self, x: Tensor) -> Tensor:
        """One number or filter for every channel, of those [..., channels] that channels share."""
        return x if self.share == 1 else x.repeat_interleave(self.share, -1)


class _Apart:
    """Tokens laid out with a row for each sequence, from its first token on, and 0 behind its last."""

    def __init__(self, x: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None) -> None:
        traced = is_traced()
        at = packed.numbers(cu_seqlens, attention_mask, x, traced)
        self.counts, self.rows = at.counts, at.counts.shape[0]
        if traced and attention_mask is not None:  # where nobody can look how long they are
            self.width = x.shape[1]
        else:
            self.width = int(at.counts.max()) if at.counts.numel() else 0
        own = at.counts.index_select(0, at.sequence.flatten()).view_as(at.number)
        self.there = (at.number >= 0) & (at.number < own)
        nowhere = self.rows * self.width
        self.place = torch.where(self.there, at.sequence * self.width + at.number, nowhere).flatten()

    def lay(self, x: Tensor) -> Tensor:
        """[B,T,D] to [N,W,D]."""
        rows = x.new_zeros(self.rows * self.width + 1, x.shape[2])
        rows = rows.index_copy(0, self.place, x.flatten(0, 1))
        return rows[:-1].view(self.rows, self.width, x.shape[2])

    def back(self, y: Tensor) -> Tensor:
        """[N,W,D] to [B,T,D], with 0 where there is no token."""
        longer = nn.functional.pad(y.flatten(0, 1), (0, 0, 0, 1))
        return longer.index_select(0, self.place).view(*self.there.shape, y.shape[2])


class ExplicitConv(LongConv):
    """A long convolution whose taps are parameters, `weight` [channels, length].

    Args:
        channels: Filters; x has `share` times as many channels.
        length: Taps of a filter.
        share: Channels in a row that share one.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentValueError: a number is below 1.

    Examples:
        >>> import torch
        >>> from based_ops.layers import ExplicitConv
        >>> y, _ = ExplicitConv(8, length=32)(torch.randn(1, 20, 8))
        >>> y.shape
        torch.Size([1, 20, 8])
    """

    def __init__(
        self,
        channels: int,
        length: int,
        share: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, length, share, device=device, dtype=dtype)
        begin = torch.randn(channels, length, device=device, dtype=dtype) / math.sqrt(length)
        self.weight = nn.Parameter(begin)

    def filters(self, length: int) -> Tensor:
        """h [T, channels]."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return self.weight[:, :length].t().to(wide)


class ImplicitConv(LongConv):
    """h_t = window(t) · MLP(t): the filter of Hyena (arXiv 2302.10866, section 3.3).

    The MLP has sines between its layers, `order` wide, and sees the position t / length and its first
    harmonic; windows are exponentials, of another decay in each channel.  Channels are in `groups` of
    equal width, each with an MLP of its own.

    Args:
        channels: Filters; x has `share` times as many channels.
        length: Tokens that the filter is long at most.
        order: Width of the MLP.
        inner: Layers inside of it.
        groups: Of channels, each with an MLP.
        share: Channels in a row that share a filter.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentValueError: a number is below 1.
        ShapeError: `groups` divides `channels` not.

    Examples:
        >>> import torch
        >>> from based_ops.layers import ImplicitConv
        >>> y, _ = ImplicitConv(8, length=32)(torch.randn(1, 20, 8))
        >>> y.shape
        torch.Size([1, 20, 8])
    """

    POSITION = 3

    def __init__(
        self,
        channels: int,
        length: int,
        order: int = 64,
        inner: int = 2,
        groups: int = 1,
        share: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(channels, length, share, **made)
        for name, value in (("order", order), ("groups", groups)):
            count(name, value, 1)
        if channels % groups:
            fail(ShapeError, "channels", channels, f"a multiple of groups, {groups}")
        widths = [self.POSITION, *[order] * (inner + 1)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for of_input, of_output in zip(widths, widths[1:], strict=False):
            bound = of_input**-0.5  # as torch.nn.Linear begins
            self.weights.append(torch.empty(groups, of_input, of_output, **made).uniform_(-bound, bound))
            self.biases.append(torch.empty(groups, 1, of_output, **made).uniform_(-bound, bound))
        self.frequency = nn.Parameter(torch.ones(groups, 1, order, **made))
        last = torch.empty(groups, order, channels // groups, **made).uniform_(-(order**-0.5), order**-0.5)
        self.last = nn.Parameter(last)
        rates = torch.linspace(-math.log(LEFT) / SLOW, -math.log(LEFT) / FAST, channels // groups, **made)
        self.register_buffer("rates", rates)
        self.rates: Tensor

    def filters(self, length: int) -> Tensor:
        """h [T, channels]."""
        wide = torch.promote_types(self.last.dtype, torch.float32)  # half precision has no such positions
        t = torch.arange(length, device=self.last.device, dtype=wide).unsqueeze(1)
        turn = 2 * math.pi * t / self.length
        x = torch.cat([t / max(1, self.length - 1), turn.cos(), -turn.sin()], 1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.sin(self.frequency * (x @ weight.to(wide) + bias))
        window = torch.exp(-self.rates * t / max(1, self.length - 1))
        found: Tensor = x @ self.last.to(wide) * window  # [groups, T, of each]
        return found.transpose(0, 1).flatten(1)

    def products(self, length: int) -> float:
        """Operations of the network for filters of so many taps; a multiplication and an addition are two."""
        return 2.0 * length * (sum(x.numel() for x in self.weights) + self.last.numel())
