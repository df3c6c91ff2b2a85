"""Processes that share a run, by batch, by sequence and by heads, against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import two_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")


def test_two_ranks_are_one(tmp_path: Path) -> None:
    two_ranks.run("tests.train.ranks", tmp_path / "meeting", timeout=300)


def test_four_ranks_are_one(tmp_path: Path) -> None:
    """By two of these together."""
    two_ranks.run("tests.train.four_ranks", tmp_path / "meeting", timeout=300, count=4)
