"""What each of two processes does for `test_ranks.py`: `python -m tests.models.ranks RANK FILE`."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from based_ops.generate import Engine, Sampling
from based_ops.models import LanguageModel, shipped

TINY = [name for name in shipped() if name.endswith("tiny")]


def model(name: str) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(name, dtype=torch.float64)
    for x in made.parameters():
        if x.dim() > 1:
            x.data.mul_(4.0)
    return made


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def full(x: Any) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def same_gradients(two: LanguageModel, one: LanguageModel) -> None:
    for (name, x), y in zip(two.named_parameters(), one.parameters(), strict=True):
        assert_close(full(x.grad), y.grad, msg=lambda text, name=name: f"{one.spec.name} {name}: {text}")


def batches(name: str, rank: int) -> None:
    """Weights in shards, half of the batch each: logits, loss and gradients are those of one process."""
    one, two = model(name), model(name)
    torch.manual_seed(1)
    ids = torch.randint(256, (4, 24))
    logits, _ = one(ids)
    whole = loss(logits, ids)
    whole.backward()
    for block in two.blocks:
        fully_shard(block)
    fully_shard(two)
    mine = ids.chunk(2)[rank]
    got, _ = two(mine)
    assert_close(got, logits.chunk(2)[rank], msg=lambda text: f"{name}: {text}")
    part = loss(got, mine)
    part.backward()
    total = part.detach().clone()
    dist.all_reduce(total)
    assert_close(total / 2, whole.detach())
    assert all(isinstance(x.grad, DTensor) for x in two.parameters())
    same_gradients(two, one)


def heads(name: str, mesh: DeviceMesh) -> None:
    """Half of the heads each, from the projections to their sum."""
    one, two = model(name), model(name)
    torch.manual_seed(1)
    ids = torch.randint(256, (2, 24))
    logits, state = one(ids, output_state=True)
    loss(logits, ids).backward()
    plan = {}
    for i, block in enumerate(two.blocks):
        for part in ("q_proj", "k_proj", "v_proj"):
            if hasattr(block.mixer, part):
                plan[f"blocks.{i}.mixer.{part}"] = ColwiseParallel(use_local_output=False)
        if hasattr(block.mixer, "o_proj"):
            plan[f"blocks.{i}.mixer.o_proj"] = RowwiseParallel()
    assert plan
    parallelize_module(two, mesh, plan)
    with implicit_replication():
        got, end = two(ids, output_state=True)
        loss(got, ids).backward()
        sharded = [x for part in end for x in part if isinstance(x, DTensor)]
        assert sharded
        for before, after in zip(state, end, strict=True):
            for x, y in zip(before, after, strict=True):
                if x is not None:
                    assert_close(full(y), x, msg=lambda text: f"{name}: state: {text}")
    assert_close(full(got), logits, msg=lambda text: f"{name}: {text}")
    same_gradients(two, one)


def requests(name: str, rank: int) -> None:
    """Every second request each."""
    prompts = [[n + 1] * (n + 1) for n in range(5)]

    def serve(numbers: range) -> dict[int, list[int]]:
        engine = Engine(model(name), slots=2, most=64)
        asked = {n: engine.submit(prompts[n], Sampling(1.0, seed=n), most=6) for n in numbers}
        while engine.busy:
            engine.step()
        return {n: request.tokens for n, request in asked.items()}

    found: list[dict[int, list[int]]] = [{}, {}]
    dist.all_gather_object(found, serve(range(rank, len(prompts), 2)))
    assert found[0] | found[1] == serve(range(len(prompts)))


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (2,))
    for name in TINY:
        batches(name, rank)
        requests(name, rank)
    for name in ("based-tiny", "hybrid-tiny"):
        heads(name, mesh)
    dist.destroy_process_group()
    print("fine")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
