"""Two processes that share a model, by batches and by heads, against one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")


def test_two_ranks_are_one(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.models.ranks"]
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(tmp_path / "meeting")],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for out, err in results:
        assert out.endswith("fine\n"), err
