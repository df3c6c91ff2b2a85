"""Queries, keys and values of a layer: one matrix each, or for inference one for all three."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAMES = ("q_proj", "k_proj", "v_proj")


def projected(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [..., heads · width] of x, as the layer's weights stand."""
    if "qkv_proj" in layer._modules:
        q, k, v = layer.qkv_proj(x).split(layer.qkv_widths, -1)
        return q, k, v
    return layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)


def has_projections(layer: nn.Module) -> bool:
    """Whether it has three that could be one."""
    return all(isinstance(getattr(layer, name, None), nn.Linear) for name in NAMES)


@torch.no_grad()
def merge(layer: Any) -> None:
    """Puts one projection, `qkv_proj`, in the place of the three; its weight takes no gradient."""
    parts = [getattr(layer, name) for name in NAMES]
    weight = torch.cat([part.weight for part in parts])
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=False)
    layer.qkv_widths = tuple(part.out_features for part in parts)
    for name in NAMES:
        delattr(layer, name)
    layer.qkv_proj = merged
