"""Processes that share a run, by batch, by sequence and by heads, against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from based_ops.train import Trainer
from tests import two_ranks

from .runs import TINY, model, settings, text

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")


def test_two_ranks_are_one(tmp_path: Path) -> None:
    two_ranks.run("tests.train.ranks", tmp_path / "meeting", timeout=300)


def test_four_ranks_are_one(tmp_path: Path) -> None:
    """By two of these together."""
    two_ranks.run("tests.train.four_ranks", tmp_path / "meeting", timeout=300, count=4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees fewer than two CUDA devices")
def test_two_gpus_are_one(tmp_path: Path) -> None:
    two_ranks.run("tests.train.gpu_ranks", tmp_path / "meeting", timeout=500)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_a_gpu_learns_as_a_cpu_does(name: str, compiled: bool) -> None:
    def losses(device: str) -> list[float]:
        net = model(name, torch.float32).to(device)
        recipe = settings(dtype="bfloat16", length=128)
        trainer = Trainer(net, text(), recipe, compiled=compiled and device == "cuda")
        return [x.loss for x in trainer.run(every=1)]

    assert losses("cuda") == pytest.approx(losses("cpu"), rel=3e-2)
