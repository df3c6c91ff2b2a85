"""Heads in groups: a call is that on tensors with repeated heads, and gradients are sums over a group."""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.state import LinearAttentionState
from tests.kernels.hybrid import Layer as HybridLayer
from tests.kernels.inputs import calls, copies
from tests.kernels.linear import Gradients, Layer
from tests.kernels.runners import LOW, Runner
from tests.kernels.test_linear_attention import of_state
from tests.kernels.test_not_finite import assert_reaches, draw_poison
from tests.kernels.window import Layer as WindowLayer
from tests.tolerance import BACKWARD, FORWARD, Tolerance, assert_close, assert_same, owed


class Heads(NamedTuple):
    """How many there are."""

    q: int
    k: int
    v: int

    @property
    def outputs(self) -> int:
        return lcm(*self)

    @property
    def states(self) -> int:
        return lcm(self.k, self.v)


@st.composite
def heads(draw: st.DrawFn, runner: Runner) -> Heads:
    """Any numbers of heads that divide the largest; k and v need not divide each other."""
    most = draw(st.sampled_from((2, 6) if runner.interpreted else (2, 3, 4, 6)))
    divisors = st.sampled_from([n for n in range(1, most + 1) if most % n == 0])
    found = [draw(divisors) for _ in range(3)]
    found[draw(st.integers(0, 2))] = most
    return Heads(*found)


