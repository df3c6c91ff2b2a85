"""Layers of flash-linear-attention, where that is installed and there is a CUDA device."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackendUnavailable, fail_text
from ..extras import installed
from .recipe import DEVIATION

PEERS: dict[str, dict[str, Any]] = {
    "gla": {"heads": 1, "expand_k": 100},
    "deltanet": {"heads": 1},
    "gated_deltanet": {"heads": 1},
    "mamba": {"state": 16},
}
"""By name: their dials.  `expand_k` is in percent of the width."""


def _made(name: str, d: int, dials: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def of(kind: str, **options: Any) -> Callable[[], nn.Module]:
        found = getattr(importlib.import_module("fla.layers"), kind)
        return lambda: found(hidden_size=d, **options)

    match name:
        case "gla":
            return of("GatedLinearAttention", num_heads=dials["heads"], expand_k=dials["expand_k"] / 100)
        case "deltanet":
            return of("DeltaNet", num_heads=dials["heads"])
        case "gated_deltanet":
            heads = dials["heads"]
            return of("GatedDeltaNet", num_heads=heads, head_dim=d // heads, expand_v=1)
        case _:
            return of("Mamba", state_size=dials["state"], intermediate_size=2 * d)


def _bytes(name: str, d: int, dials: Mapping[str, Any]) -> int:
    """Of the recurrent state, as Zoology counts: four bytes a number, convolutions left out."""
    if name == "mamba":
        return 4 * 2 * d * dials["state"]
    heads = dials["heads"]
    keys = d * dials["expand_k"] // 100 if name == "gla" else d
    return 4 * keys * d // heads


OTHERS = "`--models` chooses models without it; `based-ops recall models` lists them"


def peer(name: str, d: int, dials: Mapping[str, Any]) -> Callable[[int], nn.Module]:
    """The layer, of so many models; raises `BackendUnavailable` where it cannot run."""
    if not installed("fla"):
        fail_text(
            BackendUnavailable, f"{name}: pip install flash-linear-attention, whose layer this is", OTHERS
        )
    if not torch.cuda.is_available():
        fail_text(
            BackendUnavailable, f"{name}: its library runs on CUDA devices, and PyTorch sees none", OTHERS
        )
    make = _made(name, d, dials)
    return lambda models: Apart(make, models, _bytes(name, d, dials))


class Apart(nn.Module):
    """Models one after the other: of layers that nothing is known of."""

    def __init__(self, make: Callable[[], nn.Module], models: int, state: int) -> None:
        super().__init__()
        self.models, self.bytes = models, state
        made = [make() for _ in range(models)]
        for each in made:
            for part in each.modules():
                if isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=DEVIATION)
        object.__setattr__(self, "template", made[0])  # whose own parameters train nobody
        of_each = [dict(each.named_parameters()) for each in made]
        self.names = list(of_each[0])
        stacked = [torch.stack([each[name].detach() for each in of_each]) for name in self.names]
        self.stacked = nn.ParameterList(stacked)

    def forward(self, x: Tensor) -> Tensor:
        template: Any = self.__dict__["template"].to(x.device)
        found = []
        for number, part in enumerate(x.chunk(self.models, -1)):
            own = {name: every[number] for name, every in zip(self.names, self.stacked, strict=True)}
            y = torch.func.functional_call(template, own, (part.contiguous(),))
            found.append(y[0] if isinstance(y, tuple) else y)
        return torch.cat(found, -1)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the recurrent states of `batch` sequences."""
        return batch * self.bytes
