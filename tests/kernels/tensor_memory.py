"""Blackwell's tensor memory, its products, and barriers that say when they are done: see `gluon.py`.

* A product's result may be loaded, or changed, only after a wait for a barrier to which it was committed, in
  the right phase,
* what was stored for products may enter one only after a barrier,
* and a product may add only after a barrier since its sum was loaded: one thread issues it for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.kernels.gluon import Block, Shared


@dataclass
class Phases:
    """A barrier in shared memory."""

    committed: list[int] = field(default_factory=list)
    """The products with which its phases end, by their numbers."""
    over: int = 0
    """How many phases are known to be over."""


class TensorMemory:
    """A tile: a sum of products, or what they read on their left."""

    def __init__(self, block: Block, data: Tensor) -> None:
        self.block, self.data, self.place = block, data, data.data_ptr()
        self.product = 0
        """The last one that was added, by its number."""

    def load(self, layout: Any) -> Tensor:
        assert self.product <= self.block.waited, "a product's result was used before it was there"
        self.block.read.add(self.place)  # what a thread has stored it may load, from where it has stored it
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        assert value.dtype == self.data.dtype and value.shape == self.data.shape
        assert self.product <= self.block.waited, "written before a product that adds to it was waited for"
        assert self.place not in self.block.in_product, (
            "written before a product that reads it was waited for"
        )
        self.block.unseen.add(self.place)
        self.data.copy_(value)

    def operand(self) -> Tensor:
        """The tile as it enters the product that is issued next."""
        assert self.place not in self.block.unseen, "entered a product without a barrier"
        self.block.in_product[self.place] = self.block.products + 1
        return self.data.clone()

    def add(self, product: Tensor, anew: bool) -> None:
        """The result of the product that was issued last."""
        assert self.place not in self.block.read, "added to without a barrier since it was read"
        assert self.place not in self.block.unseen, "added to without a barrier since it was written"
        self.data.copy_(product if anew else self.data + product)
        self.product = self.block.products


def meanings(block: Block) -> dict[str, Any]:
    """What the names in a kernel mean."""

    def allocate(dtype: torch.dtype, shape: list[int], layout: Any) -> TensorMemory:
        return TensorMemory(block, torch.full(shape, float("nan"), dtype=dtype))

    def mma(a: TensorMemory | Shared, b: Shared, acc: TensorMemory, use_acc: bool) -> None:
        assert not isinstance(b, TensorMemory), "tensor memory has left operands alone"
        total = a.operand().float() @ b.operand().float()
        block.products += 1
        acc.add(total, not use_acc)

    def init(barrier: Shared, count: int) -> None:
        assert count == 1
        block.phases[barrier.place] = Phases()
        block.written(barrier.place)

    def phases(barrier: Shared) -> Phases:
        assert barrier.place not in block.unseen, "used without a barrier since it was begun"
        return block.phases[barrier.place]

    def commit(barrier: Shared) -> None:
        phases(barrier).committed.append(block.products)

    def wait(barrier: Shared, phase: int) -> None:
        """Until a phase with this parity is over; if the last one had it, that is at once."""
        found = phases(barrier)
        if found.over % 2 == phase:
            assert found.over < len(found.committed), "waits for what nobody has committed"
            found.over += 1
            block.waited = max(block.waited, found.committed[found.over - 1])

    def invalidate(barrier: Shared) -> None:
        found = block.phases.pop(barrier.place)
        assert found.over == len(found.committed), "ended before a product was waited for"

    return {
        "TensorMemoryLayout": lambda block, col_stride: None,
        "allocate_tensor_memory": allocate,
        "tcgen05_mma": mma,
        "tcgen05_commit": commit,
        "mbarrier": SimpleNamespace(MBarrierLayout=lambda: None, init=init, wait=wait, invalidate=invalidate),
    }
