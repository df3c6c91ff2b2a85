"""What can do a piece of work: a backend of this library, or another library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from .inputs import Inputs
from .works import Entry, Work

Results = tuple[Tensor, ...]
"""The output, or the gradients of all inputs."""
Call = Callable[[], Results]


class Contender(ABC):
    """Something that does work."""

    by: str
    """Its name in the results."""
    same: ClassVar[bool] = True
    """Whether it computes the layer itself, and not one that the layer stands in for."""
    compiles: ClassVar[bool] = True
    """Whether its first call compiles what a cache on disk keeps."""

    @abstractmethod
    def takes(self, work: Work) -> bool:
        """Whether it is meant for this work at all."""

    def why_not(self, entry: Entry, device: str) -> str | None:
        """Why it is not measured on a line on this device; None if it is."""
        return None

    def quadratic_flops(self, work: Work) -> float:
        """Operations of its forward if they grow with the square of the length, else 0."""
        return 0.0

    @abstractmethod
    def prepare(self, work: Work, inputs: Inputs) -> Call:
        """A call of the work on these inputs."""


def forget_compiled() -> None:
    """To be called before each work: Dynamo refuses a function that it has compiled for many shapes."""
    torch._dynamo.reset()
