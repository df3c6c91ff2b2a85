"""The one home of tolerances: how far a kernel may be from float64 mathematics on the same rounded inputs.

An error is judged twice: ``|actual - expected|`` against ``|expected|`` in the Euclidean norm of the whole
tensor, and the worst element against the largest element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the two relative errors, or two such errors."""

    norm: float
    worst: float

    def loosened(self, factor: float) -> Tolerance:
        """Both bounds times `factor`."""
        return Tolerance(self.norm * factor, self.worst * factor)

    def allows(self, found: Tolerance) -> bool:
        """Whether both errors of `found` lie within these bounds; NaN never does."""
        return found.norm <= self.norm and found.worst <= self.worst


FORWARD = {
    torch.float64: Tolerance(1e-12, 1e-11),
    torch.float32: Tolerance(3e-6, 2e-5),
    # On a GPU products round float16 inputs to bfloat16, by 2^-9; the fourth power has four times that error.
    torch.float16: Tolerance(8e-3, 2e-2),
    torch.bfloat16: Tolerance(6e-3, 2e-2),
}
"""Outputs and final states."""

BACKWARD = {
    torch.float64: Tolerance(1e-10, 1e-9),
    torch.float32: Tolerance(2e-5, 2e-4),
    torch.float16: Tolerance(1.5e-2, 5e-2),
    torch.bfloat16: Tolerance(2e-2, 6e-2),
}
"""Gradients."""

CORRECTED = 3
"""How many times as wide they are for a delta rule: a value is rounded once more before it enters, and what a
state answers wrong is corrected by later tokens that see the error."""


def errors(actual: Tensor, expected: Tensor, floor: float = 0.0) -> Tolerance:
    """The two relative errors of `actual`.

    `floor` is the root mean square below which `expected` counts as rounding noise: errors are then relative
    to a tensor of that size, since where mathematics cancels to nothing no arithmetic gets nothing.
    """
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    difference = actual - expected
    least = max(floor, torch.finfo(torch.float64).tiny)
    norm = difference.norm() / max(float(expected.norm()), least * expected.numel() ** 0.5)
    worst = difference.abs().amax() / max(float(expected.abs().amax()), least) if expected.numel() else norm
    return Tolerance(float(norm), float(worst))
