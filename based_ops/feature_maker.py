"""Features of queries or of keys by kernels: one launch makes them, two their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .operands import dtype_of
from .ops import call

if TYPE_CHECKING:
    from based_ops.codegen.spec.featured import Side

    from .record import FeatureRecord


class FeatureMaker:
    """The operators that make features of one side of a layer, or of both."""

    backward_products = 2.0
    """Operations of a backward pass over those of its forward: gradients of a matrix and of what it meets."""

    def __init__(self, record: FeatureRecord) -> None:
        self._ops, self._layer = ops.registered(record), record.layer
        self._roles = [self._layer.role(x) for x in self._layer.parameters]

    @property
    def operators(self) -> tuple[torch._ops.OpOverload, torch._ops.OpOverload]:
        """Forward and backward, as `torch.ops.based_ops` has them."""
        return self._ops.forward, self._ops.backward

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Operations of the products of one sequence in one head."""
        found: float = length * self._layer.operations
        return found

    def __call__(
        self,
        x: Tensor,
        side: Side,
        given: Mapping[str, Tensor],
        tokens: Tensor | None,
        kernel: str,
        traced: bool,
    ) -> Tensor:
        """Features [B,T,H,F] of x [B,T,H,D], all of which is checked; `tokens` [B,T] number those that are
        not where they stand."""
        read: Sequence[Tensor | None] = [
            given[parameter.name].to(dtype_of(self._layer, role, x.dtype))
            for parameter, role in zip(side.parameters, self._roles, strict=True)
        ]
        if self._layer.turns:
            read = [*read, None if tokens is None else tokens.int()]
        y: Tensor = call(self._ops.forward, not traced, (x, *read, kernel))
        return y
