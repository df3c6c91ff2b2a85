"""Random inputs of a variant, as its layer's signature describes them: for `verify`, `tune` and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from based_ops.codegen.spec.signature import Argument

from .variant import Variant

LAYOUTS = ("dense", "fused", "heads first")
"""Of tensors with tokens: by themselves; slices of one projection; heads (or channels) before tokens."""

Map = Callable[[Tensor], Tensor]


def units(variant: Variant, heads: int, channels: int = 64) -> int:
    """How many heads a call has, or channels where the mixer has none: so many for each."""
    return heads if variant.unit == "H" else heads * channels


def draw(
    variant: Variant,
    batch: int,
    length: int,
    units: int,
    normal: Callable[[Sequence[int]], Tensor],
    weighs: Map,
    layout: str = "dense",
) -> tuple[Tensor, ...]:
    """A tensor for every input that the layer takes, made of what `normal` draws for a shape.

    `weighs` maps the numbers of inputs that decide on weights, such as queries and keys.
    """
    sizes = {"B": batch, "T": length, "Tk": length, **variant.signature.alike(units)}
    inputs = taken(variant)

    def extents(dims: Sequence[int | str]) -> list[int]:
        return [dim if isinstance(dim, int) else sizes[dim] for dim in dims]

    widths = [extents(x.dims)[-1] for x in inputs]
    moving = [i for i, x in enumerate(inputs) if _moves(x) and not (x.fades or x.corrects)]
    between = extents(inputs[0].dims[:-1])
    fused = normal((*between, sum(widths[i] for i in moving)))
    parts = dict(zip(moving, fused.split([widths[i] for i in moving], dim=-1), strict=True))
    found: list[Tensor] = []
    for i, x in enumerate(inputs):
        part = parts.get(i)
        if x.fades:  # some of the state is left after a few tokens
            part = -normal(extents(x.dims)).abs() / 4
        elif x.corrects:
            part = normal(extents(x.dims)).sigmoid()
        elif x.multiplies:
            part = normal(extents(x.dims)).abs() + 0.5
        elif part is None:  # taps and the like: sums over them stay of the size of what is summed
            before = extents(x.dims[:-1])
            part = normal((*before, widths[i])) / widths[i] ** 0.5 if before else normal((widths[i],))
        elif x.weighs:
            part.copy_(weighs(part))
        if x.wide:
            part = part.to(torch.promote_types(part.dtype, torch.float32))
        found.append(part)
    for i in moving if layout != "fused" else ():
        part = found[i]
        found[i] = (
            part.contiguous() if layout == "dense" else part.transpose(1, 2).contiguous().transpose(1, 2)
        )
    return tuple(found)


def tokens(variant: Variant, inputs: Sequence[Tensor], start: int, stop: int) -> tuple[Tensor, ...]:
    """The inputs of the tokens from `start` up to `stop`."""
    pairs = zip(taken(variant), inputs, strict=True)
    return tuple(x[:, start:stop] if _moves(kind) else x for kind, x in pairs)


def taken(variant: Variant) -> list[Argument]:
    """The inputs that the layer takes."""
    return [x for x in variant.signature.inputs if x.present]


def filled(variant: Variant, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """They, and None for what it does not take."""
    left = iter(inputs)
    return tuple(next(left) if x.present else None for x in variant.signature.inputs)


def _moves(x: Argument) -> bool:
    return "T" in x.dims or "Tk" in x.dims
