"""Calls of a generated hybrid module, and what they should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from based_ops.codegen.mixers.hybrid import Hybrid
from based_ops.mixers.hybrid import HybridState
from based_ops.reference import hybrid as naive
from based_ops.state import linear_to_ring
from tests.kernels.inputs import Call

Tensors = Sequence[Tensor]


class Forward(NamedTuple):
    o: Tensor
    kept: list[Tensor]
    state: Tensor
    normalizer: Tensor


@dataclass(frozen=True)
class Layer:
    """One layer's module with the inputs of one call, which goes on from a state if there is a `past`."""

    spec: Hybrid
    module: ModuleType
    call: Call
    past: bool = False
    factors: bool = True
    sequences: Tensor | None = None
    """Where packed sequences lie."""

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs with tokens."""
        return ("q", "k", "v", *(("q_window", "k_window") if self.spec.window_qk else ()))

    def inputs(self) -> list[Tensor]:
        """Of one call; keys and values reach a window further back than queries if there is a past."""
        dims, own = self.spec.head_dims, self.spec.window_qk or 0
        widths = (dims.qk, dims.qk, dims.v, own, own)
        longer = self.call.length + (self.spec.window if self.past else 0)
        lengths = (self.call.length, longer, longer, self.call.length, longer)
        found = zip(self.names, widths, lengths, strict=False)
        return [self.call.tensor(width, salt, length) for salt, (_, width, length) in enumerate(found)]

    def given_factors(self) -> list[Tensor | None]:
        """Of each head; none if the call leaves them out."""
        wide = torch.promote_types(self.call.dtype, torch.float32)
        drawn = [
            torch.rand(self.call.heads, generator=self.call.generator(20 + i), dtype=torch.float64) + 0.3
            for i, _ in enumerate(self.spec.factors)
        ]
        return [x.to(self.call.device, wide) if self.factors else None for x in drawn]

    def first(self) -> Tensor | None:
        """A first key for each sequence, among those before the queries, if there are any."""
        if not self.past:
            return None
        shape = (self.call.batch, self.call.heads)
        drawn = torch.randint(0, self.spec.window + 1, shape, generator=self.call.generator(4))
        return drawn.to(self.call.device, torch.int32)

    def cleared(self, inputs: Tensors) -> Tensor | None:
        """`first`; what comes before it in dense inputs is made 0, as callers of kernels do."""
        first = self.first()
        if first is not None:
            for name, x in zip(self.names, inputs, strict=True):
                if name not in ("q", "q_window"):
                    before = torch.arange(x.shape[1], device=x.device) < first.unsqueeze(-1)
                    x.masked_fill_(before.transpose(1, 2).unsqueeze(-1), 0)
        return first

    def sums(self, tokens: int = 5) -> tuple[Tensor, Tensor]:
        """State and normaliser of some random older keys, in the dtypes that kernels take."""
        dims = self.spec.head_dims
        k, v = (
            self.call.tensor(width, salt, tokens + self.spec.window).double()
            for width, salt in ((dims.qk, 5), (dims.v, 6))
        )
        state = naive.hybrid(self.plain, k, k, v, self.call.scale)[1]
        return self.stored(state.state), state.normalizer.to(self.wide)

    @property
    def plain(self) -> Hybrid:
        """The layer with the window on q and k, whose sums are the same."""
        return Hybrid("plain", self.spec.window, self.spec.feature_map, self.spec.head_dims)

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.call.dtype, torch.float32)

    def stored(self, state: Tensor) -> Tensor:
        narrow = getattr(torch, self.spec.state_dtype)
        return state.to(torch.float64 if self.call.dtype == torch.float64 else narrow)

    def output_gradient(self, inputs: Tensors, first: Tensor | None = None) -> Tensor:
        """That of o; 0 for queries of which it depends on digits that are rounded."""
        do = self.call.tensor(self.spec.head_dims.v, salt=7)
        if self.spec.rescale == "window":
            do = do.masked_fill(~self.settled(inputs, first).to(do.device).unsqueeze(-1), 0)
        return do

    def settled(self, inputs: Tensors, first: Tensor | None) -> Tensor:
        """Of which queries [B,T,H] one score is higher than all others, by more than any dtype rounds."""
        q, k = (inputs[i].double().cpu() for i in ((3, 4) if self.spec.window_qk else (0, 1)))
        scale = abs(q.shape[-1] ** -0.5 if self.spec.window_qk else self.call.scale)
        keys = torch.arange(k.shape[1])
        place = (torch.arange(q.shape[1]) + k.shape[1] - q.shape[1]).unsqueeze(-1)
        oldest = torch.zeros(q.shape[0], q.shape[2]) if first is None else first.cpu()
        seen = (keys <= place) & (keys > place - self.spec.window) & (keys >= oldest[:, :, None, None])
        scores = torch.einsum("bihd,bjhd->bhij", q, k).mul(scale).masked_fill(~seen, -1e30)
        largest = torch.einsum("bihd,bjhd->bhij", q.abs(), k.abs()).mul(scale).amax(-1)
        highest = torch.nn.functional.pad(scores, (0, 1), value=-1e30).topk(2, -1).values
        return (highest[..., 0] - highest[..., 1] > 2**-7 * largest).transpose(1, 2)

    def forward(
        self, inputs: Tensors, first: Tensor | None = None, sums: Tensors | None = None, final: bool = True
    ) -> Forward:
        o, *kept, state, normalizer = self.module.forward(
            *inputs,
            *self.given_factors(),
            self.call.scale,
            first,
            *(sums or (None, None)),
            final,
            self.sequences,
        )
        return Forward(o, kept, state, normalizer)

    def backward(
        self,
        do: Tensor,
        inputs: Tensors,
        forward: Forward,
        first: Tensor | None = None,
        sums: Tensors | None = None,
        d_final: Tensors | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients of the inputs, of the factors that were given, and of the initial sums."""
        o = [forward.o] if self.spec.combine == "normalizer" else []
        found = self.module.backward(
            do,
            *(d_final or (None, None)),
            *inputs,
            *self.given_factors(),
            *o,
            *forward.kept,
            self.call.scale,
            first,
            *(sums or (None, None)),
            self.sequences,
        )
        return tuple(x for x in found if x.numel())

    def empty(self) -> HybridState:
        """The state before the first token."""
        q, _, v, *_ = self.inputs()
        state = naive.empty(self.spec, q, v)
        return HybridState(*(None if x is None else x.contiguous() for x in state))

    def step(self, inputs: Tensors, state: HybridState) -> Tensor:
        output: Tensor = self.module.step(*inputs, *self.given_factors(), self.call.scale, *state, None)
        return output

    def expected(
        self,
        inputs: Tensors,
        first: Tensor | None = None,
        sums: Tensors | None = None,
        factors: Tensors | None = None,
    ) -> tuple[Tensor, HybridState]:
        """Output and final state by the reference in float64, without a past or with one."""
        q, k, v, *own = (x.double() for x in inputs)
        given = [x for x in self.given_factors() if x is not None] if factors is None else factors
        more = dict(zip(self.names[3:], own, strict=True))
        more |= dict(zip(self.spec.factors, given, strict=False))
        if first is None or sums is None:
            return naive.hybrid(self.spec, q, k, v, self.call.scale, None, **more)
        window = self.spec.window
        position = window - first
        rings = [linear_to_ring(x[:, :window], position) for x in (k, v, *own[1:])]
        state = HybridState(*rings[:2], position, *(x.double() for x in sums), *rings[2:])
        if own:
            more["k_window"] = own[1][:, window:]
        return naive.hybrid(self.spec, q, k[:, window:], v[:, window:], self.call.scale, state, **more)
