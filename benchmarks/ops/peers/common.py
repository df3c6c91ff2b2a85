"""What the adapters of peers share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..contender import Call, Results
from ..inputs import Inputs
from ..works import Work


def is_taylor(work: Work) -> bool:
    """Whether the layer is the second-order Taylor linear attention, without decay or delta rule."""
    spec = work.spec
    return (
        spec.mixer == "linear_attention"
        and spec.decay == "none"
        and not work.corrects
        and spec.feature_map.kind == "taylor_exp"
        and spec.feature_map.order == 2
    )


def is_plain_convolution(work: Work) -> bool:
    """Whether the layer is a short convolution and its SiLU, with a bias and without a gate."""
    spec = work.spec
    return bool(spec.mixer == "short_conv" and spec.activation == "silu(x)" and spec.bias and not spec.gate)


def taylor_features(x: Tensor, scale: float) -> Tensor:
    """1, x and all products of two components, [..., 1 + D + D²]: their dot product is 1 + s + s²/2."""
    x = x * scale**0.5
    pairs = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, pairs], dim=-1)


def sequence_call(
    work: Work,
    inputs: Inputs,
    leaves: tuple[Tensor, ...],
    forward: Callable[..., Tensor],
    count: int | None = None,
) -> Call:
    """The call of a sequence's work: `forward(*leaves)`, with its backward for training.

    Gradients are of all leaves, and those of the first `count` are results.
    """
    if work.task == "forward":
        return lambda: (forward(*leaves),)

    def train() -> Results:
        o = forward(*leaves)
        return torch.autograd.grad(o, leaves, inputs.weight.view(o.shape))[:count]

    return train