def repeated(x: Tensor, heads: int, dim: int = 2) -> Tensor:
    """As many heads, each one several times."""
    return x.repeat_interleave(heads // x.shape[dim], dim)


def summed(x: Tensor, heads: int, dim: int = 2) -> Tensor:
    """The sums over groups of heads."""
    return x.unflatten(dim, (heads, -1)).sum(dim + 1)


def states(state: LinearAttentionState | None, heads: int) -> LinearAttentionState | None:
    """The same of states."""
    if state is None:
        return None
    return LinearAttentionState(*(None if x is None else repeated(x, heads, 1) for x in state))


class Groups(NamedTuple):
    """A call in groups, and the same call on repeated tensors."""

    heads: Heads
    layer: Layer
    plain: Layer
    state: Layer

    @classmethod
    def draw(cls, data: st.DataObject, runner: Runner, most: int) -> Groups:
        dtype = data.draw(st.sampled_from([d for d in runner.dtypes if d not in LOW]))
        spec = data.draw(runner.linear_attentions(dtype), "spec")
        forms = [] if runner.backend == "tilelang" else runner.forms(dtype)  # which takes minutes to compile
        module = runner.module(spec, data.draw(st.sampled_from([None, *forms]), "form"))
        call, found = data.draw(calls(runner, spec, dtype, most), "call"), data.draw(heads(runner), "heads")
        layers = (Layer(spec, module, replace(call, heads=n)) for n in (1, found.outputs, found.states))
        return cls(found, *layers)

    def qkv(self) -> list[Tensor]:
        call, dims = self.layer.call, self.layer.spec.head_dims
        widths = (dims.qk, dims.qk, dims.v)
        return [
            replace(call, heads=n).tensor(width, salt)
            for salt, (n, width) in enumerate(zip(self.heads, widths, strict=True))
        ]

    def whole(self, tensors: list[Tensor]) -> list[Tensor]:
        return [repeated(x, self.heads.outputs) for x in tensors]

    @property
    def decays(self) -> tuple[Tensor, ...]:
        return self.state.decays()

    @property
    def whole_decays(self) -> tuple[Tensor, ...]:
        return tuple(repeated(g, self.heads.outputs, g.dim() - 1) for g in self.decays)


@given(data=st.data())
def test_calls_equal_those_of_repeated_heads(runner: Runner, data: st.DataObject) -> None:
    call = Groups.draw(data, runner, 300)
    heads, layer = call.heads, call.layer
    tensors = call.qkv()
    before = copies(*tensors)
    initial = call.state.earlier() if data.draw(st.booleans(), "initial state") else None
    found = layer.forward(*tensors, initial, True, call.decays)
    wanted = call.plain.forward(*call.whole(tensors), states(initial, heads.outputs), True, call.whole_decays)
    tolerance = FORWARD[layer.call.dtype]
    assert_close("o", found.o, wanted.o, tolerance)
    assert found.state.shape[1] == heads.states
    tolerance = of_state(FORWARD, layer)
    assert_close("final state", repeated(found.state, heads.outputs, 1), wanted.state, tolerance)
    if layer.spec.normalize:
        normalizer = repeated(found.normalizer, heads.outputs, 1)
        assert_close("final normalizer", normalizer, wanted.normalizer, tolerance)
    for name, old, new in zip("qkv", before, tensors, strict=True):
        assert_same(f"{name} after the call", new, old)


@pytest.mark.slow_in_c
@given(data=st.data())
def test_gradients_are_sums_over_groups(runner: Runner, data: st.DataObject) -> None:
    call = Groups.draw(data, runner, 40 if runner.interpreted else 300)
    heads, layer, plain = call.heads, call.layer, call.plain
    tensors, do = call.qkv(), plain.output_gradient()
    initial = call.state.earlier() if data.draw(st.booleans(), "initial state") else None
    whole, wholes = states(initial, heads.outputs), call.whole(tensors)
    forward = layer.forward(*tensors, initial, True, call.decays)
    d_final = None
    if data.draw(st.booleans(), "gradient of the final state"):
        like = LinearAttentionState(forward.state, forward.normalizer if layer.spec.normalize else None)
        d_final = call.state.random_like(like, 6)
    found = layer.backward(do, d_final, *tensors, forward, initial, call.decays)
    forward = plain.forward(*wholes, whole, True, call.whole_decays)
    each = plain.backward(do, _shared(d_final, heads.outputs), *wholes, forward, whole, call.whole_decays)
    for name, (gradient, parts, count, dim) in _gradients(call, found, each).items():
        floor = summed(parts.abs(), count, dim)  # parts may cancel
        if layer.spec.normalize and name != "v":
            floor = floor.clamp(min=owed(do))
        assert_close(f"gradient of {name}", gradient, summed(parts, count, dim), _looser(call, name), floor)


def _shared(gradient: LinearAttentionState | None, heads: int) -> LinearAttentionState | None:
    """A gradient of states in equal parts for repeated heads."""
    whole = states(gradient, heads)
    if whole is None or gradient is None:
        return None
    each = heads // gradient.state.shape[1]
    return LinearAttentionState(*(None if x is None else x / each for x in whole))


def _gradients(call: Groups, found: Gradients, each: Gradients) -> dict[str, tuple[Tensor, Tensor, int, int]]:
    """Gradients in groups and those of repeated heads, the number of heads, and their dimension."""
    heads = call.heads
    counts = {"q": (heads.q, 2), "k": (heads.k, 2), "v": (heads.v, 2), "state": (heads.states, 1)}
    counts |= {"normalizer": (heads.states, 1), "g": (heads.states, found.g.dim() - 1)}
    given = {name: (getattr(found, name), getattr(each, name)) for name in counts}
    return {name: (*pair, *counts[name]) for name, pair in given.items() if pair[1].numel()}


def _looser(call: Groups, name: str) -> Tolerance:
    """Gradients of decays are sums over later tokens, of differences; those of states have their dtype."""
    layer = call.layer
    if name in ("state", "normalizer"):
        return of_state(BACKWARD, layer)
    return BACKWARD[layer.call.dtype].loosened(4 if name == "g" else 1)


@given(data=st.data())
def test_steps_equal_a_call(runner: Runner, data: st.DataObject) -> None:
    call = Groups.draw(data, runner, 40)
    layer, tensors = call.layer, call.qkv()
    initial = call.state.earlier()
    several = data.draw(st.integers(1, 16), "tokens of a step")
    forward = layer.forward(*tensors, initial, True, call.decays)
    state = LinearAttentionState(*(None if x is None else x.clone() for x in initial))
    length = min(layer.call.length, runner.steps(20) * several)
    found = []
    for t in range(0, length, several):
        part = [x[:, t : min(t + several, length)] for x in tensors]
        g = call.state.decays(t, min(t + several, length))
        found.append(layer.module.step(*part, *g, layer.call.scale, *state, None))
    tolerance = of_state(FORWARD, layer).loosened(4)  # a narrow state is rounded at every token
    assert_close("o", torch.cat(found, 1), forward.o[:, :length], tolerance)
    if length == layer.call.length:
        assert_close("state", state.state, forward.state, tolerance)


@pytest.mark.slow_in_c
@given(data=st.data())
def test_what_is_not_finite_reaches_the_same(runner: Runner, data: st.DataObject) -> None:
    """Rows that are computed again are those of the heads of a group, too."""
    call = Groups.draw(data, runner, 20 if runner.interpreted else 140)
    heads, layer, plain = call.heads, call.layer, call.plain
    q, k, v = call.qkv()
    tensors = draw_poison(data, q=q, k=k, v=v).into(q=q, k=k, v=v)
    wholes, do = call.whole(tensors), plain.output_gradient()
    forward = layer.forward(*tensors, decays=call.decays)
    wanted = plain.forward(*wholes, decays=call.whole_decays)
    assert_reaches("o", forward.o, wanted.o, FORWARD[layer.call.dtype])
    found = layer.backward(do, None, *tensors, forward, decays=call.decays)
    each = plain.backward(do, None, *wholes, wanted, decays=call.whole_decays)
    for name, (gradient, parts, count, dim) in _gradients(call, found, each).items():
        finite = summed(parts.isfinite().double(), count, dim) == heads.outputs // count
        assert bool((gradient.isfinite() == finite).all()), f"gradient of {name}"


class Windows(NamedTuple):
    """The same of a window."""

    heads: Heads
    layer: WindowLayer

    @classmethod
    def draw(cls, data: st.DataObject, runner: Runner, most: int) -> Windows:
        dtype = data.draw(st.sampled_from([d for d in runner.dtypes if d not in LOW]))
        spec = data.draw(runner.windows(), "spec")
        call, found = data.draw(calls(runner, spec, dtype, most), "call"), data.draw(heads(runner), "heads")
        call, past = (
            replace(call, heads=found.states),
            data.draw(st.integers(0, 40), "keys before the queries"),
        )
        return cls(found, WindowLayer(spec, runner.module(spec), call, past))

    def qkv(self) -> list[Tensor]:
        layers = (replace(self.layer, call=replace(self.layer.call, heads=n)) for n in self.heads)
        return [layer.qkv()[i] for i, layer in enumerate(layers)]


@given(data=st.data())
def test_windows_equal_those_of_repeated_heads(runner: Runner, data: st.DataObject) -> None:
    heads, layer = Windows.draw(data, runner, 200)
    tensors = Windows(heads, layer).qkv()
    whole = [repeated(x, heads.outputs) for x in tensors]
    do = whole[2][:, layer.past :].flip(1)
    first = layer.first() if data.draw(st.booleans(), "first key") else None
    firsts = None if first is None else repeated(first, heads.outputs, 1)
    o, lse = layer.forward(*tensors, first)
    wanted, wanted_lse = layer.forward(*whole, firsts)
    assert_close("o", o, wanted, FORWARD[layer.call.dtype])
    assert_close("lse", lse, wanted_lse, FORWARD[layer.call.dtype])
    found = layer.backward(do, *tensors, o, lse, first)
    each = layer.backward(do, *whole, wanted, wanted_lse, firsts)
    for name, count, gradient, parts in zip("qkv", heads, found, each, strict=True):
        floor = summed(parts.abs(), count)
        if name != "v":
            floor = floor.clamp(min=owed(do))
        assert_close(f"gradient of {name}", gradient, summed(parts, count), BACKWARD[layer.call.dtype], floor)


@given(data=st.data())
def test_steps_of_windows_equal_a_call(runner: Runner, data: st.DataObject) -> None:
    heads, layer = Windows.draw(data, runner, 30)
    layer = replace(layer, past=0)
    tensors, ring = Windows(heads, layer).qkv(), layer.ring()
    several = data.draw(st.integers(1, 16), "tokens of a step")
    length = min(layer.call.length, runner.steps(20) * several)
    pieces = [[x[:, t : min(t + several, length)] for x in tensors] for t in range(0, length, several)]
    found = torch.cat([layer.step(*piece, ring) for piece in pieces], 1)
    assert_close("o", found, layer.forward(*tensors)[0][:, :length], FORWARD[layer.call.dtype])
    assert bool((ring[2] == length).all())


class Hybrids(NamedTuple):
    """The same of a hybrid; `layer` has the heads of outputs, `state` those of states."""

    heads: Heads
    layer: HybridLayer
    state: HybridLayer

    @classmethod
    def draw(cls, data: st.DataObject, runner: Runner, most: int, past: bool = True) -> Hybrids:
        dtype = data.draw(st.sampled_from([d for d in runner.dtypes if d not in LOW]))
        spec = data.draw(st.sampled_from(runner.hybrid_pool()), "spec")
        call, found = data.draw(calls(runner, spec, dtype, most), "call"), data.draw(heads(runner), "heads")
        goes_on = past and data.draw(st.booleans(), "past")
        module = runner.module(spec, data.draw(st.sampled_from(runner.hybrid_forms()), "form"))
        layers = (
            HybridLayer(spec, module, replace(call, heads=n), goes_on) for n in (found.outputs, found.states)
        )
        return cls(found, *layers)

    @property
    def counts(self) -> list[int]:
        """Heads of each input."""
        heads = self.heads
        return [heads.q, heads.k, heads.v, heads.q, heads.k][: len(self.layer.names)]

    def inputs(self) -> list[Tensor]:
        call = self.layer.call
        layers = (replace(self.layer, call=replace(call, heads=n)) for n in self.counts)
        return [layer.inputs()[i] for i, layer in enumerate(layers)]


@pytest.mark.slow_in_c
@given(data=st.data())
def test_hybrids_equal_those_of_repeated_heads(runner: Runner, data: st.DataObject) -> None:
    drawn = Hybrids.draw(data, runner, 200)
    heads, layer, state = drawn
    tensors = drawn.inputs()
    whole = [repeated(x, heads.outputs) for x in tensors]
    first, sums = state.first(), state.sums() if state.past else None
    firsts = None if first is None else repeated(first, heads.outputs, 1)
    all_sums = sums and [repeated(x, heads.outputs, 1) for x in sums]
    do = layer.output_gradient(whole, firsts)
    tolerance, of_gradients = FORWARD[layer.call.dtype], BACKWARD[layer.call.dtype]
    found, wanted = layer.forward(tensors, first, sums), layer.forward(whole, firsts, all_sums)
    assert_close("o", found.o, wanted.o, tolerance)
    kept = max(tolerance, FORWARD[found.state.dtype], key=lambda one: one.norm)
    assert_close("state", repeated(found.state, heads.outputs, 1), wanted.state, kept)
    gradients = layer.backward(do, tensors, found, first, sums)
    each = layer.backward(do, whole, wanted, firsts, all_sums)
    factors = [(name, heads.outputs, 0) for name in layer.spec.factors]
    parts = [(name, n, 2) for name, n in zip(layer.names, drawn.counts, strict=True)]
    parts += [*factors, ("state", heads.states, 1), ("normalizer", heads.states, 1)]
    for (name, count, dim), gradient, of_each in zip(parts, gradients, each, strict=False):
        floor = summed(of_each.abs(), count, dim)  # parts may cancel
        if name != "v":
            floor = floor.clamp(min=owed(do))
        assert_close(f"gradient of {name}", gradient, summed(of_each, count, dim), of_gradients, floor)


@given(data=st.data())
def test_steps_of_hybrids_equal_a_call(runner: Runner, data: st.DataObject) -> None:
    drawn = Hybrids.draw(data, runner, 60, past=False)
    layer, tensors, state = drawn.layer, drawn.inputs(), drawn.state.empty()
    several = data.draw(st.integers(1, 16), "tokens of a step")
    length = min(layer.call.length, runner.steps(20) * several)
    pieces = [[x[:, t : min(t + several, length)] for x in tensors] for t in range(0, length, several)]
    found = torch.cat([layer.step(piece, state) for piece in pieces], 1)
    assert_close("o", found, layer.forward(tensors).o[:, :length], FORWARD[layer.call.dtype].loosened(2))
    assert bool((state.position == length).all())
