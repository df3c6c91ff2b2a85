"""What a step's program is of every mixer: tokens one after the other, and states in slots of a pool.

Where a call gives indices, the states of its batch are slots of a pool, `Tensor.slots`.  An entry of the
batch without a slot changes nothing, and its output is 0: padding of a batch whose size is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from ..ir.build import Builder
from ..ir.host import Extent, Launch, Name, Operand, Present, Some, launch
from ..ir.nodes import INDEX, Var, Where, wrap
from ..ir.program import HAS_SLOT, Tensor
from .sequence import Sequence

SEVERAL, SLOTS = "SEVERAL", "SLOTS"
"""Flags of steps of more than one token, and of states in slots: without them there is neither a loop nor a
look at an index."""
FLAGS = (SEVERAL, SLOTS)
POOLED = "slots"
"""The size of a pool."""
INDICES = Tensor("state_indices", ("B",), INDEX, optional=SLOTS)


def in_slots(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of a state, which may be slots, and the indices of these."""
    return (*(replace(tensor, slots=INDICES.name) for tensor in tensors), INDICES)


def one_by_one(b: Builder, sequence: Sequence) -> AbstractContextManager[Var]:
    """A loop over tokens, each of which finds what those before it have stored."""
    return b.loop("t", sequence.start, sequence.stop, several=SEVERAL)


def answered(b: Builder, out: Var) -> Var:
    """The output of a token: 0 without a slot, whatever the token is."""
    with b.when(SLOTS):
        b.set(out, Where(Var(HAS_SLOT), out, wrap(0.0)))
    return out


def launch_step(state: str, flags: Mapping[str, Operand] = {}) -> Launch:
    """The launch of the program `token`, unless there is none; `state` is the first tensor of a state."""
    steps = {SEVERAL: Name("T") > 1, SLOTS: Present(INDICES.name), POOLED: Extent(state, 0)}
    return launch("token", {**flags, **steps}, Some(Name("T")))
