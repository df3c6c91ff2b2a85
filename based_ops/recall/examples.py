"""What models of the study are shown and asked, whatever the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Task")


class Examples(NamedTuple):
    """Token sequences, and where in them what is to be predicted."""

    ids: Tensor
    """int32 [N,T]."""
    places: Tensor
    """int64 [N,K]: the positions at which is asked, in no order."""
    targets: Tensor
    """int64 [N,K]: what is right there."""


class Task(Protocol):
    """Examples of one length, which can be drawn."""

    @property
    def length(self) -> int:
        """Tokens of an example."""

    @property
    def asked(self) -> int:
        """Positions at which an example asks."""

    def of(self: Self, examples: int) -> Self:
        """The same of so many examples."""

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """The examples; equal arguments give equal ones on a device."""


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    """The examples in their order, `size` at a time.

    The last ones are filled up with examples without targets, -1, so that all have one shape.
    """
    for ids, places, targets in zip(*(x.split(size) for x in examples), strict=True):
        if (lacking := size - len(ids)) > 0:
            ids = torch.cat([ids, ids.new_zeros(lacking, ids.shape[1])])
            places = torch.cat([places, places.new_zeros(lacking, places.shape[1])])
            targets = torch.cat([targets, targets.new_full((lacking, targets.shape[1]), -1)])
        yield Examples(ids, places, targets)
