"""Calls of every kind under Triton's interpreter: far apart, not finite, packed, in steps, in groups."""

from __future__ import annotations

from tests.kernels.interpreted import assert_modules_pass


def test_calls_under_the_interpreter() -> None:
    assert_modules_pass(
        "test_offsets",
        "test_not_finite",
        "test_packed",
        "test_steps",
        "test_replay",
        "test_groups",
        "test_monomials",
        "test_parts",
    )
