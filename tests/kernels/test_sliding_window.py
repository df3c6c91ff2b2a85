"""Sliding-window kernels against naive mathematics in float64, on every backend that runs here."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from based_ops import reference
from based_ops.state import SlidingWindowState
from tests.kernels import naive
from tests.kernels.inputs import calls
from tests.kernels.runners import Runner
from tests.kernels.window import Layer, expected
from tests.tolerance import BACKWARD, FORWARD, assert_close, assert_same


def draw_layer(data: st.DataObject, runner: Runner, most: int = 5000, past: bool = True) -> Layer:
    """Any layer with any call of it that the runner affords."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(runner.windows(), "spec")
    call = data.draw(calls(runner, spec, dtype, most), "call")
    reach = data.draw(st.integers(0, 40) | st.just(spec.window), "keys before the queries") if past else 0
    form = data.draw(st.sampled_from(runner.window_forms()), "form")
    return Layer(spec, runner.module(spec, form), call, reach)


@given(data=st.data())
def test_forward_equals_reference(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner)
    q, k, v = layer.qkv()
    before = [x.clone() for x in (q, k, v)]
    first = layer.first() if data.draw(st.booleans(), "first key") else None
    o, lse = layer.forward(q, k, v, first)
    wanted, wanted_lse = expected(layer.spec.window, layer.call.scale, q, k, v, first)
    assert o.dtype == layer.call.dtype and o.is_contiguous()
    assert_close("o", o, wanted, FORWARD[layer.call.dtype])
    # An absolute bound: the logarithm of a sum can be 0.
    assert_close("lse", lse, wanted_lse, FORWARD[layer.call.dtype], floor=torch.ones_like(wanted_lse))
    for name, old, new in zip("qkv", before, (q, k, v), strict=True):
        assert_same(f"{name} after the call", new, old)


@given(data=st.data())
def test_agrees_with_the_package_reference(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, past=False)
    q, k, v = layer.qkv()
    o = reference.sliding_window(layer.spec.window, q.double(), k.double(), v.double(), layer.call.scale)[0]
    assert_close("o", layer.forward(q, k, v)[0], o, FORWARD[layer.call.dtype])


