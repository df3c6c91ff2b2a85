"""The Triton kernels under Triton's interpreter: in another process, as Triton is imported for it or not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.kernels.runners import interpreting


@pytest.mark.skipif(interpreting(), reason="this is that process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
@pytest.mark.parametrize(
    "module",
    [
        "test_linear_attention",
        "test_delta",
        "test_turned",
        "test_sliding_window",
        "test_hybrid",
        "test_short_conv",
        "test_short_conv_packed",
        "test_long_conv",
        "test_state_space",
        "test_offsets",
        "test_special_values",
        "test_not_finite",
        "test_kept_bits",
        "test_packed",
        "test_steps",
        "test_replay",
        "test_groups",
        "test_monomials",
        "test_parts",
    ],
)
def test_triton_under_its_interpreter(module: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--hypothesis-profile",
        "quick",
        f"tests/kernels/{module}.py",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
