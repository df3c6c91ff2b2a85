"""The Triton kernels of every mixer, and their values, under Triton's interpreter.

A worker takes whole files: those of `test_interpreted_calls.py` take as long.
"""

from __future__ import annotations

from tests.kernels.interpreted import assert_modules_pass


def test_mixers_under_the_interpreter() -> None:
    assert_modules_pass(
        "test_linear_attention",
        "test_delta",
        "test_turned",
        "test_sliding_window",
        "test_hybrid",
        "test_short_conv",
        "test_short_conv_packed",
        "test_long_conv",
        "test_state_space",
        "test_special_values",
        "test_kept_bits",
    )
