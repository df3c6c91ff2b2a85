"""What queries and keys go through, part by part, as the spec says it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .feature_maps import elementwise

if TYPE_CHECKING:
    from based_ops.codegen.spec.featured import Side


def features(side: Side, x: Tensor, parameters: Mapping[str, Tensor], tokens: Tensor | None) -> Tensor:
    """Features [B,T,H,F] of x [B,T,H,D], in x's precision; `tokens` [B,T] are the numbers of tokens."""
    read = iter([parameters[parameter.name].to(x.dtype) for parameter in side.parameters])
    return _through(side.parts, x, read, tokens)


def _through(parts: Any, x: Tensor, read: Iterator[Tensor], tokens: Tensor | None) -> Tensor:
    for part in parts:
        if part.kind == "branches":
            branches = [_through(branch, x, read, tokens) for branch in part.of]
            x = _joined(part.join, branches)
        else:
            x = _after(part, x, read, tokens)
    return x


def _joined(join: str, branches: list[Tensor]) -> Tensor:
    if join == "concatenate":
        return torch.cat(branches, -1)
    stacked = torch.stack(branches)
    return stacked.sum(0) if join == "add" else stacked.prod(0)


def _after(part: Any, x: Tensor, read: Iterator[Tensor], tokens: Tensor | None) -> Tensor:
    match part.kind:
        case "projection":
            weight = next(read)
            heads = [x[:, :, h] @ weight[h] for h in range(x.shape[2])]
            y = torch.stack(heads, 2) if heads else x.new_zeros(*x.shape[:3], part.features)
            return y + next(read) if part.bias else y
        case "random_projection":
            y = torch.einsum("bthd,df->bthf", x, next(read))
            return y - (x * x).sum(-1, keepdim=True) / 2 if part.half_squares else y
        case "affine":
            y = next(read) * x
            return y + next(read) if part.bias else y
        case "elementwise":
            return elementwise(part.expression, x)
        case "softmax":
            groups = x.chunk(part.groups, -1)
            raised = [(group - group.amax(-1, keepdim=True)).exp() for group in groups]
            return torch.cat([e / e.sum(-1, keepdim=True) for e in raised], -1)
        case "l2_norm":
            return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=part.eps)
        case "layer_norm":
            from_mean = x - x.mean(-1, keepdim=True)
            return from_mean / (from_mean.square().mean(-1, keepdim=True) + part.eps).sqrt()
        case "signs":
            return torch.cat([x, -x], -1)
        case "products":
            chosen = [*itertools.combinations_with_replacement(range(x.shape[-1]), part.order)]
            often = [
                math.factorial(part.order) / math.prod(map(math.factorial, Counter(c).values()))
                for c in chosen
            ]
            return torch.stack(
                [n**0.5 * x[..., list(c)].prod(-1) for n, c in zip(often, chosen, strict=True)], -1
            )
        case "rolled_products":
            width = x.shape[-1]
            far = [(torch.arange(width, device=x.device) + r) % width for r in range(1, part.rolls + 1)]
            return torch.cat([x * x[..., places] for places in far], -1)
        case "positions":
            assert tokens is not None
            theta = (math.pi * tokens.to(x.dtype) / (2 * part.period))[:, :, None, None]
            return torch.cat([x * theta.cos(), x * theta.sin()], -1)
    raise ValueError(f"not a part: {part!r}")
