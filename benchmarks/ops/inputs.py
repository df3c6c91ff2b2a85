"""Random inputs of a piece of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .works import Work

PAST = 100
"""Tokens before an initial state; more than the window of a window that is measured by the step."""


@dataclass(frozen=True)
class Inputs:
    """q, k [B,T,H,qk] and v [B,T,H,v]; `weight`, the gradient of o, if it is for training; the state."""

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    state: Any

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def bytes(self) -> int:
        tensors = [*self.leaves, *(x for x in self.state or () if x is not None)]
        return sum(x.numel() * x.element_size() for x in tensors)


def make(work: Work, device: str, seed: int = 0) -> Inputs:
    """Normally distributed inputs; a state is that of the naive mathematics after `PAST` such tokens."""
    torch.manual_seed(seed)
    op = work.op

    def draw(length: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(work.batch, length, work.heads, width, device=device, dtype=dtype)

    training = work.task == "training"
    q, k, v = (
        draw(work.length, width, work.torch_dtype).requires_grad_(training) for width in (op.qk, op.qk, op.v)
    )
    weight = draw(work.length if training else 0, op.v, work.torch_dtype)
    state = None
    if work.task == "step" or work.state:
        # The mathematics of the past in float32, its result in what the variant keeps for these inputs.
        past_q, past_k, past_v = (draw(PAST, width, torch.float32) for width in (op.qk, op.qk, op.v))
        _, exact = op.reference(past_q, past_k, past_v, output_final_state=True)
        kept = op.init_state(work.batch, work.heads, device=device, dtype=work.torch_dtype)
        state = type(exact)(*(x if x is None else x.to(y.dtype) for x, y in zip(exact, kept, strict=True)))
    return Inputs(q, k, v, weight, state)


def another_state(inputs: Inputs) -> Inputs:
    """The same tokens with a copy of the state."""
    state = type(inputs.state)(*(x if x is None else x.clone() for x in inputs.state))
    return Inputs(inputs.q, inputs.k, inputs.v, inputs.weight, state)


def another(inputs: Inputs) -> Inputs:
    """The same numbers elsewhere in memory; of a step its state alone, which is nearly all that it reads."""
    if inputs.state is not None:
        return another_state(inputs)
    q, k, v = (x.detach().clone().requires_grad_(x.requires_grad) for x in inputs.leaves)
    return Inputs(q, k, v, inputs.weight.clone(), None)
