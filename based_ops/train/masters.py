"""The optimiser: AdamW on masters in float32 of what a rank has of each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..layers.timescales import MOST, timescales
from ..sharding import is_distributed
from .settings import Settings

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Master:
    """A parameter, and the numbers that are trained in its place: of a shard, this rank's own."""

    parameter: nn.Parameter
    value: Tensor
    """Of float32, or float64 where the parameter is; a float32 parameter's own memory."""


class Masters:
    """AdamW (arXiv 1711.05101) on masters; all is elementwise, so shards need nothing of each other.

    Gradients of several backward passes add up in the masters' dtype.  Only their norm is of all ranks.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        """Of a model whose parameters still are what training begins with, in float32 or float64."""
        self.clip = settings.clip
        self.masters: dict[str, Master] = {}
        for name, parameter in model.named_parameters():
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self.masters[name] = Master(parameter, mine(parameter).detach().to(wide))
        names = set(timescales(model))
        slow = [x.value for name, x in self.masters.items() if name in names]
        rest = [x for name, x in self.masters.items() if name not in names]
        matrices = [x.value for x in rest if x.parameter.dim() > 1]
        others = [x.value for x in rest if x.parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
            {"params": slow, "weight_decay": 0.0, "most": MOST},
        ]
        self.optimizer = torch.optim.AdamW(
            [x for x in groups if x["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        for x in matrices + others + slow:  # there before the first step, for a checkpoint to be read into
            self.optimizer.state[x] = {"step": torch.zeros((), device=x.device)}
            self.optimizer.state[x] |= {moment: torch.zeros_like(x) for moment in MOMENTS}

    def compute_in(self, dtypes: dict[str, torch.dtype]) -> None:
        """The model computes in these dtypes from now on; masters keep all digits."""
        for name, master in self.masters.items():
            if master.parameter.dtype != dtypes[name]:
                rounded = nn.Parameter(master.parameter.detach().to(dtypes[name]))
                torch.utils.swap_tensors(master.parameter, rounded)  # it stays where the model has it

    @torch.no_grad()
    def gather(self) -> None:
        """Adds the parameters' gradients to the masters', and forgets them."""
        for master in self.masters.values():
            gradient = master.parameter.grad
            if gradient is None:
                continue
            found = mine(gradient).to(master.value.dtype)
            if master.value.grad is None:
                master.value.grad = found
            else:
                master.value.grad += found
            master.parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """One step of the optimiser; the norm that the gradients had, a scalar on the device."""
        norm = self._norm()
        torch._foreach_mul_(list(self.gradients()), (self.clip / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = min(lr, group.get("most", lr))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.write_back()
        return norm

    @torch.no_grad()
    def write_back(self) -> None:
        """Rounds the masters into the parameters."""
        pairs = [(mine(x.parameter), x.value) for x in self.masters.values()]
        rounded = [(x, value) for x, value in pairs if not x.is_set_to(value)]
        if rounded:
            torch._foreach_copy_([x for x, _ in rounded], [value for _, value in rounded])

    def state(self) -> dict[str, Any]:
        """What a checkpoint has: tensors of whole parameters, of which a rank holds its shard."""
        found: dict[str, Any] = {"parameters": {}} | {moment: {} for moment in MOMENTS}
        for name, master in self.masters.items():
            found["parameters"][name] = like(master.parameter, master.value)
            for moment in MOMENTS:
                found[moment][name] = like(master.parameter, self.optimizer.state[master.value][moment])
        return found

    def after(self, steps: int) -> None:
        """What `state` gave has been read into: that after so many steps."""
        for master in self.masters.values():
            self.optimizer.state[master.value]["step"].fill_(float(steps))
        self.write_back()

    def _norm(self) -> Tensor:
        """√Σ g² of all parameters, each once, whichever ranks have it."""
        parts: dict[Any, list[Tensor]] = {}
        for master in self.masters.values():
            if master.value.grad is not None:
                parts.setdefault(_shards(master.parameter), []).append(master.value.grad)
        total = torch.zeros((), device=self._device())
        for groups, gradients in parts.items():
            square = torch.stack(torch._foreach_norm(gradients)).square().sum()
            for group in groups:
                torch.distributed.all_reduce(square, group=group)
            total = total + square
        return total.sqrt()

    def gradients(self) -> Iterator[Tensor]:
        """What has been gathered: of shards, this rank's own."""
        return (x.value.grad for x in self.masters.values() if x.value.grad is not None)

    def _device(self) -> torch.device:
        return next(iter(self.masters.values())).value.device


def mine(x: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return x.to_local() if is_distributed(x) else x  # type: ignore[attr-defined]


def like(whole: Tensor, part: Tensor) -> Tensor:
    """A tensor that lies as `whole` does, of which this rank has `part`."""
    if not is_distributed(whole):
        return part
    from torch.distributed.tensor import DTensor

    given: DTensor = whole  # type: ignore[assignment]
    return DTensor.from_local(
        part, given.device_mesh, given.placements, run_check=False, shape=given.shape, stride=given.stride()
    )


def _shards(x: Tensor) -> tuple[Any, ...]:
    """The groups of ranks over which a parameter is cut."""
    if not is_distributed(x):
        return ()
    given: Any = x
    # Not `is_shard`: a parameter whose heads are shared is cut a second time, by a private kind of shard.
    cut = [i for i, placement in enumerate(given.placements) if not placement.is_replicate()]
    return tuple(given.device_mesh.get_group(i) for i in cut)
