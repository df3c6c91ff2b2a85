"""What each of two processes does for `test_ranks.py`: `python -m tests.models.ranks RANK FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from based_ops.generate import Engine, Sampling
from based_ops.models import LanguageModel, shipped

TINY = [name for name in shipped() if name.endswith("tiny")]


def made(name: str) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(name, dtype=torch.float64)


def replicated(net: LanguageModel) -> nn.Module:
    return DistributedDataParallel(net)


def sharded(net: LanguageModel) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def trained(name: str, rank: int, spread: Callable[[LanguageModel], nn.Module]) -> None:
    """Each rank has half of a batch: logits of it, and gradients of the mean of both halves' losses."""
    ids = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(1))

    def run(net: nn.Module, part: Tensor) -> Tensor:
        logits: Tensor = net(part[:, :-1])[0]
        cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()).backward()
        return logits

    whole, own = made(name), made(name)
    want = run(whole, ids)
    mine = slice(2 * rank, 2 * rank + 2)
    assert_close(run(spread(own), ids[mine]), want[mine], rtol=1e-9, atol=1e-9)
    for (label, x), y in zip(own.named_parameters(), whole.parameters(), strict=True):
        got = x.grad.full_tensor() if isinstance(x.grad, DTensor) else x.grad
        assert_close(got, y.grad, rtol=1e-9, atol=1e-9, msg=lambda text, label=label: f"{label}: {text}")


def generated(name: str, rank: int) -> None:
    """Each rank serves every second request."""
    prompts = [[n + 1] * (n + 1) for n in range(5)]

    def serve(numbers: range) -> dict[int, list[int]]:
        engine = Engine(made(name), slots=2, most=64)
        made_here = {n: engine.submit(prompts[n], Sampling(1.0, seed=n), most=6) for n in numbers}
        while engine.busy:
            engine.step()
        return {n: request.tokens for n, request in made_here.items()}

    found: list[dict[int, list[int]]] = [{}, {}]
    dist.all_gather_object(found, serve(range(rank, len(prompts), 2)))
    assert found[0] | found[1] == serve(range(len(prompts)))


if __name__ == "__main__":
    rank = int(sys.argv[1])
    torch.set_num_threads(1)
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{sys.argv[2]}", limit, rank=rank, world_size=2)
    for name in TINY:
        for spread in (replicated, sharded):
            trained(name, rank, spread)
        generated(name, rank)
    dist.destroy_process_group()
    print("fine")
