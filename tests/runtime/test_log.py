"""The library's logger: silent by itself, and what it says when the environment asks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

SPEC = """
name: logged
mixer: linear_attention
feature_map: {kind: elementwise, expression: relu(x)}
head_dims: {qk: 8, v: 16}
"""
PROGRAM = """
import based_ops, torch
op = based_ops.load("logged.yaml")
op(torch.rand(1, 4, 2, 8), torch.rand(1, 4, 2, 8), torch.rand(1, 4, 2, 16))
"""


def said(directory: Path, **environment: str) -> str:
    """What a process that loads and calls a layer prints on standard error; nothing on standard output."""
    (directory / "logged.yaml").write_text(SPEC)
    around = {**os.environ, "BASED_OPS_CACHE": str(directory / "cache"), **environment}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, cwd=directory, env=around, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_it_is_silent_unless_asked(tmp_path: Path) -> None:
    assert "based_ops" not in said(tmp_path, BASED_OPS_LOG="")
    assert logging.getLogger("based_ops").handlers, "PyTorch's last resort would print warnings"


def test_it_says_what_is_compiled_and_what_serves_and_why(tmp_path: Path) -> None:
    first = said(tmp_path, BASED_OPS_LOG="info")
    assert "cache: logged_" in first and "is not there" in first and " took " in first
    (line,) = [line for line in first.splitlines() if "backend:" in line]
    assert "torch serves logged_" in line and "on cpu in torch.float32 (the default; triton cannot:" in line
    second = said(tmp_path, BASED_OPS_LOG="info", BASED_OPS_BACKEND="torch")
    assert "is there" in second and " took " not in second
    assert "(BASED_OPS_BACKEND asks for it)" in second
    assert "registry: " not in second and "registry: " in said(tmp_path, BASED_OPS_LOG="debug")


def test_a_word_that_is_no_level_is_warned_of(tmp_path: Path) -> None:
    text = said(tmp_path, BASED_OPS_LOG="loud")
    assert "BASED_OPS_LOG: got 'loud', must be one of debug, info, warning, error" in text
