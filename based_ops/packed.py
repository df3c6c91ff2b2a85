"""Several sequences in one token axis: packed ones, `cu_seqlens`, and padded ones, `attention_mask`.

Both become the operators' `sequences` [N,2], where each begins and ends, on the device and without a look at
it.  Padded sequences are packed ones with tokens of nobody in between: their batch is laid end to end, which
copies nothing where tensors are dense.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, slots
from .checks import layout, sizes
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceError,
    DtypeError,
    PlacementError,
    ShapeError,
    fail,
)
from .ops import call as call_operator
from .ops import is_any_autocast_enabled
from .sharding import is_distributed
from .state import linear_to_ring
from .state_base import named
from .support.tiles import has_slots
from .tracing import is_traced

if TYPE_CHECKING:
    from .variant import Tensors, Variant

OFFSETS, MASK = "cu_seqlens", "attention_mask"
TOKENS = ("B", "T"), ("B", "Tk")
"""How the dimensions of inputs begin that have tokens."""
LARGEST = 2**31 - 1
"""The most tokens of all sequences: their places are counted in 32 bits."""


def call(
    variant: Variant,
    tensors: Tensors,
    factor: Any,
    initial_state: Any,
    output_final_state: bool,
    backend: str | None,
    indices: Tensor | None,
    offsets: Any,
    mask: Any,
    invariant: bool = False,
) -> tuple[Tensor, Any]:
    """A call of sequences that `offsets` or a `mask` tell apart, one of which is given; `invariant`: each cut
    as if it were alone."""
    lead: Any = tensors[0]
    name = OFFSETS if mask is None else MASK
    traced = is_traced()
    parts, rows = variant._parts(initial_state), None if traced or indices is not None else pairs(offsets)
    if initial_state is not None or output_final_state:
        taken = variant._states_are_taken and (initial_state is None or len(parts) > 0)
        rows = rows if taken else None
    promised = (invariant,) if variant._adapts else ()
    which: Any = ("packed", initial_state is None, output_final_state, *promised)
    if rows is not None and variant._replays.known:
        key = variant._key(which, factor, backend, tensors)
        results = variant._replays.results(key, *variant._given(tensors), rows, *parts)
        if results is not None:
            return results[0], variant._final(results, output_final_state)
    if any(map(is_distributed, (*tensors, offsets, mask))):
        fail(PlacementError, name, "DTensors", "left out with DTensors: call with the part of each rank")
    if is_any_autocast_enabled():
        tensors = variant._autocast(tensors)
    facts = variant._facts()
    batch, length, units = variant._check_inputs(facts, tensors)
    numbers = variant._numbers(facts, factor)
    lead = tensors[0]
    if not traced and batch * length > LARGEST:
        fail(ShapeError, variant.signature.lead.name, sizes(lead), f"of up to {LARGEST} tokens with {name}")
    sequences, count = places(offsets, mask, lead, batch, length, traced)
    if indices is not None:
        names = variant._step_names
        found = slots.begin(variant._form, names, tensors, initial_state, indices, count, traced)
        start, stop = sequences.unbind(1)  # without a slot a sequence has no tokens
        stop = torch.where(has_slots(initial_state[0], indices, 1), stop, start)
        sequences = torch.stack((start, stop), 1)
        pool, initial_state = initial_state, found
    if initial_state is not None:
        if type(initial_state) is variant._state_type and is_any_autocast_enabled():
            initial_state = variant._form.cast(initial_state, lead.dtype)
        variant._form.check("initial_state", initial_state, lead, count, units, traced)
    kernel = dispatch.kernel(variant.name, backend, lead.device, lead.dtype, traced)
    if batch == 0 or length == 0 or units == 0:
        form, state = variant._form, initial_state
        if state is None:
            state = form.zeros(count, units, lead.device, lead.dtype, traced)
        output, final = form.after_nothing(
            tensors, units, variant._nothing(tensors), state, output_final_state, traced
        )
    elif rows is not None and variant._may_record(kernel, tensors, (rows,), parts, output_final_state):
        key = variant._key(which, factor, backend, tensors)
        results = variant._first(key, kernel, numbers, tensors, parts, output_final_state, (rows,), promised)
        return results[0], variant._final(results, output_final_state)
    else:
        given = tensors if mask is None else end_to_end(variant, tensors)
        if initial_state is not None:
            initial_state = variant._settle(initial_state, kernel)
        laid = variant._lay(given, initial_state, sequences)
        asked = (output_final_state,) if variant._asked else ()
        arguments = (*laid.tensors, *numbers, *laid.carried, *asked, kernel, *laid.places, *promised)
        results = call_operator(variant._ops.forward, not traced, arguments)
        output, *others = results if isinstance(results, tuple) else (results,)
        if laid.tokens is not None:
            output = output.index_select(1, laid.tokens)
        output, final = output.view(batch, length, *output.shape[2:]), None
        if output_final_state:
            final = named(variant._take(laid, others[variant._kept :], initial_state), variant.name)
    if indices is None or final is None:
        return output, final
    slots.end(pool, indices, final)
    return output, pool


class Laid(NamedTuple):
    """Sequences as an operator takes them."""

    tensors: Tensors
    carried: Tensors
    """What was before the sequences."""
    sequences: Tensor
    places: Tensors = ()
    """Where they lie, if the operator asks."""
    tokens: Tensor | None = None
    """Where the tokens of the call are among those of the tensors, if there are others."""


class Spread(NamedTuple):
    """Tokens with room for others in front of each sequence."""

    tokens: Tensor
    """Where the tokens go."""
    where: Tensor
    """Of each place, what is there: of all tokens, behind them what goes in front, and then nothing."""
    sequences: Tensor
    """The sequences, what is in front of them included."""

    def laid(self, x: Tensor, front: Tensor) -> Tensor:
        """x [1,T,...] with what goes in front of each sequence, [N,width,...]; 0 for tokens of none."""
        front = front.reshape(1, -1, *x.shape[2:])
        return torch.cat((x, front, torch.zeros_like(front[:, :1])), 1).index_select(1, self.where)


def last_tokens(x: Tensor, sequences: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The last `count` tokens of each sequence, [N,count,...] of x [1,T,...], and which of them there are."""
    start, stop = sequences.unbind(1)
    index = stop.unsqueeze(1) - count + torch.arange(count, device=x.device)
    last = x[0].index_select(0, index.clamp(min=0).flatten())
    return last.view(start.shape[0], count, *last.shape[1:]), index >= start.unsqueeze(1)


