"""Operations that a model's training takes at least, and the rate of products of the device it is on."""

from __future__ import annotations

import torch
from torch import nn

from ..flops import units_of
from ..layers import ImplicitConv, MultiHyena
from ..models.attention import FullAttention
from ..variant import Variant

BACKWARD = 2.0
"""Operations of a backward pass for each of the forward pass, without what is computed again."""
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense products in bfloat16, operations a second, as NVIDIA states them of SXM modules."""


def of_token(model: nn.Module, length: int) -> float:
    """Operations of a forward and a backward pass, for each token of sequences of `length`.

    A multiplication and an addition are two.  Those of products of matrices, logits included, and of mixers
    as `Variant.products` counts them; attention has the pairs that it sees, half of all, and an implicit
    convolution its filters' network besides.
    """
    total, seen = 0.0, set()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in seen:
            total += 2.0 * module.in_features * module.out_features
            seen.add(module)
        if isinstance(module, FullAttention):
            total += 2.0 * (length + 1) * module.q_proj.out_features
        elif isinstance(module, MultiHyena):
            total += 2.0 * module.d_model * module.width
        if isinstance(module, ImplicitConv):
            total += module.products(length) / length
        if isinstance(op := getattr(module, "op", None), Variant):
            total += units_of(module) * op.products(length) / length
    return (1 + BACKWARD) * total


def peak(device: torch.device) -> float | None:
    """Operations a second that a device is stated to do in bfloat16; None if that is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)
