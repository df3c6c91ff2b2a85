"""Many models of one shape as one: a model with their widths side by side, whose linear maps keep them apart.

A layer of M·d channels and M·h heads computes what M layers of d channels and h heads do, if its linear maps
are block-diagonal and its norms are of d channels each: all that stands between them, operators,
convolutions and parameters of heads, treats heads and channels one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShapeError, fail
from ..layers import Hyena, Mamba2Mixer


class _Product(torch.autograd.Function):
    """x [N,M,I] and w [M,I,O] to [N,M,O], which the product writes as it lies: PyTorch's has M in front."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return _product(x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (d,), (x, w) = gradients, ctx.saved_tensors
        return _product(d, w.transpose(1, 2)), torch.bmm(x.permute(1, 2, 0), d.transpose(0, 1))


def _product(x: Tensor, w: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[1], w.shape[2])
    torch.bmm(x.transpose(0, 1), w, out=out.transpose(0, 1))
    return out


class BlockDiagonal(nn.Module):
    """`models` linear maps side by side, [..., models·inputs] to [..., models·outputs].

    With `sections`, the outputs of one model are several things behind each other; all models' first ones
    come first then, and so on.
    """

    def __init__(
        self, models: int, inputs: int, outputs: int, bias: bool, sections: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.models, self.sections = models, tuple(sections)
        self.weight = nn.Parameter(torch.empty(models, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(models, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        w: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, w = x.to(dtype), w.to(dtype)
        y: Tensor = _Product.apply(x.reshape(-1, self.models, w.shape[1]), w)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        if self.sections:
            y = torch.cat([part.flatten(1) for part in y.split(self.sections, -1)], -1)
        return y.view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"models={self.models}, inputs={self.weight.shape[1]}, outputs={self.weight.shape[2]}"


class Norms(nn.Module):
    """A LayerNorm, or with `mean_square` an RMSNorm, over the channels of each model."""

    def __init__(self, models: int, width: int, eps: float = 1e-5, mean_square: bool = False) -> None:
        super().__init__()
        self.models, self.width, self.eps = models, width, eps
        self.weight = nn.Parameter(torch.ones(models * width))
        self.bias = None if mean_square else nn.Parameter(torch.zeros(models * width))

    def forward(self, x: Tensor) -> Tensor:
        each = x.unflatten(-1, (self.models, self.width))
        if self.bias is None:
            return nn.functional.rms_norm(each, (self.width,), eps=self.eps).flatten(-2) * self.weight
        y = nn.functional.layer_norm(each, (self.width,), eps=self.eps).flatten(-2)
        return torch.addcmul(self.bias, y, self.weight)

    def extra_repr(self) -> str:
        return f"models={self.models}, width={self.width}"


def sections(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of submodules of a layer of one model: how many channels it has of which kind, behind each other."""
    match layer:
        case Mamba2Mixer(inner=inner, groups=groups, op=op, heads=heads):
            mixed = inner, groups * op.qk, groups * op.qk
            return {"in_proj": (inner, *mixed, heads), "conv": mixed}
        case Hyena(d_model=width):
            return {"in_proj": (width,) * 3, "short": (width,) * 3}
    return {}


def keep_apart(layer: nn.Module, models: int) -> nn.Module:
    """The layer, of `models` times the channels and heads, with maps and norms that keep them apart.

    Their weights are those that a new layer has not yet been given: `start` gives them.
    """
    kinds = {name: tuple(n // models for n in numbers) for name, numbers in sections(layer).items()}
    for name, module in list(layer.named_modules()):
        match module:
            case nn.Linear(in_features=inputs, out_features=outputs):
                shape = models, inputs // models, outputs // models
                new: nn.Module = BlockDiagonal(*shape, module.bias is not None, kinds.get(name, ()))
            case nn.RMSNorm(normalized_shape=(width,), eps=eps):
                new = Norms(models, width // models, eps or 1e-5, mean_square=True)
            case _:
                continue
        if not name:
            return new
        layer.set_submodule(name, new)
    return layer


def joined(parts: Sequence[Tensor], axis: int, kinds: Sequence[int] = ()) -> Tensor:
    """One parameter of models, each given alone, as the model of all of them holds it."""
    if len({part.shape for part in parts}) > 1:
        fail(ShapeError, "parts", [list(part.shape) for part in parts], "of one shape")
    if not kinds:
        return torch.cat(list(parts), axis)
    split = (part.split(list(kinds), axis) for part in parts)
    return torch.cat([torch.cat(same, axis) for same in zip(*split, strict=True)], axis)
