"""What each of four processes does for `test_ranks.py`: `python -m tests.train.four_ranks RANK FILE`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from .ranks import alike, checkpoints
from .runs import text


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=4, timeout=timedelta(seconds=120)
    )
    words = text()
    for shares in (
        {"data": 2, "context": 2},
        {"data": 2, "heads": 2},
        {"context": 2, "heads": 2},
        {"context": 4},
    ):
        alike("based-tiny", shares, words)
    checkpoints(words, Path(file).parent / "run", {"data": 2, "heads": 2})
    dist.destroy_process_group()
    print("fine")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
