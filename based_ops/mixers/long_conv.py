"""The long convolution as PyTorch sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from based_ops.codegen.dtypes import IO

from .. import checks, packed
from ..arguments import refuse
from ..checks import sizes as sizes_of
from ..dispatch import Backend
from ..errors import ArgumentValueError, ShapeError, fail
from ..state import storable
from ..state_base import State
from ..tracing import constant, is_traced
from ..variant import Tensors, Variant

if TYPE_CHECKING:
    from based_ops.codegen.mixers.long_conv import LongConv as Spec


class _History(NamedTuple):
    history: Tensor
    oldest: Tensor


@storable(layout=1, roles=(IO, "int32"))
class LongConvHistory(State, _History):
    """The last inputs, `history` [B,R,D] or [B,R,H,P] in their dtype, for filters of up to R taps; 0 before
    the first token.

    It is a ring: token t lies in row t mod R, and `oldest`, int32 [B,D] or [B,H,P], is the row of the oldest,
    which the next input takes.  It is the same for all channels of a sequence.

    Examples:
        >>> import based_ops
        >>> based_ops.get("long_conv_l2048").init_state(1, 8).history.shape
        torch.Size([1, 2048, 8])
    """


class LongConvVariant(Variant[LongConvHistory]):
    """y_t = gate_t · (Σ_{l ≤ t} h_l u_{t-l} + skip · u_t), each channel by itself.

    Where each channel has a filter, u and gate are [B, T, D], filters [L, D] and skip is [D].  Where a head's
    channels share one, u and gate are [B, T, H, P], filters [L, H] and skip is [H, P].  L is at least 1, and
    with a state at most `length`, the inputs that a state keeps.  B, T, D and H may be 0.
    """

    spec: Spec
    _state_type = LongConvHistory
    _other_dtype = (
        "; the state has the dtype of the call that made it: go on as you began, or convert it, "
        "`state.to(dtype)`"
    )
    backward_products = 3.0
    """The sums again for the gate, and gradients of inputs and of filters."""
    length: int = constant("length", "Inputs that a state keeps: the most taps of calls that have one.")

    def _setup(self) -> None:
        self._know(length=self.spec.length)

    def __call__(
        self,
        u: Tensor,
        filters: Tensor,
        skip: Tensor | None = None,
        gate: Tensor | None = None,
        initial_state: LongConvHistory | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state_indices: Tensor | None = None,
        backend: Backend | None = None,
        batch_invariant: bool = False,
        **foreign: NoReturn,
    ) -> tuple[Tensor, LongConvHistory | None]:
        """The convolution of a sequence: `(y, final_state)`, with y of u's shape and dtype, contiguous.

        The first of the taps, `filters[0]`, meets a token itself.  `skip` is what an output has of its own
        input besides, 0 if None.  u and gate have a dtype of the variant; filters and skip are taken in
        float32, or in float64 if u has that, and sums are made in it.  Gradients flow to all tensors and from
        the final state, once.  Source: Hyena (arXiv 2302.10866), section 3.1, of which this is one order.

        Raises the errors of `based_ops.errors` before any kernel runs: on a CPU an `ArgumentValueError` for
        filters that are not finite, which elsewhere would have to be waited for.

        Long sequences are convolved by Fourier transforms, in O(T log T).  Packed and padded ones, and those
        with `batch_invariant`, take each lag by itself, in O(T L): the device would have to be asked how long
        they are.  `state_indices`, `cu_seqlens`, `attention_mask` and `batch_invariant` are as in a short
        convolution: states in slots of a pool, packed and padded sequences, and the same bits in any batch.
        """
        if foreign:
            refuse(LongConvVariant.__call__, tuple(foreign))
        tensors = self._inputs(u, filters, skip, gate)
        if initial_state is not None or output_final_state:
            self._fits_states(filters)
        given = (tensors, None, initial_state, output_final_state, backend, state_indices)
        return self._call(*given, cu_seqlens, attention_mask, batch_invariant)

    def step(
        self,
        u: Tensor,
        state: LongConvHistory,
        filters: Tensor,
        skip: Tensor | None = None,
        gate: Tensor | None = None,
        backend: Backend | None = None,
        state_indices: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """A few more tokens, T from 0 to 16: returns y of u's shape and updates `state` in place.

        It equals T steps of one token each, in one launch, and is exact.  A token reads all of the history
        that its filter reaches; `based_ops.layers.RelaxedConvolution` needs O(log² L) a token instead, with
        the filters' spectra, which are no part of a state.  Not differentiable.  Raises the errors of
        `based_ops.errors` before any kernel runs; more tokens are a `ShapeError`, and a call's.

        With `state_indices`, int32 [B] on the device, `state` is a pool: sequence b has the state in slot
        `state_indices[b]`, and no other slot is read or changed.  -1 names no slot: nothing changes, and the
        output is 0.
        """
        if foreign:
            refuse(LongConvVariant.step, tuple(foreign))
        self._fits_states(filters)
        return self._step(self._inputs(u, filters, skip, gate), None, state, backend, state_indices)

    def init_state(
        self,
        batch: int,
        units: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **foreign: NoReturn,
    ) -> LongConvHistory:
        """The state before the first token of so many channels (heads, where these share filters), for inputs
        of `dtype`; None is PyTorch's default.
        """
        if foreign:
            refuse(LongConvVariant.init_state, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, units, dtype, "units")
        state: LongConvHistory = self._form.zeros(batch, units, device, dtype, is_traced())
        return state

    def state_bytes(
        self, batch: int, units: int, dtype: torch.dtype | None = None, **foreign: NoReturn
    ) -> int:
        """Bytes of `init_state(batch, units, dtype=dtype)`."""
        if foreign:
            refuse(LongConvVariant.state_bytes, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, units, dtype, "units")
        return self._form.bytes(batch, units, dtype)

    def reference(
        self,
        u: Tensor,
        filters: Tensor,
        skip: Tensor | None = None,
        gate: Tensor | None = None,
        initial_state: LongConvHistory | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor | tuple[Tensor, LongConvHistory]:
        """Naive mathematics, the sum over lags: y, or (y, final_state) if `output_final_state`."""
        if foreign:
            refuse(LongConvVariant.reference, tuple(foreign))
        tensors = self._inputs(u, filters, skip, gate)
        sizes = self._check_inputs(self, tensors)
        return self._naively(
            tensors, sizes, (), initial_state, output_final_state, cu_seqlens, attention_mask
        )

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """With a tap for every input that there is: lag by lag, or three transforms of twice as many numbers
        if these are fewer; a state is taken for full.
        """
        seen, pairs = length, length * (length + 1) // 2
        if begun:
            seen, pairs = length + self.length, length * self.length
        by_fourier = 3 * 2.5 * (2 * seen) * math.log2(2 * seen) if seen else 0.0
        return self.spec.width * min(2.0 * pairs, by_fourier)

    def _inputs(self, u: Tensor, filters: Tensor, skip: Tensor | None, gate: Tensor | None) -> Tensors:
        """What the operators take: filters and skip in float32, or u's float64, side by side."""
        wide = torch.float64 if isinstance(u, Tensor) and u.dtype == torch.float64 else torch.float32
        widened = (
            p.to(wide).contiguous() if isinstance(p, Tensor) and p.is_floating_point() else p
            for p in (filters, skip)
        )
        return (u, *widened, gate)

    def _check_inputs(self, facts: Any, tensors: Tensors, most: int | None = None) -> tuple[int, int, int]:
        sizes = checks.inputs(self.signature.inputs, facts, tensors, most)
        filters: Any = tensors[1]
        if filters.shape[0] < 1:
            fail(ShapeError, "filters", sizes_of(filters), f"of one tap or more for {facts.name}")
        if facts is not self:
            require_finite(filters, facts.name)
        return sizes

    def _fits_states(self, filters: Any) -> None:
        """Raises `ShapeError` if filters reach farther back than a state does."""
        if isinstance(filters, Tensor) and filters.dim() == 2 and filters.shape[0] > self.length:
            what = f"of up to {self.length} taps where {self.name} has a state: that keeps no more inputs"
            fail(ShapeError, "filters", sizes_of(filters), what)

    def _enter(self, tensors: Tensors, state: LongConvHistory) -> tuple[Tensors, Tensors]:
        """Programs read the past in order of time."""
        return tensors, (self._in_order(state),)

    def _lay(self, tensors: Tensors, state: LongConvHistory | None, sequences: Tensor) -> packed.Laid:
        """Packed sequences, and the inputs before them, as the operator takes them."""
        carried = self._no_carry if state is None else (self._in_order(state),)
        return packed.Laid(tensors, carried, sequences, (sequences,))

    def _take(
        self, laid: packed.Laid, final: Sequence[Tensor], initial_state: LongConvHistory | None
    ) -> LongConvHistory:
        u: Any = laid.tensors[0]
        inputs, there = packed.last_tokens(u, laid.sequences, self.length)
        start, stop = laid.sequences.unbind(1)
        count = (stop - start).clamp(min=0).view(-1, *(1,) * (u.dim() - 2))
        if initial_state is None:
            earlier = torch.zeros_like(inputs)
        else:  # what is left of it behind as many tokens as a sequence has
            come = count.clamp(max=self.length).view(-1, 1)
            rows = (come + torch.arange(self.length, device=u.device)).clamp(max=self.length - 1)
            rows = rows.view(*rows.shape, *(1,) * (u.dim() - 2)).expand_as(inputs)
            earlier = self._in_order(initial_state).gather(1, rows)
        inputs = torch.where(there.view(*there.shape, *(1,) * (u.dim() - 2)), inputs, earlier)
        return self._ring(inputs, initial_state, count)

    def _leave(
        self, tensors: Tensors, final: Sequence[Tensor], initial_state: LongConvHistory | None, length: int
    ) -> LongConvHistory:
        u: Any = tensors[0]
        if initial_state is None:
            past = u.new_zeros(u.shape[0], self.length, *u.shape[2:])
        else:
            past = self._in_order(initial_state)
        # As many rows whatever the length, so that an exported program may have any number of tokens.
        return self._ring(torch.cat([past, u], 1).narrow(1, length, self.length), initial_state, length)

    def _in_order(self, state: LongConvHistory) -> Tensor:
        """The inputs of a state, the newest last."""
        oldest = state.oldest.unsqueeze(1)
        rows = torch.arange(self.length, device=oldest.device).view(1, -1, *(1,) * (oldest.dim() - 2))
        return state.history.gather(1, (oldest + rows) % self.length)

    def _ring(self, inputs: Tensor, initial_state: LongConvHistory | None, count: Any) -> LongConvHistory:
        """The state after `count` tokens that holds `inputs`, the newest last: as steps would leave it."""
        if initial_state is None:
            begun = inputs.new_zeros(inputs.shape[0], *inputs.shape[2:], dtype=torch.int32)
        else:
            begun = initial_state.oldest
        oldest = ((begun + count) % self.length).to(torch.int32)
        rows = torch.arange(self.length, device=inputs.device).view(1, -1, *(1,) * (inputs.dim() - 2))
        return LongConvHistory(inputs.gather(1, (rows - oldest.unsqueeze(1)) % self.length), oldest)

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, LongConvHistory]:
        from ..reference.long_conv import long_conv

        before = None if initial_state is None else self._in_order(initial_state)
        u, filters, skip, gate = tensors
        assert u is not None and filters is not None
        y, inputs = long_conv(self.spec, u, filters, skip, gate, before)
        return y, self._ring(inputs, initial_state, u.shape[1])


VARIANT = LongConvVariant


def require_finite(filters: Tensor, of: str) -> None:
    """Filters [L,...] `of` something are finite; that is looked at where it costs nothing."""
    if filters.device.type == "cpu" and not bool(filters.isfinite().all()):
        tap, channel = (~filters.isfinite()).nonzero()[0].tolist()
        got = f"{filters[tap, channel].item()} as tap {tap} of filter {channel}"
        fail(ArgumentValueError, "filters", got, f"finite numbers for {of}")
