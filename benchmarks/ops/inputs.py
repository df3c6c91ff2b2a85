"""Random inputs of a piece of work."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from based_ops.codegen.spec.signature import OF_KEYS, OF_STATES, OF_VALUES, Argument
from based_ops.inputs import draw, taken
from based_ops.variant import Variant

from .works import Work

SHARED = (OF_KEYS, OF_VALUES, OF_STATES)
PAST = 100
"""Tokens before an initial state; more than the window of a window that is measured by the step."""


@dataclass(frozen=True)
class Inputs:
    """What the layer takes, in the order of its signature; `weight`, the gradient of the output, if it is for
    training; the state."""

    leaves: tuple[Tensor, ...]
    weight: Tensor
    state: Any
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """What makes features, where the work is from queries and keys on."""

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """The parameters that get gradients."""
        return tuple(x for x in self.parameters.values() if x.requires_grad)

    @property
    def bytes(self) -> int:
        tensors = [*self.leaves, *self.parameters.values(), *(x for x in self.state or () if x is not None)]
        return sum(x.numel() * x.element_size() for x in tensors)


def make(work: Work, device: str, seed: int = 0) -> Inputs:
    """Normally distributed inputs; a state is that of the naive mathematics after `PAST` such tokens."""
    torch.manual_seed(seed)
    op = work.op

    def drawn(length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        def normal(shape: Sequence[int]) -> Tensor:
            return torch.randn(tuple(shape), device=device, dtype=dtype)

        made = draw(op, work.batch, length, work.heads, normal, lambda x: x)
        return tuple(_sized(work, kind, x) for kind, x in zip(taken(op), made, strict=True))

    training = work.task == "training"
    leaves = tuple(x.detach().requires_grad_(training) for x in drawn(work.length, work.torch_dtype))
    shape = work.shape(op.signature.output) if training else (0,)
    weight = torch.randn(shape, device=device, dtype=work.torch_dtype)
    state = None
    if work.task == "step" or work.state:
        # The mathematics of the past in float32, its result in what the variant keeps for these inputs.
        past = named(op, drawn(PAST, torch.float32))
        _, exact = op.reference(**past, output_final_state=True)
        kept = op.init_state(work.batch, work.heads, device=device, dtype=work.torch_dtype)
        state = type(exact)(*(x if x is None else x.to(y.dtype) for x, y in zip(exact, kept, strict=True)))
    parameters = {}
    if work.form == "featured":
        made = op.init_parameters(work.heads, device=device, dtype=work.torch_dtype)
        parameters = {name: x.requires_grad_(training and x.requires_grad) for name, x in made.items()}
    return Inputs(leaves, weight, state, parameters)


def _sized(work: Work, kind: Argument, x: Tensor) -> Tensor:
    """An input with as many heads and columns as the work gives it."""
    last = len(kind.dims) - 1
    for axis, (dim, size) in enumerate(zip(kind.dims, work.shape(kind), strict=True)):
        if (dim in SHARED or axis == last) and size != x.shape[axis]:
            x = x.narrow(axis, 0, size).contiguous()
    return x


def named(op: Variant, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
    """The inputs by the names that public functions have for them: attention's decays are `g`."""
    public = {"log_decay": "g"} if "g" in inspect.signature(op.__call__).parameters else {}
    return {public.get(kind.name, kind.name): x for kind, x in zip(taken(op), leaves, strict=True)}


def another_state(inputs: Inputs) -> Inputs:
    """The same tokens with a copy of the state."""
    state = type(inputs.state)(*(x if x is None else x.clone() for x in inputs.state))
    return replace(inputs, state=state)


def another(inputs: Inputs) -> Inputs:
    """The same numbers elsewhere in memory; of a step its state alone, which is nearly all that it reads."""
    if inputs.state is not None:
        return another_state(inputs)
    leaves = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs.leaves)
    parameters = {
        name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in inputs.parameters.items()
    }
    return Inputs(leaves, inputs.weight.clone(), None, parameters)
