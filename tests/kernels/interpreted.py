"""Triton kernels under Triton's interpreter: in another process, as Triton is imported for it or not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.kernels.runners import interpreting


def assert_modules_pass(*modules: str) -> None:
    """All in one process: they share its imports and the layers that it has built."""
    if interpreting():
        pytest.skip("this is that process")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the package triton is not installed")
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
        *(f"tests/kernels/{module}.py" for module in modules),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
