"""NaN and infinities reach what depends on them and nothing else: forward, in pieces and steps, backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.state import LinearAttentionState
from tests.kernels import hybrid, linear, rows, window
from tests.kernels.inputs import calls
from tests.kernels.runners import Runner
from tests.tolerance import BACKWARD, FORWARD, Tolerance, assert_close

NUMBERS = (math.nan, math.inf, -math.inf)
LONGEST = {"cpu": 140, "cuda": 1111}
"""Tokens: several chunks, and on a GPU several segments."""


@dataclass(frozen=True)
class Poison:
    """One element that is not finite."""

    name: str
    number: float
    batch: int
    token: int
    head: int
    column: int

    def into(self, **tensors: Tensor) -> list[Tensor]:
        """Dense copies, with the element in one of them."""
        copies = {name: x.clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
        copies[self.name][self.batch, self.token, self.head, self.column] = self.number
        return list(copies.values())


def draw_poison(data: st.DataObject, only_nan: str = "", **tensors: Tensor) -> Poison:
    """Any element of the tensors; of those in `only_nan` it is NaN."""
    name = data.draw(st.sampled_from(sorted(tensors)), "poisoned")
    place = [data.draw(st.integers(0, extent - 1), "place") for extent in tensors[name].shape]
    numbers = NUMBERS[:1] if name in only_nan else NUMBERS
    return Poison(name, data.draw(st.sampled_from(numbers), "number"), *place)


def assert_reaches(what: str, found: Tensor, wanted: Tensor, tolerance: Tolerance) -> None:
    """The same elements are finite, and these agree."""
    finite = wanted.isfinite()
    astray = (found.isfinite() != finite).nonzero()
    assert not len(astray), f"{what}: finite in one and not in the other at {astray[:5].tolist()}"
    assert_close(what, torch.where(finite, found, 0), torch.where(finite, wanted, 0), tolerance)


def draw_linear(data: st.DataObject, runner: Runner) -> linear.Layer:
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.linear_pool()), "spec")
    module = runner.module(spec, data.draw(st.sampled_from([None, *runner.forms(dtype)]), "form"))
    return linear.Layer(spec, module, data.draw(calls(runner, spec, dtype, LONGEST[runner.device]), "call"))


def draw_window(data: st.DataObject, runner: Runner, past: int) -> window.Layer:
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.window_pool()), "spec")
    module = runner.module(spec, data.draw(st.sampled_from(runner.window_forms()), "form"))
    call = data.draw(calls(runner, spec, dtype, LONGEST[runner.device]), "call")
    return window.Layer(spec, module, call, past)


def draw_hybrid(data: st.DataObject, runner: Runner) -> hybrid.Layer:
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.hybrid_pool()), "spec")
    module = runner.module(spec, data.draw(st.sampled_from(runner.hybrid_forms()), "form"))
    call = data.draw(calls(runner, spec, dtype, LONGEST[runner.device]), "call")
    return hybrid.Layer(spec, module, call, data.draw(st.booleans(), "past"), factors=False)


def wide(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().double().cpu().requires_grad_() for x in tensors]


@given(data=st.data())
def test_linear_attention(runner: Runner, data: st.DataObject) -> None:
    layer = draw_linear(data, runner)
    spec, scale, tolerance = layer.spec, layer.call.scale, FORWARD[layer.call.dtype]
    q, k, v = layer.qkv()
    q, k, v = draw_poison(data, q=q, k=k, v=v).into(q=q, k=k, v=v)
    wanted = rows.linear_attention(spec, *wide(q, k, v), scale, *layer.decays()).to(q.device)
    assert_reaches("o", layer.forward(q, k, v).o, wanted, tolerance)
    cut = data.draw(st.integers(1, layer.call.length), "cut")
    first = layer.forward(q[:, :cut], k[:, :cut], v[:, :cut], decays=layer.decays(0, cut))
    outputs = [first.o]
    state = LinearAttentionState(first.state, first.normalizer if spec.normalize else None)
    rest = range(cut, min(layer.call.length, cut + runner.steps(20)))
    if cut < layer.call.length:
        decays = layer.decays(cut)
        outputs.append(layer.forward(q[:, cut:], k[:, cut:], v[:, cut:], state, decays=decays).o)
    pieces = max(tolerance, FORWARD[layer.state_dtype], key=lambda one: one.norm).loosened(4)
    assert_reaches("o of pieces", torch.cat(outputs, 1), wanted, pieces)
    steps = [layer.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], state, t) for t in rest]
    assert_reaches("o of steps", torch.cat([first.o, *steps], 1), wanted[:, : cut + len(rest)], pieces)


@given(data=st.data())
def test_sliding_window(runner: Runner, data: st.DataObject) -> None:
    past = data.draw(st.sampled_from((0, 0, 7, 70)), "past")
    layer = draw_window(data, runner, past)
    q, k, v = layer.qkv()
    first = layer.first() if past and data.draw(st.booleans(), "padded") else None
    q, k, v = draw_poison(data, q=q, k=k, v=v).into(q=q, k=k, v=v)
    wanted = rows.sliding_window(
        layer.spec.window, *wide(q, k, v), layer.call.scale, None if first is None else first.cpu()
    ).to(q.device)
    tolerance = FORWARD[layer.call.dtype]
    assert_reaches("o", layer.forward(q, k, v, first)[0], wanted, tolerance)
    if not past:
        ring = layer.ring()
        tokens = range(min(layer.call.length, runner.steps(100)))
        steps = [layer.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], ring) for t in tokens]
        assert_reaches("o of steps", torch.cat(steps, 1), wanted[:, : len(tokens)], tolerance.loosened(2))


@pytest.mark.slow_in_c
@given(data=st.data())
def test_hybrid(runner: Runner, data: st.DataObject) -> None:
    layer = draw_hybrid(data, runner)
    inputs = layer.inputs()
    named = dict(zip(layer.names, inputs, strict=True))
    # A query or key that only older ones meet may be read with a state of none, or not at all.
    asked = {name: x for name, x in named.items() if name not in ("q", "k") or not layer.spec.window_qk}
    poisoned = draw_poison(data, **asked).into(**named)
    first = layer.cleared(poisoned)
    wanted = rows.hybrid(
        layer.spec,
        *wide(*poisoned[:3]),
        layer.call.scale,
        *wide(*poisoned[3:]),
        first=None if first is None else first.cpu(),
    )
    tolerance = FORWARD[layer.call.dtype]
    o = layer.forward(poisoned, first).o
    assert_reaches("o", o, wanted.to(o.device), tolerance)
    if not layer.past:
        state, tokens = layer.empty(), range(min(layer.call.length, runner.steps(100)))
        steps = [layer.step([x[:, t : t + 1] for x in poisoned], state) for t in tokens]
        found = torch.cat(steps, 1)
        assert_reaches("o of steps", found, wanted[:, : len(tokens)].to(o.device), tolerance.loosened(2))


def without_weights(q: Tensor, k: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Copies with scores of minus infinity at more keys in a row than a window has: it sees nothing else."""
    q, k = (x.clone(memory_format=torch.contiguous_format) for x in (q, k))
    q[..., 0], k[:, 3 : 3 + window + 5, :, 0] = 1.0, -math.inf
    return q, k


