"""Operators under `torch.func`: its levels, and what `torch.vmap` makes of a call.

The dispatcher takes an operator through the levels of nested transforms one by one, like PyTorch's own
operators.  For a level of `grad` or `vjp` it calls what the operator has under the Autograd key, for one of
`vmap` what it has under FuncTorchBatched.  The first dimension of tensors is the batch (or has no entries):
the mapped dimension is folded into it, and one launch serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from .errors import StateError, fail

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from .ops import Ops

active = torch._C._are_functorch_transforms_active
"""Whether a call runs under a transform of `torch.func`."""


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """What `function.apply` is for one level, where the dispatcher has gone through those above it."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def at_this_level(*args: Any) -> Any:
        if not active():
            return apply(*args)
        with enable_single_level_autograd_function():
            return apply(*args)

    return at_this_level


@contextmanager
def outer_gradients() -> Iterator[None]:
    """Lets outer levels record what an `autograd.Function` calls, in which gradients are off."""
    with torch.enable_grad(), torch.autograd.forward_ad._set_fwd_grad_enabled(True):
        yield


def mapped(ops: Ops, which: str) -> Callable[..., Any]:
    """The rule of an operator for `torch.vmap`."""

    def rule(info: Any, dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        op, taken, size = getattr(ops, which), ops.admission.operands[which], info.batch_size
        args = taken.filled(args)
        dims = (*dims, *[None] * (len(args) - len(dims)))
        given = {place: entry for place, entry in taken.tensors.items() if args[place] is not None}
        written = {place: entry.name for place, entry in given.items() if entry.written}
        if taken.indices in given:
            args, dims, written = _over_pools(taken.indices, written, dims, args, size)
        for place, name in written.items():
            if _shared(args[place], dims[place], size):
                fail(StateError, name, "one for all", "mapped over like q, since a step updates it in place")
        if taken.sequences in given:  # which lie in a batch of one
            return _one_by_one(op, size, dims, args)
        alone = [place for place, entry in given.items() if not entry.has_batch]
        # Of what the batch shares, such as the weights of channels, neither values nor gradients may differ.
        if any(dims[place] is not None for place in alone) or (alone and taken.sums_over_batch):
            return _one_by_one(op, size, dims, args)
        moved = {
            p: _first(args[p], dims[p], size)
            for p, entry in given.items()
            if entry.has_batch and (p in written or not entry.written)
        }
        folded = moved | {place: moved[place].contiguous() for place in written}
        results = op(*[folded[i].flatten(0, 1) if i in folded else x for i, x in enumerate(args)])
        for place in written:
            if folded[place] is not moved[place]:
                moved[place].copy_(folded[place])
        batch = moved[taken.lead].shape[1]
        if isinstance(results, Tensor):
            return results.unflatten(0, (size, batch)), 0
        # What is absent has no entries.
        split = tuple(x.unflatten(0, (size, batch if x.dim() > 1 else 0)) for x in results)
        return split, (0,) * len(split)

    return rule


def _over_pools(
    place: int, pools: dict[int, str], dims: tuple[int | None, ...], args: tuple[Any, ...], size: int
) -> tuple[tuple[Any, ...], tuple[int | None, ...], dict[int, str]]:
    """The arguments of a step in slots, with indices as those into what is one pool for all then.

    Pools that are mapped over lie behind each other; of a pool for all, the indices name different slots.
    Also returned are the pools that are mapped over.
    """
    indices, mapped = args[place], {p: name for p, name in pools.items() if dims[p] is not None}
    if not mapped and dims[place] is not None:
        return args, dims, {}
    if len(mapped) < len(pools):
        return args, dims, pools  # which the caller refuses
    pool = next(iter(mapped))
    count = _first(args[pool], dims[pool], size).shape[1]
    indices = _first(indices, dims[place], size)
    first = torch.arange(size, device=indices.device, dtype=indices.dtype).unsqueeze(1) * count
    moved = torch.where((indices >= 0) & (indices < count), indices + first, -1)
    args = (*args[:place], moved, *args[place + 1 :])
    return args, (*dims[:place], 0, *dims[place + 1 :]), pools


def _one_by_one(op: OpOverload, size: int, dims: tuple[int | None, ...], args: tuple[Any, ...]) -> Any:
    """A call for each entry of the mapped dimension."""
    calls = [
        op(*[x if dim is None or x is None else x.select(dim, i) for x, dim in zip(args, dims, strict=True)])
        for i in range(size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
    return stacked, (0,) * len(stacked)


def _first(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor with the mapped dimension first; one that is not mapped over is the same for all."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _shared(x: Tensor, dim: int | None, size: int) -> bool:
    """Whether all of the mapped dimension is the same memory."""
    return dim is None or (size > 1 and x.stride(dim) == 0)