@given(data=st.data())
def test_gradients_equal_autograd(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    q, k, v = layer.qkv()
    do = layer.output_gradient()
    first = layer.first() if data.draw(st.booleans(), "first key") else None
    o, lse = layer.forward(q, k, v, first)
    found = layer.backward(do, q, k, v, o, lse, first)
    leaves = [x.double().detach().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(
        expected(layer.spec.window, layer.call.scale, *leaves, first)[0], leaves, do.double()
    )
    # The difference of do·v and do·o, which are equal where a query sees one key, is what reaches q and k.
    size = layer.call.scale * float(do.double().square().mean().sqrt()) * layer.spec.head_dims.v**0.5 / 8
    for name, actual, gradient in zip("qkv", found, wanted, strict=True):
        floor = torch.full_like(gradient, 0.0 if name == "v" else size)
        assert_close(f"gradient of {name}", actual, gradient, BACKWARD[layer.call.dtype], floor)


@given(data=st.data())
def test_what_is_outside_the_window_changes_nothing(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit: neither later keys nor keys older than the window."""
    layer = draw_layer(data, runner, most=1500)
    q, k, v = (x.contiguous() for x in layer.qkv())
    query = data.draw(st.integers(0, layer.call.length - 1), "query")
    place = query + layer.past
    near = torch.zeros(k.shape[1], dtype=torch.bool, device=k.device)
    near[max(0, place + 1 - layer.spec.window) : place + 1] = True
    changed = [torch.where(near[:, None, None], x, 5.0 - 3.0 * x) for x in (k, v)]
    assert_same("o", layer.forward(q, *changed)[0][:, query], layer.forward(q, k, v)[0][:, query])


@given(data=st.data())
def test_linear_in_values(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    assume(layer.call.dtype in (torch.float32, torch.float64))
    q, k, v = layer.qkv()
    w = layer.call.values(*v.shape, salt=9).to(v.device)
    both = 2.0 * layer.forward(q, k, v)[0] - 0.5 * layer.forward(q, k, w)[0]
    assert_close("o", layer.forward(q, k, 2.0 * v - 0.5 * w)[0], both, FORWARD[layer.call.dtype].loosened(3))


@given(data=st.data())
def test_constant_values_come_back(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner)
    q, k, v = layer.qkv()
    o = layer.forward(q, k, torch.ones_like(v))[0]
    assert_close("o", o, torch.ones_like(o), FORWARD[layer.call.dtype])


@given(data=st.data())
def test_a_window_of_everything_is_causal_attention(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, past=False)
    assume(layer.spec.window >= layer.call.length)
    q, k, v = layer.qkv()
    heads_first = (x.double().transpose(1, 2) for x in (q, k, v))
    causal = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, is_causal=True, scale=layer.call.scale
    )
    assert_close("o", layer.forward(q, k, v)[0], causal.transpose(1, 2), FORWARD[layer.call.dtype])


@given(data=st.data())
def test_pieces_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    """The second piece sees the last keys of the first."""
    layer = draw_layer(data, runner, past=False)
    q, k, v = layer.qkv()
    cut = data.draw(st.integers(0, layer.call.length - 1), "cut")
    start = max(0, cut + 1 - layer.spec.window)
    whole = layer.forward(q, k, v)[0]
    second = layer.forward(q[:, cut:], k[:, start:], v[:, start:])[0]
    assert_close("second piece", second, whole[:, cut:], FORWARD[layer.call.dtype])
    if cut:
        first = layer.forward(q[:, :cut], k[:, :cut], v[:, :cut])[0]
        assert_close("first piece", first, whole[:, :cut], FORWARD[layer.call.dtype])


@given(data=st.data())
def test_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=runner.steps(40), past=False)
    q, k, v = layer.qkv()
    length = layer.call.length
    ring = layer.ring()
    steps = [layer.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], ring) for t in range(length)]
    wanted = expected(layer.spec.window, layer.call.scale, q, k, v)[0]
    assert_close("o", torch.cat(steps, 1), wanted, FORWARD[layer.call.dtype])
    state = reference.sliding_window(layer.spec.window, q.double(), k.double(), v.double(), layer.call.scale)[
        1
    ]
    for name, actual, value in zip(SlidingWindowState._fields, ring, state, strict=True):
        assert_same(name, actual.double(), value.double())


@given(data=st.data())
def test_a_step_changes_exactly_one_slot(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=3, past=False)
    q, k, v = (x[:, :1] for x in layer.qkv())
    window, position = layer.spec.window, data.draw(st.integers(0, 3 * layer.spec.window), "position")
    rooms = [
        torch.full(
            (3, layer.call.batch, layer.call.heads, window, width), 7.0, dtype=q.dtype, device=q.device
        )
        for width in (layer.spec.head_dims.qk, layer.spec.head_dims.v)
    ]
    positions = torch.full((3, layer.call.batch, layer.call.heads), 7, dtype=torch.int32, device=q.device)
    positions[1] = position
    before = [x.clone() for x in (q, k, v)]
    layer.step(q, k, v, (rooms[0][1], rooms[1][1], positions[1]))
    assert bool((positions[1] == position + 1).all()) and bool((positions[0::2] == 7).all())
    for room, token in zip(rooms, (k, v), strict=True):
        wanted = torch.full_like(room, 7.0)
        wanted[1, :, :, position % window] = token[:, 0]
        assert_same("ring", room, wanted)
    for name, old, new in zip("qkv", before, (q, k, v), strict=True):
        assert_same(f"{name} after the step", new, old)


@given(data=st.data())
def test_batch_and_heads_are_independent(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    q, k, v = layer.qkv()
    batch = data.draw(st.permutations(range(layer.call.batch)), "batch order")
    heads = data.draw(st.permutations(range(layer.call.heads)), "heads order")
    shuffled = layer.forward(*(x[batch][:, :, heads] for x in (q, k, v)))[0]
    assert_close("o", shuffled, layer.forward(q, k, v)[0][batch][:, :, heads], FORWARD[layer.call.dtype])


@given(data=st.data())
def test_token_by_token_oracle(runner: Runner, data: st.DataObject) -> None:
    """A second oracle that shares no line with the other one."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.window_pool()), "spec")
    layer = Layer(spec, runner.module(spec), data.draw(calls(runner, spec, dtype, 60), "call"))
    q, k, v = (x[:, :60] for x in layer.qkv())
    wanted = np.stack(
        [
            np.stack(
                [
                    naive.softmax_attention(layer.call.scale, spec.window, q[b, :, h], k[b, :, h], v[b, :, h])
                    for h in range(layer.call.heads)
                ],
                axis=1,
            )
            for b in range(layer.call.batch)
        ]
    )
    assert_close("o", layer.forward(q, k, v)[0], torch.from_numpy(wanted), FORWARD[dtype])