def rings(
    tensors: Sequence[Tensor], sequences: Tensor, past: Tensor | None, window: int
) -> tuple[list[Tensor], Tensor]:
    """The last tokens of sequences, of each of the tensors [1,T,H,D], as rings; and how many there have been.

    With `past`, how many there were before, sequences begin with a window of these.
    """
    start, stop = sequences.unbind(1)
    position = (stop - start).unsqueeze(1).expand(-1, tensors[0].shape[2])
    if past is not None:
        position = past + position - window
    found = []
    for x in tensors:
        last, there = last_tokens(x, sequences, window)
        last = torch.where(there[..., None, None], last, torch.zeros_like(last))
        found.append(linear_to_ring(last, position))
    return found, position.to(torch.int32).contiguous()


def spread(sequences: Tensor, length: Any, width: int) -> Spread:
    """Room for `width` others in front of each sequence; sequences do not begin before those before them."""
    start, stop = (x.contiguous() for x in sequences.long().unbind(1))
    places = torch.arange(length, device=start.device)
    begun = torch.searchsorted(start, places, right=True)  # sequences that have begun at a token
    there = (begun > 0) & (places < stop.index_select(0, (begun - 1).clamp(min=0)))
    front = start + torch.arange(start.shape[0], device=start.device) * width
    tokens = places + width * begun
    others = front.unsqueeze(1) + torch.arange(width, device=start.device)
    ends = torch.stack((front, front + width + stop - start), 1)
    nothing = length + others.numel()
    kept = torch.where(there, tokens, nothing)  # a place behind all others
    what = torch.arange(nothing, device=start.device)
    where = what.new_full((nothing + 1,), nothing).scatter(0, torch.cat((kept, others.flatten())), what)
    return Spread(tokens, where.narrow(0, 0, nothing), ends)


def end_to_end(variant: Variant, tensors: Tensors) -> Tensors:
    """A batch as one sequence of all tokens."""
    held = zip(variant.signature.inputs, tensors, strict=True)
    return tuple(
        [x if x is None or y.dims[:2] not in TOKENS else x.flatten(0, 1).unsqueeze(0) for y, x in held]
    )


