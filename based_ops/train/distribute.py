"""All distribution of a training run: which rank has what of batch, sequences, heads and weights."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ArgumentValueError, PlacementError, fail
from ..layers.base import AttentionLayer
from ..models import LanguageModel
from ..models.attention import FullAttention
from .context import hand_on_states

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

INTO_HEADS = ("q_proj", "k_proj", "v_proj", "g_proj", "q_window_proj", "k_window_proj")
"""Projections of a layer whose outputs are heads."""


@dataclass(frozen=True)
class Share:
    """What this rank has of every step.

    Examples:
        >>> import torch
        >>> from based_ops.train import Share
        >>> Share().part(torch.zeros(4, 9)).shape  # one process has all of [B, T + 1]
        torch.Size([4, 9])
    """

    mesh: DeviceMesh | None = None
    """Of dimensions data, context and heads; None is one process alone."""

    def _place(self, name: str) -> tuple[int, int]:
        """Which of how many ranks this is."""
        return (0, 1) if self.mesh is None else (self.mesh.get_local_rank(name), self.mesh[name].size())

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self.mesh is None or dist.get_rank() == 0

    @property
    def sizes(self) -> dict[str, int]:
        """How many ranks share what."""
        return {name: self._place(name)[1] for name in ("data", "context", "heads")}

    @property
    def owns_weights(self) -> bool:
        """Whether weights lie in shards, of which each call makes a copy in the dtype that it computes in."""
        return self.sizes["data"] > 1

    def part(self, ids: Tensor) -> Tensor:
        """This rank's part of sequences [B,T+1], each with the token that is predicted last: [b,t+1]."""
        rank, ranks = self._place("data")
        if ids.shape[0] % ranks:
            fail(ArgumentValueError, "batch", ids.shape[0], f"a multiple of {ranks}, the ranks that share it")
        rows = ids.shape[0] // ranks
        ids = ids[rank * rows : (rank + 1) * rows]
        rank, ranks = self._place("context")
        length = ids.shape[1] - 1
        if length % ranks:
            fail(ArgumentValueError, "length", length, f"a multiple of {ranks}, the ranks of a sequence")
        tokens = length // ranks
        return ids[:, rank * tokens : (rank + 1) * tokens + 1]

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Makes gradients those of all pieces of the sequences; those of the batch are averaged already."""
        if self.sizes["context"] > 1:
            assert self.mesh is not None
            group = self.mesh.get_group("context")
            for x in gradients:
                dist.all_reduce(x, group=group)
                x /= self.sizes["context"]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a number of each rank's part."""
        if self.mesh is None:
            return x
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    def computing(self) -> AbstractContextManager[None]:
        """Around a call and its backward pass."""
        if self.sizes["heads"] == 1:
            return nullcontext()
        from torch.distributed.tensor.experimental import implicit_replication

        return implicit_replication()


def distribute(
    model: nn.Module,
    data: int = 1,
    context: int = 1,
    heads: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> Share:
    """Shares a model, in place, among data · context · heads ranks, and says what this rank has.

    - `heads` ranks have the heads of each layer of attention among them (tensor parallelism on `DTensor`s);
      everything else every one of them has, and computes.
    - `context` ranks have pieces of each sequence, and hand the mixers' states on (`train.context`).
    - `data` ranks have sequences of their own, and shards of all weights (FSDP2, arXiv 2304.11277): float32
      as they lie, in `dtype` as they are gathered for a block, gradients summed in float32.

    `torch.distributed` is initialised, with as many ranks, unless there is one.  Raises `PlacementError` for
    a model that cannot be shared so, and for another number of ranks.

    Args:
        model: In float32, with its weights on every rank.
        data: Ranks that have sequences of their own.
        context: Ranks that have pieces of sequences.
        heads: Ranks that have heads of their own.
        dtype: In which gathered weights compute.
        device: `cuda` or `cpu`.

    Raises:
        ArgumentValueError: the product is not the number of ranks, or does not divide heads.
        PlacementError: a layer cannot be shared so, such as full attention by `context`.

    Examples:
        >>> import torch, torch.distributed as dist
        >>> from based_ops import models
        >>> from based_ops.train import distribute
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = models.LanguageModel("based-tiny")
        >>> distribute(net, dtype=torch.float32, device="cpu").sizes
        {'data': 1, 'context': 1, 'heads': 1}
        >>> dist.destroy_process_group()
    """
    wanted = {"data": data, "context": context, "heads": heads}
    for name, ranks in wanted.items():
        if ranks < 1:
            fail(ArgumentValueError, name, ranks, "1 or more")
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if data * context * heads != world:
        got = " · ".join(f"{name} {ranks}" for name, ranks in wanted.items())
        fail(PlacementError, "data, context, heads", got, f"{world} ranks together, as there are")
    if world == 1:
        return Share()
    if not isinstance(model, LanguageModel):
        fail(PlacementError, "model", type(model).__name__, "a LanguageModel")
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device, tuple(wanted.values()), mesh_dim_names=tuple(wanted))
    if heads > 1:
        _share_heads(model, mesh["heads"])
    if context > 1:
        hand_on_states(model, mesh.get_group("context"), mesh["heads"] if heads > 1 else None)
    if data > 1:
        _shard_weights(model, mesh["data"], dtype)
    return Share(mesh)


def _share_heads(model: LanguageModel, mesh: DeviceMesh) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan: dict[str, Any] = {}
    for i, block in enumerate(model.blocks):
        mixer: Any = block.mixer
        if not isinstance(mixer, AttentionLayer | FullAttention):
            continue
        for name in ("heads", "kv_heads"):
            if getattr(mixer, name) % mesh.size():
                must = f"a multiple of {mesh.size()}, the ranks that share heads"
                fail(PlacementError, f"blocks.{i}.mixer.{name}", getattr(mixer, name), must)
        ours = isinstance(mixer, AttentionLayer)
        for name, _ in mixer.named_children():
            into = ColwiseParallel(use_local_output=not ours)
            plan[f"blocks.{i}.mixer.{name}"] = into if name in INTO_HEADS else RowwiseParallel()
        if not ours:  # PyTorch's attention takes the heads of one rank as they come
            mixer.heads //= mesh.size()
            mixer.kv_heads //= mesh.size()
        for name, x in [*mixer.named_parameters(recurse=False), *mixer.named_buffers(recurse=False)]:
            own = distribute_tensor(x.detach(), mesh, [Shard(0)])  # numbers of heads
            setattr(mixer, name, nn.Parameter(own) if isinstance(x, nn.Parameter) else own)
    if not plan:
        what = f"1: {model.spec.name} has no layer whose heads could be shared"
        fail(PlacementError, "heads", mesh.size(), what)
    parallelize_module(model, mesh, plan)


def _shard_weights(model: LanguageModel, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    wide = torch.promote_types(dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
