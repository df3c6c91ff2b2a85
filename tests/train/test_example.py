"""examples/train_lm.py: trains, stops, goes on, by one process and by two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from based_ops import models

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_lm.py"
RECIPE = ("--batch", 4, "--length", 64, "--warmup", 2, "--dtype", "float32", "--every", 1)


def train(*words: object, ranks: int = 1, code: int = 0) -> str:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    command = [sys.executable, *start, EXAMPLE, *words, *RECIPE]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # whoever shares the cores
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=alone, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def losses(output: str) -> dict[int, str]:
    return {int(step): loss for step, loss in re.findall(r"^step (\d+)/\d+  loss (\S+)", output, re.M)}


def test_a_run_is_stopped_and_goes_on(tmp_path: Path) -> None:
    whole = train("based-tiny", "docs", "--out", tmp_path / "whole", "--steps", 4, "--save-every", 2)
    assert list(losses(whole)) == [1, 2, 3, 4] and "held out: loss" in whole
    (step,) = (tmp_path / "whole").glob("step-*")
    assert step.name == "step-00000004"
    again = train("based-tiny", "docs", "--out", tmp_path / "whole", "--steps", 6)
    assert "goes on after step 4" in again and list(losses(again)) == [5, 6]
    net = models.load(tmp_path / "whole" / "model")
    assert torch.isfinite(net(torch.tensor([[1, 2, 3]]))[0]).all()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_two_processes(tmp_path: Path) -> None:
    one = losses(train("based-tiny", "docs", "--out", tmp_path / "one", "--steps", 3))
    two = losses(train("based-tiny", "docs", "--out", tmp_path, "--steps", 3, "--context", 2, ranks=2))
    assert list(map(float, two.values())) == pytest.approx(list(map(float, one.values())), abs=2e-3)


def test_pairs(tmp_path: Path) -> None:
    found = train("hybrid-tiny", "docs", "--out", tmp_path, "--steps", 2, "--vocabulary", 500)
    assert list(losses(found)) == [1, 2]
    assert models.load(tmp_path / "model").spec.vocabulary == 504
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_errors_are_a_line(tmp_path: Path) -> None:
    error = train("based-tiny", tmp_path, "--out", tmp_path / "run", "--steps", 2, code=1)
    assert error.startswith("folder: got ") and error.count("\n") == 1
