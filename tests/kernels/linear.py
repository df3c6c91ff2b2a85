"""Calls of a generated linear attention module, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from based_ops import reference
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.state import LinearAttentionState
from tests.kernels.inputs import Call


class Forward(NamedTuple):
    o: Tensor
    n: Tensor
    state: Tensor
    normalizer: Tensor


class Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    normalizer: Tensor
    g: Tensor


Decays = tuple[Tensor, ...]
"""g, of a layer that has it."""


@dataclass(frozen=True)
class Layer:
    """One layer's module with the inputs of one call."""

    spec: LinearAttention
    module: ModuleType
    call: Call
    sequences: Tensor | None = None
    """Where packed sequences begin and end in the tokens."""
    invariant: bool = False
    """Whether each of them is cut as if it were alone."""

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float64 if self.call.dtype == torch.float64 else getattr(torch, self.spec.state_dtype)

    @property
    def laid(self) -> tuple[Tensor | bool | None, ...]:
        """What a pass is given last."""
        return (self.sequences, self.invariant) if self.spec.signature().adapts else (self.sequences,)

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        widths = (self.spec.head_dims.qk, self.spec.head_dims.qk, self.spec.head_dims.v)
        q, k, v = (self.call.tensor(width, salt) for salt, width in enumerate(widths))
        return q, k, v

    def decays(self, start: int = 0, stop: int | None = None) -> Decays:
        """Of the tokens from `start` to `stop` - 1; some keep nearly all, some nearly nothing."""
        call, wide = self.call, torch.promote_types(self.call.dtype, torch.float32)
        shape = {"none": (), "head": (call.heads,), "token": (call.batch, call.length, call.heads)}
        if not (dims := shape[self.spec.decay]):
            return ()
        drawn = torch.rand(dims, generator=call.generator(8), dtype=torch.float64)
        g = (-4 * drawn**6).to(call.device, wide)
        return (g[:, start:stop].contiguous() if len(dims) > 1 else g,)

    def output_gradient(self) -> Tensor:
        return self.call.tensor(self.spec.head_dims.v, salt=3)

    def earlier(self, tokens: int = 5) -> LinearAttentionState:
        """The state after some random tokens."""
        k = self.call.tensor(self.spec.head_dims.qk, 4, tokens).double()
        v = self.call.tensor(self.spec.head_dims.v, 5, tokens).double()
        state = reference.linear_attention(self.spec, k, k, v, self.call.scale)[1]
        return self.stored(state)

    def stored(self, state: LinearAttentionState) -> LinearAttentionState:
        """The state in the dtype and order in which kernels keep it."""
        s, z = state
        return LinearAttentionState(
            s.to(self.state_dtype).contiguous(), None if z is None else z.to(self.state_dtype).contiguous()
        )

    def empty(self) -> LinearAttentionState:
        q, _, v = self.qkv()
        state = reference.linear_attention(self.spec, q[:, :0], q[:, :0], v[:, :0], self.call.scale)[1]
        return self.stored(state)

    def random_like(self, state: LinearAttentionState, salt: int) -> LinearAttentionState:
        """A gradient for a state."""
        s, z = (
            None if x is None else self.call.values(*x.shape, salt=salt + i).to(x.device, x.dtype)
            for i, x in enumerate(state)
        )
        assert s is not None
        return LinearAttentionState(s, z)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        initial: LinearAttentionState | None = None,
        final: bool = True,
        decays: Decays | None = None,
    ) -> Forward:
        g = self.decays() if decays is None else decays
        given = initial or (None, None)
        return Forward(*self.module.forward(q, k, v, *g, self.call.scale, *given, final, *self.laid))

    def backward(
        self,
        do: Tensor,
        d_final: LinearAttentionState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forward: Forward,
        initial: LinearAttentionState | None = None,
        decays: Decays | None = None,
    ) -> Gradients:
        found = self.module.backward(
            do,
            *(d_final or (None, None)),
            q,
            k,
            v,
            *(self.decays() if decays is None else decays),
            forward.o,
            forward.n,
            self.call.scale,
            *(initial or (None, None)),
            *self.laid,
        )
        return Gradients(*found[:3], *found[-2:], *(found[3:-2] or (q.new_empty(0),)))

    def step(self, q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState, t: int = 0) -> Tensor:
        """`t` says which token is the first."""
        return self.module.step(q, k, v, *self.decays(t, t + q.shape[1]), self.call.scale, *state, None)


def expected(
    layer: Layer, q: Tensor, k: Tensor, v: Tensor, initial: LinearAttentionState | None = None
) -> tuple[Tensor, LinearAttentionState]:
    """Output and final state by the reference in float64."""
    wide = (
        None
        if initial is None
        else LinearAttentionState(*(None if x is None else x.double() for x in initial))
    )
    g = layer.decays(0, q.shape[1])
    return reference.linear_attention(
        layer.spec, q.double(), k.double(), v.double(), layer.call.scale, wide, *g
    )


def expected_gradients(
    layer: Layer,
    do: Tensor,
    d_final: LinearAttentionState | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial: LinearAttentionState | None,
    dtype: torch.dtype = torch.float64,
) -> list[tuple[Tensor, Tensor]]:
    """Gradients of q, k, v, of the initial state and of g, by autograd through the reference in `dtype`.

    Each comes with the part that flows through the numerator alone.  The denominator's part can cancel it
    (entirely, for the first token), so that part is what rounding errors are measured by.
    """
    spec, scale = layer.spec, layer.call.scale
    parts = [x for x in (initial or ()) if x is not None]
    leaves = [x.to(dtype).detach().requires_grad_() for x in (q, k, v, *parts, *layer.decays())]
    normalizer = (None,) if initial is not None and not spec.normalize else ()
    g = leaves[3 + len(parts) :]
    state = LinearAttentionState(*leaves[3 : 3 + len(parts)], *normalizer) if parts else None

    def gradients(loss: Tensor, final: LinearAttentionState) -> list[Tensor]:
        for value, gradient in zip(final, d_final or (), strict=False):
            if value is not None and gradient is not None:
                loss = loss + (value * gradient.to(dtype)).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(leaf) if x is None else x for x, leaf in zip(found, leaves, strict=True)]

    o, final = reference.linear_attention(spec, *leaves[:3], scale, state, *g)
    whole = gradients((o * do.to(dtype)).sum(), final)
    if not spec.normalize:
        return list(zip(whole, whole, strict=True))
    plain = replace(spec, normalize=False)
    sums = None if state is None else LinearAttentionState(state.normalizer.unsqueeze(-1), None)
    n = reference.linear_attention(plain, *leaves[:2], torch.ones_like(leaves[2][..., :1]), scale, sums, *g)[
        0
    ].detach()
    numerator = reference.linear_attention(
        plain, *leaves[:3], scale, state and state._replace(normalizer=None), *g
    )[0]
    numerators = gradients((numerator * (do.to(dtype) / (n + spec.eps))).sum(), final)
    return list(zip(whole, numerators, strict=True))
