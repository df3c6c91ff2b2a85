"""Hybrid kernels against naive mathematics in float64, on every backend that runs here."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.mixers.hybrid import HybridState
from based_ops.state import ring_of_start
from tests.kernels.hybrid import Layer
from tests.kernels.inputs import calls
from tests.kernels.runners import Runner
from tests.tolerance import BACKWARD, FORWARD, assert_close, assert_same, owed


def draw_layer(data: st.DataObject, runner: Runner, most: int = 5000, past: bool = True) -> Layer:
    """Any layer with any call of it that the runner affords.

    Triton's interpreter truncates to bfloat16; states and outputs that are both rounded so are too far off.
    """
    dtypes = (torch.float32,) if runner.interpreted else runner.dtypes
    dtype = data.draw(st.sampled_from(dtypes), "dtype")
    spec = data.draw(runner.hybrids(dtype), "spec")
    call = data.draw(calls(runner, spec, dtype, most), "call")
    form = data.draw(st.sampled_from(runner.hybrid_forms()), "form")
    goes_on = past and data.draw(st.booleans(), "past")
    factors = data.draw(st.booleans(), "factors")
    return Layer(spec, runner.module(spec, form), call, goes_on, factors)


@given(data=st.data())
def test_forward_equals_reference(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner)
    inputs = layer.inputs()
    before = [x.clone() for x in inputs]
    first, sums = layer.first(), layer.sums() if layer.past else None
    found = layer.forward(inputs, first, sums)
    o, state = layer.expected(inputs, first, sums)
    dtype = layer.call.dtype
    assert found.o.dtype == dtype and found.o.is_contiguous()
    assert_close("o", found.o, o, FORWARD[dtype])
    kept = max(FORWARD[dtype], FORWARD[found.state.dtype], key=lambda one: one.norm)
    assert_close("state", found.state, state.state, kept)
    assert_close("normalizer", found.normalizer, state.normalizer, FORWARD[dtype])
    for name, old, new in zip(layer.names, before, inputs, strict=True):
        assert_same(f"{name} after the call", new, old)


@given(data=st.data())
def test_gradients_equal_autograd(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    inputs, first, sums = layer.inputs(), layer.first(), layer.sums() if layer.past else None
    do = layer.output_gradient(inputs, first)
    forward = layer.forward(inputs, first, sums)
    d_final = None
    if data.draw(st.booleans(), "gradient of the final state"):
        shapes = ((forward.state, 8), (forward.normalizer, 9))
        d_final = [layer.call.values(*x.shape, salt=i).to(x.device, x.dtype) for x, i in shapes]
    found = layer.backward(do, inputs, forward, first, sums, d_final)
    factors = [x for x in layer.given_factors() if x is not None]
    leaves = [x.double().detach().requires_grad_() for x in (*inputs, *factors, *(sums or ()))]
    count, stop = len(inputs), len(inputs) + len(factors)
    o, state = layer.expected(leaves[:count], first, leaves[stop:] or None, leaves[count:stop])
    loss = (o * do.double()).sum()
    for value, gradient in zip((state.state, state.normalizer), d_final or (), strict=False):
        loss = loss + (value * gradient.double()).sum()
    wanted = torch.autograd.grad(loss, leaves, allow_unused=True)
    names = (*layer.names, *layer.spec.factors[: len(factors)], "state", "normalizer")
    size = owed(do)
    terms = (layer.call.batch * layer.call.length) ** 0.5
    for name, actual, gradient, leaf in zip(names, found, wanted, leaves, strict=False):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        floor = size * terms if name in layer.spec.factors else size if name != "v" else 0.0
        tolerance = BACKWARD[layer.call.dtype]
        assert_close(f"gradient of {name}", actual, gradient, tolerance, torch.full_like(gradient, floor))


@given(data=st.data())
def test_later_keys_change_nothing(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit."""
    layer = draw_layer(data, runner, most=1500)
    q, *others = (x.contiguous() for x in layer.inputs())
    first, sums = layer.first(), layer.sums() if layer.past else None
    query = data.draw(st.integers(0, layer.call.length - 1), "query")
    past = layer.spec.window if layer.past else 0
    later = torch.arange(past + layer.call.length, device=q.device) > query + past

    def changed(name: str, x: Tensor) -> Tensor:
        return x if name == "q_window" else torch.where(later[:, None, None], 5.0 - 3.0 * x, x)

    pairs = zip(layer.names[1:], others, strict=True)
    inputs = [q, *(changed(name, x) for name, x in pairs)]
    other = layer.forward(inputs, first, sums).o[:, : query + 1]
    assert_same("o", other, layer.forward([q, *others], first, sums).o[:, : query + 1])


