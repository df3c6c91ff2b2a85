"""Products of a model that generates: of one row, each is one kernel with the norm before it.

What a compiler makes of a norm and a product is two kernels, since the second waits for the first's sum.  But
a norm divides its row by one number, which may as well divide the product:

    W·(g∘x / r) = W·(g∘x) / r,   r² = mean(x²) + eps.

So written, both are sums over the row, and every program of the product takes both, of which the second is
nothing beside reading W.  A bias, and the gate of an MLP, follow in the same kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..layers.base import AttentionLayer
from ..mixers.short_conv import GatedShortConv
from .attention import FullAttention
from .blocks import Block, SwiGLU, normed
from .language_model import LanguageModel

LEAVING = ("o_proj", "out_proj")
"""Products of a mixer that read what it has mixed; all others read its input."""


def merge_norms(model: LanguageModel) -> LanguageModel:
    """Puts the norm of each layer into the products that read it, in place; returns `model`.

    For inference, and after `merge_projections`: weights have other names in the model's state dict, so load
    and save it before.  Steps that are compiled for one row have a kernel for each product then, and nothing
    else besides their mixers.  What is computed stays the same.

    Args:
        model: Whose layers are changed: those of attention, of linear attention and of gated convolutions,
            and every MLP.

    Examples:
        >>> from based_ops import models
        >>> net = models.merge_norms(models.merge_projections(models.LanguageModel("based-tiny")))
        >>> any(name.endswith("in_proj.norm.weight") for name in net.state_dict())
        True
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        if (
            isinstance(block.mixer, GatedShortConv | AttentionLayer | FullAttention)
            and block.norm1 is not None
        ):
            for name, layer in list(block.mixer.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(block.mixer, name, Product(layer, None if name in LEAVING else block.norm1))
            block.norm1 = None
        if isinstance(block.mlp, SwiGLU) and block.norm2 is not None:
            block.mlp, block.norm2 = GatedProducts(block.mlp, block.norm2), None
    return model


class Product(nn.Module):
    """A linear layer of what its norm makes of the residual stream, or of its input where it has none."""

    def __init__(self, linear: nn.Linear, norm: nn.RMSNorm | None = None) -> None:
        super().__init__()
        self.linear, self.norm = linear, norm

    @property
    def weight(self) -> Tensor:
        """As of a linear layer."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if not is_one_row(x):
            y: Tensor = self.linear(normed(self.norm, x))
            return y
        (y,) = sums(x, [self.weight], self.norm)
        if self.linear.bias is not None:
            y = y + self.linear.bias
        return _kept(y, self.weight, x)


class GatedProducts(nn.Module):
    """An MLP with the norm before it."""

    def __init__(self, mlp: SwiGLU, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = mlp.fc1, norm, Product(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to the same shape."""
        if is_one_row(x):
            a, b = sums(x, self.fc1.weight.chunk(2), self.norm)
            y = _kept(a * silu(b), self.fc1.weight, x)
        else:
            a, b = self.fc1(normed(self.norm, x)).chunk(2, dim=-1)
            y = a * silu(b)
        found: Tensor = self.fc2(y)
        return found


def is_one_row(x: Tensor) -> bool:
    """Whether a compiler makes kernels of these sums; as PyTorch runs them they would copy the weights."""
    return torch.compiler.is_dynamo_compiling() and x.is_cuda and x.numel() == x.shape[-1]


def sums(x: Tensor, weights: Sequence[Tensor], norm: nn.RMSNorm | None) -> list[Tensor]:
    """Each of some weights [M,N] times the one row x [...,N], normed, in float32 (or float64): [M]."""
    x = x.flatten()
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    row = x if norm is None else x * norm.weight
    found = [(weight * row).sum(-1) for weight in weights]
    if norm is None:
        return found
    assert norm.eps is not None
    # As many sums as there are outputs: those of one loop are of one shape.
    squares = (x * x).expand_as(weights[0]).sum(-1)
    factor = torch.rsqrt(squares / x.shape[0] + norm.eps)
    return [y * factor for y in found]


def _kept(y: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """y [M] as outputs of x, in memory.

    Inductor takes `as_strided` only of what is in memory: otherwise each reader of a part would be a kernel
    that copies it, and whoever reads all of it in a loop would compute it anew in every program.
    """
    y = y.to(weight.dtype)
    return y.as_strided(y.shape, y.stride()).view(*x.shape[:-1], -1)