def places(
    offsets: Any, mask: Any, lead: Tensor, batch: Any, length: Any, traced: bool
) -> tuple[Tensor, Any]:
    """Where the sequences of a call begin and end in its tokens laid end to end, and how many there are."""
    if mask is None:
        check_offsets(offsets, lead, batch, length, traced)
        return of_offsets(offsets, length), offsets.shape[0] - 1
    if offsets is not None:
        fail(ArgumentValueError, MASK, f"a mask besides {OFFSETS}", f"given alone, or {OFFSETS}")
    check_mask(mask, lead, batch, length, traced)
    return of_mask(mask), batch


class Numbers(NamedTuple):
    """Where the tokens of a call are in their sequences."""

    number: Tensor
    """Of each token [B,T], from 0."""
    sequence: Tensor
    """Which one it is of [B,T], or is near to if it is of none."""
    counts: Tensor
    """How many tokens each sequence has, [N]."""


def numbers(offsets: Any, mask: Any, lead: Tensor, traced: bool) -> Numbers:
    """Of the tokens of `lead` [B,T,...]: of one sequence a batch entry, or as offsets or a mask tell."""
    batch, length = lead.shape[:2]
    at = torch.arange(length, device=lead.device)
    rows = torch.arange(batch, device=lead.device).unsqueeze(1)
    number, sequence = at.expand(batch, length), rows.expand(batch, length)
    if offsets is None and mask is None:
        return Numbers(number, sequence, torch.full((batch,), length, device=lead.device))
    found, _ = places(offsets, mask, lead, batch, length, traced)
    start, stop = (x.contiguous() for x in found.long().unbind(1))
    if mask is not None:
        return Numbers(number - (start.unsqueeze(1) - rows * length), sequence, stop - start)
    begun = (torch.searchsorted(start, at, right=True) - 1).clamp(min=0)
    return Numbers((at - start.index_select(0, begun)).unsqueeze(0), begun.unsqueeze(0), stop - start)


def each(
    variant: Variant,
    tensors: Tensors,
    initial_state: Any,
    sequences: Iterable[tuple[int, int]],
    run: Callable[[Sequence[Tensor | None], Any], tuple[Tensor, Any]],
) -> tuple[Tensor, Any]:
    """Each sequence by itself: outputs of all tokens, and final states; `run` takes its inputs and its state.

    `sequences` says where each begins and ends in all tokens laid end to end.
    """
    laid, outputs, finals = end_to_end(variant, tensors), [], []
    lead: Any = tensors[0]
    pieces = [(x, y.dims[:2] in TOKENS) for y, x in zip(variant.signature.inputs, laid, strict=True)]
    units = max(x.shape[2] for x, moves in pieces if moves and x is not None)  # heads may be in groups
    like = variant._nothing(laid)

    def nothing(count: int) -> Tensor:
        """Outputs of tokens that no sequence has."""
        return like.new_zeros(1, count, units, *like.shape[3:])

    done = 0
    for n, (start, stop) in enumerate(sequences):
        state = initial_state
        if state is not None:
            state = type(state)(*(x if x is None else x[n : n + 1] for x in state))
        own = [x[:, start:stop] if x is not None and moves else x for x, moves in pieces]
        o, final = run(own, state)
        outputs += [nothing(start - done), o]
        finals.append(final)
        done = stop
    outputs.append(nothing(like.shape[1] - done))
    ends = (None if xs[0] is None else torch.cat(xs) for xs in zip(*finals, strict=True))
    found = torch.cat(outputs, 1)
    return found.view(*lead.shape[:2], *found.shape[2:]), type(finals[0])(*ends)


def pairs(offsets: Any) -> Tensor | None:
    """A view [N,2] of offsets as they are, which kernels read on a device; None of other shapes."""
    if type(offsets) is not Tensor or offsets.dim() != 1 or offsets.shape[0] < 2:
        return None
    return offsets.unfold(0, 2, 1)


def of_offsets(offsets: Tensor, length: Any) -> Tensor:
    """Where sequences begin and end, from where the next begins: int32 [N,2], a view of as many and one."""
    return offsets.clamp(0, length).to(torch.int32).unfold(0, 2, 1)


