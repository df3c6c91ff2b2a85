"""Random inputs of a variant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from based_ops import dispatch
from based_ops.codegen.spec.signature import Argument
from based_ops.variant import Variant


def qkv(
    variant: Variant,
    batch: int = 2,
    length: int = 21,
    heads: int = 2,
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v."""
    tensors = [
        torch.randn(batch, length, heads, width, dtype=torch.float64) * 0.5
        for width in (variant.qk, variant.qk, variant.v)
    ]
    q, k, v = (tensor.to(dtype).requires_grad_(requires_grad) for tensor in tensors)
    return q, k, v


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    return [tensor for tensor in state if tensor is not None]


def meaning(layer: Variant, state: Any) -> list[Tensor]:
    """What a state says of the tokens so far: those of a ring that replays them are let into the sums."""
    kernel = dispatch.kernel(layer.core.name, None, state[0].device, torch.float32)
    return leaves(layer.core._settle(state, kernel))


def names_of(layer: Variant) -> list[str]:
    """What calls name the inputs of its signature: attention has a letter for its decays."""
    letters = hasattr(layer, "qk")
    return ["g" if x.fades and letters else x.name for x in layer.signature.inputs]


def tensors_of(
    layer: Variant, batch: int = 3, length: int = 9, dtype: torch.dtype = torch.float32, units: int = 2
) -> tuple[Tensor | None, ...]:
    """Random inputs of a variant of any mixer, as its signature has them; all that a call may give."""
    sizes: dict[Any, int] = {"B": batch, "T": length, "Tk": length, **layer.signature.alike(units)}
    shapes = [
        [sizes[dim] if isinstance(dim, str) else dim for dim in x.dims] if x.present else None
        for x in layer.signature.inputs
    ]
    drawn = [None if shape is None else torch.randn(shape, dtype=torch.float64) * 0.5 for shape in shapes]
    wide = torch.promote_types(dtype, torch.float32)

    def suited(x: Tensor, argument: Argument) -> Tensor:
        if argument.corrects:
            return x.sigmoid().to(wide)
        if argument.fades or argument.multiplies:
            return (-x.abs() if argument.fades else x.abs()).to(wide)
        return x.to(wide if argument.wide else dtype)

    return tuple(
        [
            None if x is None else suited(x, argument)
            for x, argument in zip(drawn, layer.signature.inputs, strict=True)
        ]
    )


def state_of(layer: Variant, batch: int = 3, dtype: torch.dtype = torch.float32, units: int = 2) -> Any:
    """The state after some random tokens, of each sequence and head another number where it is a ring."""
    _, state = layer._call(tensors_of(layer, batch, 9, dtype, units), None, None, True, None)
    if "position" in state._fields:
        state.position.copy_(torch.arange(3, 3 + batch * units).view(batch, units))
    return state
