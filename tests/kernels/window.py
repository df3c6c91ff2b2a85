"""Calls of a generated sliding-window module, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from based_ops.codegen.mixers.sliding_window import SlidingWindow
from tests.kernels.inputs import Call


@dataclass(frozen=True)
class Layer:
    """One layer's module with one call's inputs; keys reach `past` tokens further back than queries."""

    spec: SlidingWindow
    module: ModuleType
    call: Call
    past: int = 0

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        keys = self.call.length + self.past
        q = self.call.tensor(self.spec.head_dims.qk, 0)
        return (
            q,
            self.call.tensor(self.spec.head_dims.qk, 1, keys),
            self.call.tensor(self.spec.head_dims.v, 2, keys),
        )

    def output_gradient(self) -> Tensor:
        return self.call.tensor(self.spec.head_dims.v, salt=3)

    def first(self) -> Tensor:
        """A first key for each sequence, among the keys before the queries."""
        drawn = torch.randint(
            0, self.past + 1, (self.call.batch, self.call.heads), generator=self.call.generator(4)
        )
        return drawn.to(self.call.device, torch.int32)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.module.forward(q, k, v, self.call.scale, first, None)

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.module.backward(do, q, k, v, o, lse, self.call.scale, first, None)

    def ring(self) -> tuple[Tensor, Tensor, Tensor]:
        """An empty ring."""
        shape = (self.call.batch, self.call.heads, self.spec.window)
        k, v = (
            torch.zeros(*shape, width, dtype=self.call.dtype, device=self.call.device)
            for width in (self.spec.head_dims.qk, self.spec.head_dims.v)
        )
        return k, v, torch.zeros(shape[:2], dtype=torch.int32, device=self.call.device)

    def step(self, q: Tensor, k: Tensor, v: Tensor, ring: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self.module.step(q, k, v, self.call.scale, *ring, None)


def expected(
    window: int, scale: float, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """o and lse in float64: softmax over the keys that each query sees."""
    q, k, v = q.double(), k.double(), v.double()
    place = torch.arange(q.shape[1], device=q.device)[:, None] + (k.shape[1] - q.shape[1])
    j = torch.arange(k.shape[1], device=q.device)[None, :]
    seen = (j <= place) & (j > place - window)
    seen = seen.expand(q.shape[0], q.shape[2], *seen.shape)
    if first is not None:
        seen = seen & (j >= first[:, :, None, None])
    scores = (scale * torch.einsum("bihd,bjhd->bhij", q, k)).masked_fill(~seen, float("-inf"))
    o = torch.einsum("bhij,bjhv->bihv", scores.softmax(-1), v)
    return o, scores.logsumexp(-1)
