"""Linear attention kernels against naive mathematics in float64, on every backend that runs here."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from based_ops.codegen.spec.model import Elementwise, Power, TaylorExp
from based_ops.state import LinearAttentionState, feature_count
from tests.kernels import naive
from tests.kernels.inputs import calls
from tests.kernels.linear import Layer, expected, expected_gradients
from tests.kernels.runners import Runner
from tests.layers import LINEAR
from tests.tolerance import BACKWARD, FORWARD, Tolerance, assert_close, assert_same, errors, rms


def draw_layer(data: st.DataObject, runner: Runner, most: int = 5000) -> Layer:
    """Any layer with any call of it that the runner affords."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(runner.linear_attentions(dtype), "spec")
    module = runner.module(spec, data.draw(st.sampled_from([None, *runner.forms(dtype)]), "form"))
    return Layer(spec, module, data.draw(calls(runner, spec, dtype, most), "call"))


def of_state(table: dict[torch.dtype, Tolerance], layer: Layer) -> Tolerance:
    """The tolerance of what went through the inputs' dtype and through the state's."""
    return max(table[layer.call.dtype], table[layer.state_dtype], key=lambda tolerance: tolerance.norm)


def of_weights(table: dict[torch.dtype, Tolerance], layer: Layer) -> Tolerance:
    """The tolerance of sums of weights: a power has its degree times the relative error of its score."""
    power = layer.spec.feature_map
    return table[layer.call.dtype].loosened(power.degree if isinstance(power, Power) else 1)


@given(data=st.data())
def test_forward_equals_reference(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner)
    q, k, v = layer.qkv()
    before = [x.clone() for x in (q, k, v)]
    initial = layer.earlier() if data.draw(st.booleans(), "initial state") else None
    final = data.draw(st.booleans(), "final state wanted")
    found = layer.forward(q, k, v, initial, final)
    o, state = expected(layer, q, k, v, initial)
    assert_close("o", found.o, o, of_weights(FORWARD, layer))
    assert found.o.dtype == layer.call.dtype and found.o.is_contiguous()
    if final:
        assert found.state.dtype == layer.state_dtype
        assert_close("final state", found.state, state.state, of_state(FORWARD, layer))
        if layer.spec.normalize:
            assert_close("final normalizer", found.normalizer, state.normalizer, of_state(FORWARD, layer))
    for name, tensor, absent in (
        ("n", found.n, not layer.spec.normalize),
        ("final state", found.state, not final),
        ("final normalizer", found.normalizer, not final or not layer.spec.normalize),
    ):
        assert (tensor.shape == (0,)) == absent, name
    for name, old, new in zip("qkv", before, (q, k, v), strict=True):
        assert_same(f"{name} after the call", new, old)