@given(data=st.data())
def test_constant_values_come_back(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, past=False)
    assume(layer.spec.combine == "normalizer")
    q, k, v, *own = layer.inputs()
    o = layer.forward([q, k, torch.ones_like(v), *own]).o
    # All but what eps takes.
    wanted = layer.expected([q, k, torch.ones_like(v), *own])[0]
    assert_close("o", o, wanted, FORWARD[layer.call.dtype])
    assert bool((wanted <= 1 + 1e-12).all()) and bool((wanted > 1 - layer.spec.eps * 1e6 - 1e-9).all())


@given(data=st.data())
def test_a_window_of_everything_is_causal_attention(runner: Runner, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    pool = runner.hybrid_pool()
    spec = replace(pool[data.draw(st.integers(0, len(pool) - 1), "spec")], eps=0.0)
    call = data.draw(calls(runner, spec, dtype, spec.window), "call")
    assume(call.length <= spec.window and spec.combine == "normalizer")
    layer = Layer(spec, runner.module(spec), call, factors=False)
    q, k, v, *own = inputs = layer.inputs()
    scale = call.scale
    if own:
        (q, k), scale = own, own[0].shape[-1] ** -0.5
    heads_first = (x.double().transpose(1, 2) for x in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=scale)
    assert_close("o", layer.forward(inputs).o, wanted.transpose(1, 2), FORWARD[dtype])


@given(data=st.data())
def test_pieces_and_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    """A first piece, and then steps from the state that it leaves."""
    layer = draw_layer(data, runner, most=200, past=False)
    assume(layer.spec.state_dtype == "float32")
    inputs, length = layer.inputs(), layer.call.length
    whole, end = layer.expected(inputs)
    cut = data.draw(st.integers(max(0, length - runner.steps(40)), length), "cut")
    state, outputs = layer.empty(), []
    if cut:
        piece = [x[:, :cut] for x in inputs]
        found = layer.forward(piece)
        rings = [ring_of_start(x, layer.spec.window) for x in (*piece[1:3], *piece[4:])]
        position = torch.full_like(state.position, cut)
        state = HybridState(*rings[:2], position, found.state, found.normalizer, *rings[2:])
        outputs.append(found.o)
    outputs += [layer.step([x[:, t : t + 1] for x in inputs], state) for t in range(cut, length)]
    tolerance = FORWARD[layer.call.dtype]
    assert_close("o", torch.cat(outputs, 1), whole, tolerance)
    for name, actual, wanted in zip(HybridState._fields, state, end, strict=True):
        if wanted is None:
            assert actual is None
        elif name in ("state", "normalizer"):
            assert_close(name, actual, wanted, tolerance)
        else:
            assert_same(name, actual.double(), wanted.double())


@given(data=st.data())
def test_scores_far_from_zero_stay_finite(runner: Runner, data: st.DataObject) -> None:
    """Neither part leaves the range of numbers, wherever the scores are; means do not exceed the values."""
    layer = draw_layer(data, runner, most=200)
    layer = replace(layer, factors=False)
    q, k, v, *own = layer.inputs()
    factor = data.draw(st.sampled_from((300.0, -300.0)), "factor")
    first, sums = layer.first(), layer.sums() if layer.past else None
    o = layer.forward([factor * k[:, : q.shape[1]], k, v, *own], first, sums).o
    assert bool(o.isfinite().all())
    assert layer.past or o.abs().max() <= 2.1 * v.abs().max()
