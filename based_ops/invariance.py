"""`batch_invariant=True`: a sequence has the same bits alone and in any batch, packed, padded or neither.

What a kernel adds up, and in which order, follows from the plan of a call, and that from how much there is to
do beside each other.  So a batch takes the way of packed sequences, each of which is cut as if it were alone,
whatever lies beside it.  Where a layer, or the torch backend, has no such way, sequences are computed one
after the other.  And a sequence of one token, of which no gradient is recorded, is a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from based_ops.codegen.spec.signature import BATCH_INVARIANT

from . import dispatch, packed, slots
from .errors import ArgumentValueError, PlacementError, fail
from .ops import is_any_autocast_enabled
from .sharding import is_distributed
from .state_base import named
from .support.tiles import has_slots, put_back
from .tracing import is_traced

if TYPE_CHECKING:
    from .variant import Tensors, Variant

NAME = BATCH_INVARIANT.name


def call(
    variant: Variant,
    tensors: Tensors,
    factor: Any,
    initial_state: Any,
    output_final_state: bool,
    backend: str | None,
    indices: Tensor | None = None,
    offsets: Any = None,
    mask: Any = None,
) -> tuple[Tensor, Any]:
    """A call whose results for each sequence do not depend on the others; arguments as of `packed.call`."""
    given = (initial_state, output_final_state, backend, indices)
    if any(map(is_distributed, (*tensors, offsets, mask))):
        fail(PlacementError, NAME, "DTensors", "False with DTensors: call with the part of each rank")
    if is_any_autocast_enabled():
        tensors = variant._autocast(tensors)
    batch, length, units = variant._check_inputs(variant._facts(), tensors)
    lead: Any = tensors[0]
    dense = offsets is None and mask is None
    serving = dispatch.kernel(variant.name, backend, lead.device, lead.dtype).partition("-")[0]
    alike = variant.alike_in_batches and dense and length > 1 and serving != "torch"
    if alike or batch == 0 or length == 0 or units == 0:
        if dense:
            return variant._call(tensors, factor, *given)
        return packed.call(variant, tensors, factor, *given, offsets, mask, True)
    recorded = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*tensors, *(initial_state or ()))
    )
    if serving == "torch" or not (variant.alike_in_batches or variant.signature.packs):
        if is_traced() and not dense:
            what = f"False in compiled code of the {serving} backend with {packed.OFFSETS} or {packed.MASK}"
            fail(ArgumentValueError, NAME, True, what)
        return _one_by_one(variant, tensors, factor, *given, offsets, mask, recorded)
    if not dense:
        singly = None if recorded else _begin(variant, tensors, initial_state, indices, offsets, mask)
        output, final = packed.call(variant, tensors, factor, *given, offsets, mask, True)
        if singly is None:
            return output, final
        return _stepped(variant, tensors, factor, backend, singly, output, final, indices)
    if length == 1 and not recorded:
        run = partial(_step, variant, tensors, factor, backend, output_final_state)
        if indices is None:
            return run(initial_state)
        names = variant._step_names
        return slots.call(variant._form, names, tensors, initial_state, indices, run, is_traced())
    every = torch.ones(batch, length, dtype=torch.bool, device=lead.device)
    return packed.call(variant, tensors, factor, *given, None, every, True)


def _step(
    variant: Variant, tensors: Tensors, factor: Any, backend: str | None, asked: bool, state: Any
) -> tuple[Tensor, Any]:
    """The call of one token each, as a step from a copy of the state."""
    batch, _, units = variant._check_inputs(variant._facts(), tensors)
    lead: Any = tensors[0]
    if state is None:
        state = variant._form.zeros(batch, units, lead.device, lead.dtype, is_traced())
    else:
        variant._form.check("initial_state", state, lead, batch, units, is_traced())
        state = type(state)(
            *(x if x is None else x.clone(memory_format=torch.contiguous_format) for x in state)
        )
    output = variant._step(tensors, factor, state, backend)
    return output, named(state, variant.name) if asked else None


def _one_by_one(
    variant: Variant,
    tensors: Tensors,
    factor: Any,
    initial_state: Any,
    output_final_state: bool,
    backend: str | None,
    indices: Tensor | None,
    offsets: Any,
    mask: Any,
    recorded: bool,
) -> tuple[Tensor, Any]:
    """Each sequence in a call of its own, of copies, since PyTorch may round by where a tensor begins."""
    lead: Any = tensors[0]
    batch, length, units = variant._check_inputs(variant._facts(), tensors)
    traced = is_traced()
    if offsets is None and mask is None:
        places, count = [(b * length, (b + 1) * length) for b in range(batch)], batch
    else:
        found, count = packed.places(offsets, mask, lead, batch, length, traced)
        places = found.tolist()
    pool = initial_state
    if indices is not None:
        initial_state = slots.begin(variant._form, variant._step_names, tensors, pool, indices, count, traced)
        there = has_slots(pool[0], indices, 1).tolist()
        places = [(a, b if has else a) for (a, b), has in zip(places, there, strict=True)]
    elif initial_state is not None:
        variant._form.check("initial_state", initial_state, lead, count, units, traced)

    def run(own: Sequence[Tensor | None], state: Any) -> tuple[Tensor, Any]:
        copies = tuple([x if x is None else x.clone() for x in own])
        if state is not None:
            state = type(state)(*(x if x is None else x.clone() for x in state))
        first: Any = copies[0]
        if first.shape[1] == 1 and not recorded:
            return _step(variant, copies, factor, backend, True, state)
        return variant._call(copies, factor, state, True, backend)

    output, final = packed.each(variant, tensors, initial_state, places, run)
    if indices is not None:
        if output_final_state:
            slots.end(pool, indices, final)
        return output, pool if output_final_state else None
    return output, named(final, variant.name) if output_final_state else None


def _begin(
    variant: Variant, tensors: Tensors, initial_state: Any, indices: Tensor | None, offsets: Any, mask: Any
) -> tuple[Tensor, Any]:
    """The first tokens of packed or padded sequences that have one and no more, else -1, and their states."""
    lead: Any = tensors[0]
    batch, length, units = variant._check_inputs(variant._facts(), tensors)
    sequences, count = packed.places(offsets, mask, lead, batch, length, is_traced())
    if indices is not None:
        states = slots.begin(
            variant._form, variant._step_names, tensors, initial_state, indices, count, is_traced()
        )
    elif initial_state is not None:
        variant._form.check("initial_state", initial_state, lead, count, units, is_traced())
        states = type(initial_state)(*(x if x is None else x.clone() for x in initial_state))
    else:
        states = variant._form.zeros(count, units, lead.device, lead.dtype, is_traced())
    start, stop = sequences.unbind(1)
    single = stop - start == 1
    if indices is not None:
        single &= has_slots(initial_state[0], indices, 1)
    return torch.where(single, start, torch.full_like(start, -1)), states


def _stepped(
    variant: Variant,
    tensors: Tensors,
    factor: Any,
    backend: str | None,
    singly: tuple[Tensor, Any],
    output: Tensor,
    final: Any,
    indices: Tensor | None,
) -> tuple[Tensor, Any]:
    """The results of packed or padded sequences, with steps in place of those that have one token."""
    places, states = singly
    given = packed.end_to_end(variant, tensors)
    moving = (x.dims[:2] in packed.TOKENS for x in variant.signature.inputs)
    tokens = tuple(
        [
            x if x is None or not moves else x[0].index_select(0, places.clamp(min=0)).unsqueeze(1)
            for x, moves in zip(given, moving, strict=True)
        ]
    )
    stepped = variant._step(tokens, factor, states, backend)
    put_back([output.view(-1, *output.shape[2:])], places, [stepped[:, 0]])
    if final is None:
        return output, None
    single = places >= 0
    numbers = torch.arange(len(places), dtype=torch.int32, device=places.device)
    into = numbers if indices is None else indices
    into = torch.where(single, into, torch.full_like(into, -1))
    pairs = [(x, new) for x, new in zip(final, states, strict=True) if x is not None]
    put_back([x for x, _ in pairs], into, [new for _, new in pairs])
    return output, final
