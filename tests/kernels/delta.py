"""Calls of a generated module of the delta rule, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from based_ops import reference
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import Elementwise, FeatureMap, HeadDims, Power, TaylorExp
from based_ops.state import LinearAttentionState
from tests.kernels.inputs import Call, calls, laid_out
from tests.kernels.runners import Runner

IDENTITY = Elementwise("x")


def delta(name: str, feature_map: FeatureMap, qk: int, v: int, decay: str = "none") -> LinearAttention:
    """A layer whose kernels take keys of length 1."""
    dims = HeadDims(qk, v)
    return LinearAttention(name, feature_map, dims, normalize=False, decay=decay, update="delta")


DELTA = (
    delta("delta_taylor2_gated", TaylorExp(2), 8, 17, "token"),
    delta("delta_plain", IDENTITY, 20, 40),
    delta("delta_gated", IDENTITY, 16, 16, "token"),
    delta("delta_wide", IDENTITY, 128, 80, "head"),
    delta("delta_taylor1", TaylorExp(1), 24, 16, "head"),
    delta("delta_taylor2", TaylorExp(2), 16, 64),
    delta("delta_square", Power(2), 9, 24),
    delta("delta_taylor3", TaylorExp(3), 8, 16, "token"),
)
"""Layers of every kind, with odd widths; the first is for backends on which compiling takes a minute."""


def any_delta() -> st.SearchStrategy[LinearAttention]:
    """Any layer of the delta rule."""
    maps = st.sampled_from((IDENTITY, *map(TaylorExp, (1, 2, 3)), *map(Power, (2, 3, 4))))
    decays = st.sampled_from(("none", "head", "token"))
    return st.builds(delta, st.just("delta"), maps, st.integers(8, 10), st.integers(16, 40), decays)


def pool(runner: Runner) -> st.SearchStrategy[LinearAttention]:
    if runner.backend == "tilelang":
        return st.just(DELTA[0])
    fixed = st.sampled_from(DELTA)
    return fixed | any_delta() if runner.backend == "torch" else fixed


class Inputs(NamedTuple):
    """What a call takes, `g` only of a layer that fades."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    g: Tensor | None = None

    def tokens(self, start: int, stop: int) -> Inputs:
        g = self.g
        if g is not None and g.dim() > 1:
            g = g[:, start:stop].contiguous()
        q, k, v, beta = (x[:, start:stop] for x in self[:4])
        return Inputs(q, k, v, beta.contiguous(), g)

    @property
    def given(self) -> tuple[Tensor, ...]:
        """In the order of the operators."""
        decays = () if self.g is None else (self.g,)
        return (*self[:3], *decays, self.beta)


class Forward(NamedTuple):
    o: Tensor
    state: Tensor


class Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    g: Tensor | None
    state: Tensor


@dataclass(frozen=True)
class Layer:
    """One layer's module with the inputs of one call."""

    spec: LinearAttention
    module: ModuleType
    call: Call
    sequences: Tensor | None = None

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.call.dtype, torch.float32)

    def inputs(self) -> Inputs:
        call, dims = self.call, self.spec.head_dims
        q, k = (self._unit(salt) for salt in (0, 1))
        shape = call.batch, call.length, call.heads
        drawn = torch.rand((2, *shape), generator=call.generator(8), dtype=torch.float64)
        beta, faded = drawn.to(call.device)
        decays = {"none": None, "head": -4 * faded[0, 0] ** 6, "token": -4 * faded**6}
        g = decays[self.spec.decay]
        g = None if g is None else g.to(self.wide).contiguous()
        return Inputs(q, k, call.tensor(dims.v, 2), beta.to(self.wide).contiguous(), g)

    def _unit(self, salt: int) -> Tensor:
        """Queries or keys of length 1."""
        call = self.call
        values = call.values(call.batch, call.length, call.heads, self.spec.head_dims.qk, salt=salt)
        return laid_out(normalize(values.double(), dim=-1).to(call.device, call.dtype), call.layout)

    def output_gradient(self) -> Tensor:
        return self.call.tensor(self.spec.head_dims.v, salt=3)

    def random_state(self, count: int, salt: int) -> Tensor:
        """Numbers in place of a state, or of its gradient."""
        shape = (count, self.call.heads, self.spec.features, self.spec.head_dims.v)
        drawn = torch.randn(shape, generator=self.call.generator(salt), dtype=torch.float64) / 4
        return drawn.to(self.call.device, self.wide)

    def forward(self, x: Inputs, initial: Tensor | None = None) -> Forward:
        given = (*x.given, self.call.scale, initial, None)
        return Forward(*self.module.forward(*given, True, self.sequences)[:2])

    def backward(
        self, do: Tensor, d_final: Tensor | None, x: Inputs, initial: Tensor | None = None
    ) -> Gradients:
        given = (*x.given, self.call.scale, initial, None, self.sequences)
        q, k, v, *more, state, _ = self.module.backward(do, d_final, None, *given)
        *decays, beta = more
        return Gradients(q, k, v, beta, next(iter(decays), None), state)

    def step(self, x: Inputs, state: Tensor) -> Tensor:
        o: Tensor = self.module.step(*x.given, self.call.scale, state, None, None)
        return o

    def expected(self, x: Inputs, initial: Tensor | None = None) -> Forward:
        """Output and final state by the reference, in the inputs' precision."""
        given = None if initial is None else LinearAttentionState(initial, None)
        q, k, v, beta, g = x
        o, state = reference.delta_rule(self.spec, q, k, v, self.call.scale, given, beta=beta, log_decay=g)
        return Forward(o, state.state)

    def expected_gradients(
        self, do: Tensor, d_final: Tensor | None, x: Inputs, initial: Tensor | None = None
    ) -> Gradients:
        """By autograd through the reference in float64."""
        leaves = [None if y is None else y.detach().double().requires_grad_() for y in (*x, initial)]
        found = self.expected(Inputs(*leaves[:5]), leaves[5])
        loss = (found.o * do.double()).sum()
        if d_final is not None:
            loss = loss + (found.state * d_final.double()).sum()
        given = [y for y in leaves if y is not None]
        gradients = iter(torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True))
        q, k, v, beta, g, state = (None if y is None else next(gradients) for y in leaves)
        return Gradients(q, k, v, beta, g, do.new_empty(0) if state is None else state)


def doubled(x: Inputs) -> Inputs:
    return Inputs(*(None if y is None else y.double() for y in x))


@st.composite
def layers(draw: st.DrawFn, runner: Runner, most: int = 300, one: bool = False) -> Layer:
    """A layer with a call; of `one` batch entry, as packed sequences are."""
    dtype = draw(st.sampled_from(runner.dtypes))
    spec = draw(pool(runner))
    call = draw(calls(runner, spec, dtype, most))
    return Layer(spec, runner.module(spec), replace(call, batch=1) if one else call)