@given(data=st.data())
def test_gradients_equal_autograd(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    q, k, v = layer.qkv()
    do = layer.output_gradient()
    initial = layer.earlier() if data.draw(st.booleans(), "initial state") else None
    forward = layer.forward(q, k, v, initial)
    like = LinearAttentionState(forward.state, forward.normalizer if layer.spec.normalize else None)
    d_final = layer.random_like(like, 6) if data.draw(st.booleans(), "gradient of the final state") else None
    found = layer.backward(do, d_final, q, k, v, forward, initial)
    wanted = expected_gradients(layer, do, d_final, q, k, v, initial)
    if isinstance(layer.spec.feature_map, Elementwise) and layer.call.dtype != torch.float64:
        # Kernels compute maps in float32, in which sqrt(x*x + 1) may be 1: at a kink either slope is right.
        single = expected_gradients(layer, do, d_final, q, k, v, initial, torch.float32)
        loose = BACKWARD[torch.float32].loosened(10)
        pairs = zip(single, wanted, strict=True)
        assume(all(loose.allows(errors(x, y, rms(part))) for (x, _), (y, part) in pairs))
    parts = ("state", "normalizer")[: 1 + layer.spec.normalize] if initial else ()
    names = ("q", "k", "v", *parts, *("g" for _ in layer.decays()))
    for name, (gradient, part) in zip(names, wanted, strict=True):
        tolerance = of_state(BACKWARD, layer) if name in parts else BACKWARD[layer.call.dtype]
        if name == "g":  # a sum over all later tokens, of differences
            tolerance = tolerance.loosened(4)
        assert_close(f"gradient of {name}", getattr(found, name), gradient, tolerance, floor=part)
    for name in {"state", "normalizer"} - {*parts}:
        assert getattr(found, name).shape == (0,), f"gradient of {name}, which was not given"


@given(data=st.data())
def test_the_future_changes_nothing(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit: no output depends on later tokens, and no key's gradient on earlier queries."""
    layer = draw_layer(data, runner, most=1500)
    q, k, v = (x.contiguous() for x in layer.qkv())
    do = layer.output_gradient().contiguous()
    cut = data.draw(st.integers(1, layer.call.length), "cut")
    first = layer.forward(q, k, v)
    changed = [torch.cat([x[:, :cut], 7.0 - 3.0 * x[:, cut:]], 1) for x in (q, k, v)]
    assert_same("outputs before the cut", layer.forward(*changed).o[:, :cut], first.o[:, :cut])

    gradients = layer.backward(do, None, q, k, v, first)
    past = torch.cat([5.0 * do[:, :cut] - 1.0, do[:, cut:]], 1)
    again = layer.backward(past, None, q, k, v, first)
    assert_same("dk after the cut", again.k[:, cut:], gradients.k[:, cut:])
    assert_same("dv after the cut", again.v[:, cut:], gradients.v[:, cut:])


@given(data=st.data())
def test_linear_in_values(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    assume(
        layer.call.dtype in (torch.float32, torch.float64)
    )  # sums of rounded inputs are not rounded inputs
    q, k, v = layer.qkv()
    w = layer.call.tensor(layer.spec.head_dims.v, salt=9)
    both = 2.0 * layer.forward(q, k, v).o - 0.5 * layer.forward(q, k, w).o
    assert_close("o", layer.forward(q, k, 2.0 * v - 0.5 * w).o, both, FORWARD[layer.call.dtype].loosened(3))


@given(data=st.data())
def test_constant_values_come_back(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner)
    assume(layer.spec.normalize)
    q, k, v = layer.qkv()
    found = layer.forward(q, k, torch.ones_like(v))
    share = (found.n.double() / (found.n.double() + layer.spec.eps)).mT.unsqueeze(-1).expand_as(found.o)
    assert_close("o", found.o, share, FORWARD[layer.call.dtype])


@given(data=st.data())
def test_pieces_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    """Any split of the sequence, each piece from the state before it, down to steps of one token."""
    layer = draw_layer(data, runner, most=1500)
    q, k, v = layer.qkv()
    length = layer.call.length
    cuts = data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=3), "cuts")
    bounds = sorted({0, *(cut for cut in cuts if cut < length), length})
    whole = layer.forward(q, k, v)
    state: LinearAttentionState | None = None
    outputs = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        decays = layer.decays(start, stop)
        piece = layer.forward(q[:, start:stop], k[:, start:stop], v[:, start:stop], state, decays=decays)
        outputs.append(piece.o)
        state = LinearAttentionState(piece.state, piece.normalizer if layer.spec.normalize else None)
    assert state is not None
    tolerance = of_state(FORWARD, layer).loosened(len(outputs))
    assert_close("o", torch.cat(outputs, 1), whole.o, tolerance)
    assert_close("final state", state.state, whole.state, tolerance)
    if state.normalizer is not None:
        assert_close("final normalizer", state.normalizer, whole.normalizer, tolerance)


@given(data=st.data())
def test_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=runner.steps(24))
    q, k, v = layer.qkv()
    length = layer.call.length
    initial = layer.earlier() if data.draw(st.booleans(), "initial state") else None
    state = LinearAttentionState(*(None if x is None else x.clone() for x in initial or layer.empty()))
    steps = [layer.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], state, t) for t in range(length)]
    o, final = expected(layer, q, k, v, initial)
    # A state of few digits loses some at every token.
    tolerance = of_state(FORWARD, layer).loosened(1 if layer.state_dtype == torch.float64 else 4)
    assert_close("o", torch.cat(steps, 1), o, tolerance)
    assert_close("state", state.state, final.state, tolerance)
    if state.normalizer is not None:
        assert_close("normalizer", state.normalizer, final.normalizer, tolerance)