@given(data=st.data())
def test_a_window_whose_keys_have_no_weight(runner: Runner, data: st.DataObject) -> None:
    """The row is NaN, as a softmax is; no hidden key has the weight instead."""
    layer = draw_window(data, runner, data.draw(st.sampled_from((0, 7)), "past"))
    q, k, v = layer.qkv()
    q, k = without_weights(q, k, layer.spec.window)
    wanted = rows.sliding_window(layer.spec.window, *wide(q, k, v), layer.call.scale).to(q.device)
    assert_reaches("o", layer.forward(q, k, v)[0], wanted, FORWARD[layer.call.dtype])


def assert_gradients_reach(
    found: tuple[Tensor, ...],
    naive: Callable[..., Tensor],
    do: Tensor,
    inputs: list[Tensor],
    dtype: torch.dtype,
    size: float,
    names: Sequence[str] = "qkv",
) -> None:
    """Gradients of a token are finite where autograd's are, and these agree."""
    leaves = wide(*inputs)
    wanted = torch.autograd.grad(naive(*leaves), leaves, do.double().cpu())
    for name, got, want in zip(names, found, wanted, strict=False):
        got, finite = got.cpu(), want.isfinite().all(-1, keepdim=True)
        astray = (finite & ~got.isfinite().all(-1, keepdim=True)).nonzero()
        assert not len(astray), f"gradient of {name}: not finite at {astray[:5].tolist()}"
        kept = (torch.where(finite, x, 0) for x in (got, want))
        assert_close(f"gradient of {name}", *kept, BACKWARD[dtype], torch.full_like(want, size))