def without_padding(x: Tensor, mask: Any, traced: bool) -> Tensor:
    """x [B,T,...] with zeros where a mask says that there is no token."""
    check_mask(mask, x, x.shape[0], x.shape[1], traced)
    there = (mask != 0).view(*mask.shape, *(1,) * (x.dim() - 2))
    return torch.where(there, x, torch.zeros((), dtype=x.dtype, device=x.device))


def of_mask(mask: Tensor) -> Tensor:
    """Where the sequences of a batch begin and end, laid end to end: int32 [B,2].

    A sequence goes from the first to the last token that there is.
    """
    batch, length = mask.shape
    there = mask != 0
    places = torch.arange(1, length + 1, dtype=torch.int32, device=mask.device)
    stop = (there * places).amax(1) if length else places.new_zeros(batch)
    start = length - (there * places.flip(0)).amax(1) if length else stop
    rows = torch.arange(batch, dtype=torch.int32, device=mask.device) * length
    return torch.stack((rows + torch.minimum(start, stop), rows + stop), 1).to(torch.int32)


def check_offsets(offsets: Any, lead: Tensor, batch: Any, length: Any, traced: bool) -> None:
    """cu_seqlens are int32 or int64 [N+1] on the device of the call; where looking costs nothing, they begin
    at 0, do not decrease, and end at the last token or before it.
    """
    if not isinstance(offsets, Tensor):
        fail(ArgumentTypeError, OFFSETS, type(offsets).__name__, "a torch.Tensor of int32 or int64")
    layout(OFFSETS, offsets)
    if offsets.dtype not in (torch.int32, torch.int64):
        fail(DtypeError, OFFSETS, str(offsets.dtype), "torch.int32 or torch.int64")
    if offsets.dim() != 1 or offsets.shape[0] < 2:
        fail(ShapeError, OFFSETS, sizes(offsets), "of shape [N + 1] for N >= 1 sequences")
    if offsets.device != lead.device:
        fail(DeviceError, OFFSETS, str(offsets.device), f"on the device of the inputs, {lead.device}")
    if batch != 1:
        got = f"sequences packed into a batch of {operator.index(batch)}"
        fail(ShapeError, OFFSETS, got, "given with a batch of 1: lay all sequences behind each other in it")
    if traced or offsets.device.type != "cpu":
        return
    values = offsets.tolist()
    if values[0] != 0:
        fail(
            ArgumentValueError,
            OFFSETS,
            f"{values[0]} as the first",
            "0 there, where the first sequence begins",
        )
    for place, (here, there) in enumerate(zip(values, values[1:], strict=False)):
        if there < here:
            got = f"{there} behind {here} at {place + 1}"
            fail(ArgumentValueError, OFFSETS, got, "offsets that do not decrease")
    if values[-1] > length:
        what = f"up to {operator.index(length)}, the tokens that there are"
        fail(ArgumentValueError, OFFSETS, f"{values[-1]} as the last", what)


def check_mask(mask: Any, lead: Tensor, batch: Any, length: Any, traced: bool) -> None:
    """A mask is bool, or integers 0 and 1, [B,T] on the device of the call; where looking costs nothing, the
    tokens of each sequence lie side by side.
    """
    if not isinstance(mask, Tensor):
        fail(ArgumentTypeError, MASK, type(mask).__name__, "a torch.Tensor of bool, or of integers 0 and 1")
    layout(MASK, mask)
    if mask.is_floating_point() or mask.is_complex():
        fail(DtypeError, MASK, str(mask.dtype), "torch.bool, or integers 0 and 1")
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] != length:
        wanted = f"of shape [{operator.index(batch)}, {operator.index(length)}], a number for each token"
        fail(ShapeError, MASK, sizes(mask), wanted)
    if mask.device != lead.device:
        fail(DeviceError, MASK, str(mask.device), f"on the device of the inputs, {lead.device}")
    if traced or mask.device.type != "cpu" or length == 0:
        return
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        other = mask[(mask != 0) & (mask != 1)][0].item()
        fail(ArgumentValueError, MASK, other, "1 for a token and 0 for padding")
    there = mask != 0
    begins = there[:, 0].int() + (there[:, 1:] & ~there[:, :-1]).sum(1)
    if bool((begins > 1).any()):
        row = int((begins > 1).int().argmax())
        fail(
            ArgumentValueError,
            MASK,
            f"padding between tokens of sequence {row}",
            "padding before or behind all tokens of a sequence",
        )
