"""What each of two processes does for `test_ranks.py`: `python -m tests.hf.ranks RANK FILE`."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from .tiny import TINY, model


def generation(name: str, rank: int) -> None:
    """Weights in shards, and half of the prompts each: tokens and logits are those of one process."""
    one, two = model(name), model(name)
    for block in two.model.blocks:
        fully_shard(block)
    fully_shard(two)
    torch.manual_seed(1)
    ids = torch.randint(256, (4, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :7] = 0
    for how in ({}, {"num_beams": 3}):
        how |= {"max_new_tokens": 6, "do_sample": False}
        want = one.generate(ids, attention_mask=mask, **how)
        mine = slice(2 * rank, 2 * rank + 2)
        got = two.generate(ids[mine], attention_mask=mask[mine], **how, synced_gpus=True)
        assert torch.equal(got, want[mine]), (name, how)
    with torch.no_grad():
        assert_close(two(ids[mine]).logits, one(ids).logits[mine])


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for name in TINY:
        generation(name, rank)
    dist.destroy_process_group()
    print("fine")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
