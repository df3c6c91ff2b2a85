"""Pools of states: a batch of sequences that lie in slots, which indices on the device name.

Serving keeps the states of all its sequences in one pool, and a batch is some of them in any order; -1 stands
for padding of a batch whose size is fixed, which changes nothing and whose output is 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import checks
from .checks import sizes
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceError,
    DtypeError,
    ShapeError,
    StateError,
    fail,
)
from .state_form import StateForm
from .support.tiles import entries, has_slots, put_back

NAME = "state_indices"
NOT_RECORDED = "a call does not record what it reads of a pool, nor what it writes into it"


def count(argument: str, pool: Any, indices: Any, lead: Any, batch: Any, traced: bool) -> Any:
    """How many slots a pool has, whatever else it is; raises typed errors unless `indices` name some of them.

    They are int32 [B] on the device of the call, as `lead` is.
    """
    part = pool[0] if isinstance(pool, tuple) and pool else pool
    if not isinstance(part, Tensor) or part.dim() == 0:
        got = None if pool is None else type(pool).__name__
        fail(StateError, argument, got, f"a pool of states, since {NAME} is given")
    if not isinstance(indices, Tensor):
        fail(ArgumentTypeError, NAME, type(indices).__name__, "a torch.Tensor of int32")
    if indices.dtype != torch.int32:
        fail(DtypeError, NAME, str(indices.dtype), "torch.int32")
    if indices.device != lead.device:
        fail(DeviceError, NAME, str(indices.device), f"on the device of the inputs, {lead.device}")
    if indices.dim() != 1 or indices.shape[0] != batch:
        wanted = f"of shape [{operator.index(batch)}], a slot for each sequence of the batch"
        fail(ShapeError, NAME, sizes(indices), wanted)
    if not traced:
        check_values(indices, part.shape[0])
    return part.shape[0]


def check_values(indices: Tensor, most: int) -> None:
    """Indices name slots of a pool of `most`, or -1, and no slot twice; where looking costs nothing.

    On other devices than the CPU nobody waits for them: an index that names no slot counts as -1 there, and
    what a slot has that is named twice is left open.
    """
    if type(indices) is not Tensor or indices.device.type != "cpu":
        return
    named = sorted(indices.tolist())
    if named and (named[0] < -1 or named[-1] >= most):
        got = named[0] if named[0] < -1 else named[-1]
        fail(ArgumentValueError, NAME, got, f"-1, or one of the {most} slots of the pool")
    twice = next((a for a, b in zip(named, named[1:], strict=False) if a == b >= 0), None)
    if twice is not None:
        fail(ArgumentValueError, NAME, f"slot {twice} twice", "another slot for each sequence")


def call(
    form: StateForm,
    names: Sequence[str],
    tensors: Sequence[Any],
    pool: Any,
    indices: Tensor,
    run: Callable[..., tuple[Tensor, Any]],
    traced: bool,
) -> tuple[Tensor, Any]:
    """A call of `tensors` from slots of a pool, into which the states after it go.

    `run` is the call from an initial state; `names` begins with those of the tensors.
    """
    lead = tensors[0]
    if not isinstance(lead, Tensor) or lead.dim() == 0:
        return run(None)  # which says what is wrong
    output, final = run(begin(form, names, tensors, pool, indices, lead.shape[0], traced))
    there = has_slots(pool[0], indices, output.dim())
    if final is not None:
        end(pool, indices, final)
    return torch.where(there, output, torch.zeros_like(output)), None if final is None else pool


def begin(
    form: StateForm,
    names: Sequence[str],
    tensors: Sequence[Any],
    pool: Any,
    indices: Tensor,
    sequences: Any,
    traced: bool,
) -> Any:
    """The states that so many sequences have in a pool, after all checks of it."""
    if pool is not None:
        form.check_kind("initial_state", pool)
    count("initial_state", pool, indices, tensors[0], sequences, traced)
    if torch.is_grad_enabled():
        named = [*names[: len(tensors)], *(f"initial_state.{x}" for x in pool._fields)]
        checks.no_gradient(named, (*tensors, *pool), NOT_RECORDED)
    return type(pool)(*(x if x is None else entries([x], indices)[0] for x in pool))


def end(pool: Any, indices: Tensor, final: Any) -> None:
    """Put the states after sequences into their slots."""
    pairs = [(x, new.to(x.dtype)) for x, new in zip(pool, final, strict=True) if x is not None]
    put_back([x for x, _ in pairs], indices, [new for _, new in pairs])


VECTOR = 16
"""Bytes that a thread reads at once, at most."""


def in_place(pools: Iterable[Tensor | None]) -> bool:
    """Whether kernels can step slots of pools where they are.

    They read an entry in vectors, as long as divide what each head or channel has.  Their length decides the
    order of sums, so it is the same for all pools: slots have to begin at such vectors, as those of dense
    pools and of pages do.
    """
    for pool in pools:
        if pool is None or not (pool.data_ptr() | pool.stride(0) * pool.itemsize) % VECTOR:
            continue
        whole, size = prod(pool.shape[2:]), pool.itemsize
        vector = min(VECTOR, (whole & -whole) * size)
        if vector > size and (pool.data_ptr() % VECTOR or pool.stride(0) * size % vector):
            return False
    return True


def step(run: Callable[..., Tensor], where: slice, *arguments: Any) -> Tensor:
    """`run(*arguments)`, a step whose pools stand `where`, and indices of slots, or None, last.

    Slots that are not `in_place` are copied out and back.
    """
    pools, indices = arguments[where], arguments[-1]
    if indices is None or in_place(pools):
        return run(*arguments)
    there = [pool for pool in pools if pool is not None]
    taken = entries(there, indices)
    left = iter(taken)
    states = [pool if pool is None else next(left) for pool in pools]
    output = run(*arguments[: where.start], *states, None)
    put_back(there, indices, taken)
    return torch.where(has_slots(there[0], indices, output.dim()), output, torch.zeros_like(output))
