"""What generated modules make features with: of queries or keys [B,T,H,D], token by token.

All but learned projections is computed in float32, or in float64 where that is given.  Functions of PyTorch
that compute so inside round their results once, to the dtype of what they get; the others give float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Map = Callable[..., Tensor]


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def projected(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W + b with a `weight` [H,D,F] and a `bias` [H,F] for each head, in `dtype`, rounded once."""
    rows = x.to(dtype).permute(2, 0, 1, 3).flatten(1, 2)
    weight = weight.to(dtype)
    y = rows @ weight if bias is None else torch.baddbmm(bias.to(dtype).unsqueeze(1), rows, weight)
    return y.unflatten(1, x.shape[:2]).permute(1, 2, 0, 3)


def random_products(x: Tensor, random: Tensor) -> Tensor:
    """x Ω, for `random` [D,F]."""
    x = wide(x)
    return x @ random.to(x.dtype)


def products_with_halves(x: Tensor, random: Tensor) -> Tensor:
    """x Ω - |x|²/2, for `random` [D,F]."""
    return random_products(x, random) - wide(x).square().sum(-1, keepdim=True) / 2


def scaled(x: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
    """γ x + β, for [H,D] of each."""
    y = wide(x) * gain
    return y if shift is None else y + shift


def softmax(x: Tensor, groups: int) -> Tensor:
    """In each of several groups of neighbours."""
    return x.softmax(-1) if groups == 1 else x.unflatten(-1, (groups, -1)).softmax(-1).flatten(-2)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x / max(|x|, eps)."""
    return functional.normalize(wide(x), dim=-1, eps=eps)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Of mean 0 and variance 1 over the features."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps)


def both_signs(x: Tensor) -> Tensor:
    """[x, -x]."""
    return torch.cat([x, -x], -1)


def products(x: Tensor, order: int) -> Tensor:
    """All products of `order` components, so weighted that products of these are powers of q·k."""
    x = wide(x)
    chosen = torch.combinations(torch.arange(x.shape[-1], device=x.device), order, with_replacement=True)
    first, *others = chosen.unbind(1)
    features, run, often = x.index_select(-1, first), torch.ones_like(first), torch.ones_like(first)
    for i, (before, index) in enumerate(itertools.pairwise((first, *others)), 2):
        features = features * x.index_select(-1, index)
        run = torch.where(index == before, run + 1, 1)  # how many of the last are alike
        often = often * i // run
    return features * often.to(x.dtype).sqrt()


def rolled_products(x: Tensor, rolls: int) -> Tensor:
    """Products of components 1 to `rolls` apart, in a circle."""
    x = wide(x)
    return torch.cat([x * x.roll(-r, -1) for r in range(1, rolls + 1)], -1)


def turned(x: Tensor, tokens: Tensor, period: int) -> Tensor:
    """[x cos θ, x sin θ], with θ a quarter of a turn after `period` tokens; `tokens` [B,T]."""
    x = wide(x)
    angle = (tokens.to(x.dtype) * (math.pi / 2 / period))[..., None, None]
    return torch.cat([x * angle.cos(), x * angle.sin()], -1)


def mapped(x: Tensor, value: Map, gradient: Map) -> Tensor:
    """φ(x), with the gradient that selects where autograd's would multiply 0 by what is not finite."""
    return _Mapped.apply(wide(x), value, gradient)


class _Mapped(torch.autograd.Function):
    """A function of every component, and its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Map, gradient: Map) -> Tensor:
        return value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.gradient = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.gradient(x, g), None, None
