"""What each of two processes does on a GPU of its own: `python -m tests.train.gpu_ranks RANK FILE`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from based_ops.train import Trainer, distribute

from .ranks import losses
from .runs import model, settings, text

SHARES: tuple[dict[str, int], ...] = ({"data": 2}, {"context": 2}, {"heads": 2})


def main(rank: int, file: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    words, folder = text(), Path(file).parent
    for dtype, tolerance in (("float32", 2e-3), ("bfloat16", 3e-2)):
        recipe = settings(dtype=dtype)
        want = losses(Trainer(model("based-tiny", torch.float32).cuda(), words, recipe), 4)
        for how in SHARES:
            two = _shared(how, dtype)
            got = losses(two, 2)
            two.save(folder / f"{dtype} {how}")
            again = _shared(how, dtype)
            assert again.resume(folder / f"{dtype} {how}") == 2
            assert got + losses(again, 2) == pytest.approx(want, rel=tolerance), (dtype, how)
    dist.destroy_process_group()
    print("fine")


def _shared(how: dict[str, int], dtype: str) -> Trainer:
    net = model("based-tiny", torch.float32).cuda()
    recipe = settings(dtype=dtype)
    return Trainer(net, text(), recipe, distribute(net, **how, dtype=getattr(torch, dtype)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