@given(data=st.data())
def test_a_step_changes_exactly_the_state(runner: Runner, data: st.DataObject) -> None:
    """The state is updated in place; its neighbours in memory and the inputs are not."""
    layer = draw_layer(data, runner, most=3)
    q, k, v = (x[:, :1] for x in layer.qkv())
    before = [x.clone() for x in (q, k, v)]
    earlier = layer.earlier()
    rooms = [
        None if x is None else torch.full((3, *x.shape), 7.0, dtype=x.dtype, device=x.device) for x in earlier
    ]
    for room, x in zip(rooms, earlier, strict=True):
        if room is not None:
            room[1] = x
    state = LinearAttentionState(*(None if room is None else room[1] for room in rooms))
    addresses = [x.data_ptr() for x in state if x is not None]
    layer.step(q, k, v, state)
    _, final = expected(layer, q, k, v, earlier)
    assert [x.data_ptr() for x in state if x is not None] == addresses
    assert_close("state", state.state, final.state, of_state(FORWARD, layer))
    for room in rooms:
        assert room is None or bool((room[0::2] == 7.0).all())
    for name, old, new in zip("qkv", before, (q, k, v), strict=True):
        assert_same(f"{name} after the step", new, old)


@given(data=st.data())
def test_batch_and_heads_are_independent(runner: Runner, data: st.DataObject) -> None:
    layer = draw_layer(data, runner, most=1500)
    q, k, v = layer.qkv()
    batch = data.draw(st.permutations(range(layer.call.batch)), "batch order")
    heads = data.draw(st.permutations(range(layer.call.heads)), "heads order")
    decays = tuple(g[batch][:, :, heads] if g.dim() > 1 else g[heads] for g in layer.decays())
    shuffled = layer.forward(*(x[batch][:, :, heads] for x in (q, k, v)), decays=decays)
    plain = layer.forward(q, k, v)
    assert_close("o", shuffled.o, plain.o[batch][:, :, heads], FORWARD[layer.call.dtype])
    assert_close("final state", shuffled.state, plain.state[batch][:, heads], FORWARD[layer.call.dtype])


@given(data=st.data())
def test_token_by_token_oracle(runner: Runner, data: st.DataObject) -> None:
    """The reference is not the only judge: a second oracle shares no line with it."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.linear_pool()), "spec")
    layer = Layer(spec, runner.module(spec), data.draw(calls(runner, spec, dtype, 60), "call"))
    q, k, v = (x[:, :60] for x in layer.qkv())
    found = layer.forward(q, k, v).o
    decays = [g.double().cpu().expand(layer.call.batch, q.shape[1], -1).numpy() for g in layer.decays()]
    wanted = np.stack(
        [
            np.stack(
                [
                    naive.linear_attention(
                        _weight(layer),
                        spec.eps if spec.normalize else None,
                        q[b, :, h],
                        k[b, :, h],
                        v[b, :, h],
                        *(g[b, :, h] for g in decays),
                    )
                    for h in range(layer.call.heads)
                ],
                axis=1,
            )
            for b in range(layer.call.batch)
        ]
    )
    assert_close("o", found, torch.from_numpy(wanted), of_weights(FORWARD, layer))


def _weight(layer: Layer) -> object:
    match layer.spec.feature_map:
        case TaylorExp(order=order):
            return naive.taylor(order, layer.call.scale)
        case Power(degree=degree):
            return naive.power(degree, layer.call.scale)
        case Elementwise(expression=text):
            return naive.mapped(text, layer.call.scale)


def test_state_rows() -> None:
    """The state of a polynomial is the packed symmetric one."""
    rows = [153, 45, 153, 20, 55, 25, 64, 8, 325, 128, 250, 45, 20, 165, 45, 120, 330]
    assert [feature_count(spec) for spec in LINEAR] == rows
