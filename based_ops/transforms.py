"""Operators under `torch.func`: its levels, and what `torch.vmap` makes of a call.

The dispatcher takes an operator through the levels of nested transforms one by one, like PyTorch's own
operators.  For a level of `grad` or `vjp` it calls what the operator has under the Autograd key, for one of `vmap`
what it has under FuncTorchBatched.  The first dimension of every tensor of every operator is the batch (or has
no entries), so the mapped dimension is folded into it, and one launch serves all.
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


def mapped(op: OpOverload) -> Callable[..., Any]:
    """The rule of an operator for `torch.vmap`."""
    arguments = op._schema.arguments
    written = {i: x.name for i, x in enumerate(arguments) if x.alias_info and x.alias_info.is_write}

    def rule(info: Any, dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        for index, name in written.items():
            if args[index] is not None and _shared(args[index], dims[index], info.batch_size):
                fail(StateError, name, "one for all", "mapped over like q, since a step updates it in place")
        moved = [_first(x, dim, info.batch_size) for x, dim in zip(args, dims, strict=True)]
        folded = [x.contiguous() if i in written and x is not None else x for i, x in enumerate(moved)]
        results = op(*[x.flatten(0, 1) if isinstance(x, Tensor) else x for x in folded])
        for index in written:
            if folded[index] is not moved[index]:
                moved[index].copy_(folded[index])
        size, batch = moved[0].shape[:2]
        if isinstance(results, Tensor):
            return results.unflatten(0, (size, batch)), 0
        # What is absent has no entries.
        split = tuple(x.unflatten(0, (size, batch if x.dim() > 1 else 0)) for x in results)
        return split, (0,) * len(split)

    return rule


def _first(x: Any, dim: int | None, size: int) -> Any:
    """A tensor with the mapped dimension first; one that is not mapped over is the same for all."""
    if not isinstance(x, Tensor):
        return x
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _shared(x: Tensor, dim: int | None, size: int) -> bool:
    """Whether all of the mapped dimension is the same memory."""
    return dim is None or (size > 1 and x.stride(dim) == 0)
