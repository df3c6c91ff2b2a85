"""Assertions on the errors of kernels; the bounds themselves stand in `based_ops.tolerance`."""

from __future__ import annotations

from torch import Tensor

from based_ops.tolerance import BACKWARD, CORRECTED, FORWARD, Tolerance, errors

__all__ = [
    "BACKWARD",
    "CORRECTED",
    "FORWARD",
    "Tolerance",
    "assert_close",
    "assert_same",
    "errors",
    "owed",
    "rms",
]


def assert_close(
    what: str, actual: Tensor, expected: Tensor, tolerance: Tolerance, floor: Tensor | float | None = None
) -> None:
    """Fail unless `actual` has the shape of `expected`, is finite and lies within both bounds.

    Where terms cancel, `expected` says little about what was summed: `floor` is that size, or a tensor of it.
    """
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    if not expected.numel():
        return
    size = rms(floor) if isinstance(floor, Tensor) else floor or 0.0
    found = errors(actual, expected, size)
    assert tolerance.allows(found), (
        f"{what}: norm-relative error {found.norm:.2e} (allowed {tolerance.norm:.0e}), "
        f"worst element {found.worst:.2e} (allowed {tolerance.worst:.0e})"
    )


def assert_same(what: str, actual: Tensor, expected: Tensor) -> None:
    """Fail unless both are equal bit for bit; a NaN equals a NaN."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} elements differ"


def owed(do: Tensor) -> float:
    """The size of what a weight is owed: do·v less do·o, which are equal where a query sees one key."""
    return rms(do) * do.shape[-1] ** 0.5 / 8


def rms(x: Tensor) -> float:
    """The root mean square of the elements."""
    return float(x.detach().double().square().mean().sqrt())
