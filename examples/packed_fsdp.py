"""Train on documents of any lengths, packed, with weights in shards: FSDP2 without padding and without masks.

    torchrun --nproc-per-node 2 examples/packed_fsdp.py docs        # on CPUs by gloo, on GPUs by NCCL

Each process lays documents behind each other in one row and says where they begin (`cu_seqlens`).  A state
never crosses from one into the next, so nothing is learned across their ends.  `train_lm.py` is a whole
training program.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from based_ops import models


def documents(folder: Path, most: int) -> list[Tensor]:
    """The paragraphs of all text under a folder as bytes, up to `most` of each."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))]
    found = [torch.tensor(list(part.encode()))[:most] for text in texts for part in text.split("\n\n")]
    if not (longer := [x for x in found if len(x) > 1]):
        raise SystemExit(f"{folder}: no text in Markdown")
    return longer


def packed(pool: list[Tensor], tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [1,T], what comes next (-100: a document ends), and where documents begin, int32 [N+1]."""
    chosen: list[Tensor] = []
    while sum(map(len, chosen)) < tokens:
        chosen.append(pool[int(torch.randint(len(pool), (), generator=generator))])
    targets = [torch.cat([x[1:], x.new_tensor([-100])]) for x in chosen]
    starts = torch.tensor([0, *map(len, chosen)]).cumsum(0).clamp(max=tokens).to(torch.int32)
    return torch.cat(chosen)[:tokens].unsqueeze(0), torch.cat(targets)[:tokens], starts


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on packed documents with FSDP2.")
    parser.add_argument("text", type=Path, help="a folder of Markdown")
    parser.add_argument("--model", default="based-tiny", help="a shipped model's name, or a spec file")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, in each process")
    given = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same weights everywhere, before each keeps its shard
    net = models.LanguageModel(given.model, device=device)
    mesh = init_device_mesh(device, (ranks,))
    computing = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if cuda else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in net.blocks:
        fully_shard(block, mesh=mesh, mp_policy=computing)
    fully_shard(net, mesh=mesh, mp_policy=computing)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    pool = documents(given.text, given.tokens // 2)
    generator = torch.Generator().manual_seed(1 + rank)  # documents of its own in each process
    for step in range(1, given.steps + 1):
        ids, targets, starts = (x.to(device) for x in packed(pool, given.tokens, generator))
        logits, _ = net(ids, cu_seqlens=starts)
        loss = cross_entropy(logits[0].float(), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of all shards, on every rank
        if rank == 0 and (step % 10 == 0 or step in (1, given.steps)):
            print(
                f"step {step}  {len(starts) - 1} documents  loss {mean / ranks:.3f}  norm {whole:.2f}",
                flush=True,
            )
    if rank == 0:
        shards = [x.to_local() for x in net.parameters() if isinstance(x, DTensor)]
        every = sum(x.numel() for x in net.parameters())
        print(f"rank 0 of {ranks} keeps {sum(x.numel() for x in shards):,} of {every:,} numbers")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
