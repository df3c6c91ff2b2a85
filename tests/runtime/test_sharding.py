"""Distributed tensors, in two processes that compare what they find with calls of whole tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import two_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")


def test_two_processes(tmp_path: Path) -> None:
    two_ranks.run("tests.runtime.ranks", tmp_path / "meeting", timeout=300)