@given(data=st.data())
def test_gradients_of_linear_attention(runner: Runner, data: st.DataObject) -> None:
    layer = draw_linear(data, runner)
    q, k, v = layer.qkv()
    do = layer.output_gradient()
    # Of an infinity a sum of features makes NaN where the weights' own sum is infinite, and divides to 0.
    only_nan = "" if runner.backend == "torch" else "qk"
    q, k, v, do = draw_poison(data, only_nan, q=q, k=k, v=v, do=do).into(q=q, k=k, v=v, do=do)
    found = layer.backward(do, None, q, k, v, layer.forward(q, k, v))

    def naive(*leaves: Tensor) -> Tensor:
        return rows.linear_attention(layer.spec, *leaves, layer.call.scale, *layer.decays())

    assert_gradients_reach(found[:3], naive, do, [q, k, v], layer.call.dtype, 1.0)


@given(data=st.data())
def test_gradients_of_decays(runner: Runner, data: st.DataObject) -> None:
    """A decay that lies between no pair with a value of NaN has a number.

    Of an output's gradient that is not so: it is in differences that add up over the rest of a segment.
    """
    fading = [replace(spec, normalize=False) for spec in runner.linear_pool() if spec.decay == "token"]
    if not fading:
        pytest.skip("no layer of the pool has a decay a token")
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(fading), "spec")
    module = runner.module(spec, data.draw(st.sampled_from([None, *runner.forms(dtype)]), "form"))
    call = data.draw(calls(runner, spec, dtype, LONGEST[runner.device]), "call")
    layer = linear.Layer(spec, module, call)
    q, k, v = layer.qkv()
    do = layer.output_gradient()
    (v,) = draw_poison(data, "v", v=v).into(v=v)
    found = layer.backward(do, None, q, k, v, layer.forward(q, k, v)).g
    (g,) = wide(*layer.decays())
    o = rows.linear_attention(spec, *wide(q, k, v), call.scale, g)
    (wanted,) = torch.autograd.grad(o, g, do.double().cpu())
    finite = wanted.isfinite()
    astray = (finite & ~found.cpu().isfinite()).nonzero()
    assert not len(astray), f"gradient of g: not finite at {astray[:5].tolist()}"
    kept = (torch.where(finite, x, 0) for x in (found.cpu(), wanted))
    assert_close("gradient of g", *kept, BACKWARD[dtype], torch.ones_like(wanted))


@given(data=st.data())
def test_gradients_of_sliding_window(runner: Runner, data: st.DataObject) -> None:
    layer = draw_window(data, runner, past=0)
    q, k, v = layer.qkv()
    do = layer.output_gradient()
    q, k, v, do = draw_poison(data, q=q, k=k, v=v, do=do).into(q=q, k=k, v=v, do=do)
    found = layer.backward(do, q, k, v, *layer.forward(q, k, v))

    def naive(*leaves: Tensor) -> Tensor:
        return rows.sliding_window(layer.spec.window, *leaves, layer.call.scale)

    assert_gradients_reach(found, naive, do, [q, k, v], layer.call.dtype, 1.0)


@pytest.mark.slow_in_c
@given(data=st.data())
def test_gradients_of_hybrids(runner: Runner, data: st.DataObject) -> None:
    layer = draw_hybrid(data, runner)
    inputs = layer.inputs()
    do = layer.output_gradient(inputs, layer.first())
    named = dict(zip(layer.names, inputs, strict=True)) | {"do": do}
    # As of linear attention: an infinite key makes NaN of a sum that divides to 0.  And a query or key that
    # only older ones meet may be read with a state of none, or not at all.
    asked = ["v", "do", *(layer.names[3:] or ("q", "k"))]
    name = data.draw(st.sampled_from(asked), "poisoned")
    place = [data.draw(st.integers(0, extent - 1), "place") for extent in named[name].shape]
    number = data.draw(st.sampled_from(NUMBERS if name in ("v", "do") else NUMBERS[:1]), "number")
    *inputs, do = Poison(name, number, *place).into(**named)
    first = layer.cleared(inputs)
    found = dict(
        zip(layer.names, layer.backward(do, inputs, layer.forward(inputs, first), first), strict=False)
    )
    start = None if first is None else first.cpu()

    def naive(*leaves: Tensor) -> Tensor:
        every = dict(zip(layer.names, wide(*inputs), strict=True)) | dict(zip(order, leaves, strict=True))
        q, k, v, *more = every.values()
        return rows.hybrid(layer.spec, q, k, v, layer.call.scale, *more, first=start)

    order = [name for name in layer.names if name in asked]
    given = [x for name, x in zip(layer.names, inputs, strict=True) if name in asked]
    assert_gradients_reach(
        tuple(found[name] for name in order), naive, do, given, layer.call.dtype, 1.0, order
    )
