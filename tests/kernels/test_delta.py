"""Properties of the delta rule on every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen import pipeline
from tests.kernels.delta import DELTA, IDENTITY, Inputs, Layer, doubled, layers
from tests.kernels.runners import Runner
from tests.tolerance import BACKWARD, CORRECTED, FORWARD, assert_close, assert_same, rms


@pytest.mark.parametrize("target", ["triton", "tilelang", "torch"])
def test_every_dtype_has_every_program(target: str) -> None:
    """A recurrence float32 alone leaves out; a walk over the chunks has nothing in its place."""
    lowered = pipeline.lower(replace(DELTA[0], dtypes=("float32",)))
    assert [x.name for x in pipeline.kernels(lowered, target)] == [x.name for x in lowered.programs]


def check_against_reference(layer: Layer, data: st.DataObject) -> None:
    """Outputs, final states and gradients of all inputs, by the recurrence in float64."""
    dtype = layer.call.dtype
    x, do = layer.inputs(), layer.output_gradient()
    initial = layer.random_state(layer.call.batch, 4) if data.draw(st.booleans(), "initial state") else None
    d_final = layer.random_state(layer.call.batch, 5) if data.draw(st.booleans(), "d final state") else None
    found = layer.forward(x, initial)
    wanted = layer.expected(doubled(x), None if initial is None else initial.double())
    # A query may be nearly at right angles to a key, the gradient of an output to a value.
    answers = layer.call.scale * rms(wanted.state)
    debts = layer.call.scale * rms(do) * rms(x.v) * (x.v.shape[-1] / x.k.shape[-1]) ** 0.5 / 4
    assert_close("o", found.o, wanted.o, FORWARD[dtype].loosened(CORRECTED), answers)
    assert_close("final state", found.state, wanted.state, FORWARD[dtype].loosened(CORRECTED))
    gradients = layer.backward(do, d_final, x, initial)
    expected = layer.expected_gradients(do, d_final, x, initial)
    # Of a rate: a value times its gradient, summed over the columns, where terms may cancel.
    rates = rms(x.v) * rms(expected.v) * x.v.shape[-1] ** 0.5 / 4
    for name, gradient, exact in zip(expected._fields, gradients, expected, strict=True):
        if exact is None:
            continue
        # Decays sum differences over all later tokens.
        tolerance = BACKWARD[dtype].loosened(4 * CORRECTED if name == "g" else CORRECTED)
        floor = {"beta": rates, "g": rates, "q": debts, "k": debts}.get(name)
        assert_close(f"gradient of {name}", gradient, exact, tolerance, floor)


@given(data=st.data())
def test_against_reference(runner: Runner, data: st.DataObject) -> None:
    check_against_reference(data.draw(layers(runner)), data)


@given(data=st.data())
def test_a_packed_sequence_against_reference(runner: Runner, data: st.DataObject) -> None:
    layer = data.draw(layers(runner, one=True))
    places = torch.tensor([[0, layer.call.length]], dtype=torch.int32, device=runner.device)
    check_against_reference(Layer(layer.spec, layer.module, layer.call, places), data)


@given(data=st.data())
def test_packed_sequences_do_not_know_each_other(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit: a sequence among others, with tokens of nobody that hold NaN in between, and alone."""
    layer = data.draw(layers(runner, one=True))
    length, device = layer.call.length, runner.device
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    x, do = layer.inputs(), layer.output_gradient().clone()
    x = Inputs(*(None if y is None else y.clone() for y in x))
    nobodys = torch.ones(length, dtype=torch.bool, device=device)
    for start, stop in edges:
        nobodys[start:stop] = False
    for y in (*x, do):
        if y is not None and y.dim() > 1:
            y[:, nobodys] = float("nan")
    initial, d_final = (layer.random_state(len(edges), salt) for salt in (4, 5))

    def run(places: list[tuple[int, int]], x: Inputs, do: Tensor, own: slice) -> tuple[Tensor, ...]:
        table = torch.tensor(places, dtype=torch.int32, device=device).view(-1, 2)
        packed = Layer(layer.spec, layer.module, layer.call, table)
        found = packed.forward(x, initial[own])
        return *found, *packed.backward(do, d_final[own], x, initial[own])

    every = run(edges, x, do, slice(None))
    names = ("o", "final state", *(f"gradient of {n}" for n in ("q", "k", "v", "beta", "g", "initial state")))
    for n, (start, stop) in enumerate(edges):
        if start == stop:
            assert_same("state after no tokens", every[1][n], initial[n])
            continue
        alone = run([(0, stop - start)], x.tokens(start, stop), do[:, start:stop], slice(n, n + 1))
        for name, whole, part in zip(names, every, alone, strict=True):
            if part is None or (name == "gradient of g" and part.dim() == 1):
                continue
            of_state = "state" in name
            assert_same(name, whole[n : n + 1] if of_state else whole[:, start:stop], part)
    for name, whole in zip(names, every, strict=True):
        if whole is not None and whole.dim() > 1 and "state" not in name:
            assert not whole[:, nobodys].any(), f"{name} of tokens that no sequence has"


@given(data=st.data())
def test_pieces_and_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    """Any split of the sequence, each piece from the state before it; and tokens one by one or a few."""
    layer = data.draw(layers(runner, runner.steps(40) * 2))
    x, length = layer.inputs(), layer.call.length
    tolerance = FORWARD[layer.call.dtype].loosened(2 * CORRECTED)
    whole = layer.forward(x)
    cut = data.draw(st.integers(0, length), "cut")
    outputs, state = [], torch.zeros_like(whole.state)
    if cut:
        piece = layer.forward(x.tokens(0, cut))
        outputs, state = [piece.o], piece.state.clone()
    while cut < length:
        count = min(data.draw(st.integers(1, 16), "tokens of a step"), length - cut)
        outputs.append(layer.step(x.tokens(cut, cut + count), state))
        cut += count
    assert_close("o", torch.cat(outputs, 1), whole.o, tolerance)
    assert_close("final state", state, whole.state, tolerance)


@given(data=st.data())
def test_a_rate_of_0_changes_nothing(runner: Runner, data: st.DataObject) -> None:
    """Such tokens may as well not be there, but for their decays."""
    layer = data.draw(layers(runner))
    x = layer.inputs()
    initial = layer.random_state(layer.call.batch, 4)
    asleep = torch.rand(layer.call.length, generator=layer.call.generator(9)).to(runner.device) < 0.5
    beta = x.beta.masked_fill(asleep[None, :, None], 0.0)
    found = layer.forward(x._replace(beta=beta), initial)
    other = torch.where(asleep[None, :, None, None], torch.full_like(x.v, 3.0), x.v)
    again = layer.forward(x._replace(beta=beta, v=other), initial)
    assert_same("o", again.o, found.o)
    assert_same("final state", again.state, found.state)
    if layer.spec.decay == "none":
        nothing = layer.forward(x._replace(beta=torch.zeros_like(beta)), initial)
        assert_same("the state", nothing.state, initial)


@given(data=st.data())
def test_a_key_is_read_as_its_last_value(runner: Runner, data: st.DataObject) -> None:
    """With rates of 1 and one key for all tokens, whose errors must not add up over a chunk."""
    layer = data.draw(layers(runner))
    x = layer.inputs()
    k = x.k[:, :1].expand_as(x.k).contiguous()
    g = None if x.g is None else torch.zeros_like(x.g)
    found = layer.forward(Inputs(k, k, x.v, torch.ones_like(x.beta), g))
    assert_close("o", found.o, x.v, FORWARD[layer.call.dtype].loosened(2 * CORRECTED))


@given(data=st.data())
def test_the_future_changes_nothing(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit, but for gradients, that come from there."""
    layer = data.draw(layers(runner))
    x = layer.inputs()
    cut = data.draw(st.integers(1, layer.call.length), "cut")
    later = [torch.cat([y[:, :cut], -y[:, cut:]], 1) for y in (x.q, x.k, x.v)]
    changed = x._replace(q=later[0], k=later[1], v=later[2])
    assert_same("o", layer.forward(changed).o[:, :cut], layer.forward(x).o[:, :cut])


@given(data=st.data())
def test_the_gated_delta_rule_of_the_paper(runner: Runner, data: st.DataObject) -> None:
    """S_t = S_{t-1} (α_t (I - β_t k_t k_tᵀ)) + β_t v_t k_tᵀ, o_t = S_t q_t (arXiv 2412.06464, (10))."""
    if runner.backend == "tilelang":
        pytest.skip("its one layer has another feature map")
    layer = data.draw(layers(runner, 60).filter(lambda drawn: drawn.spec.feature_map == IDENTITY))
    found = layer.forward(layer.inputs())
    q, k, v, beta, g = doubled(layer.inputs())
    batch, length, heads, width = k.shape
    state = v.new_zeros(batch, heads, v.shape[-1], width)
    one = torch.eye(width, dtype=torch.float64, device=k.device)
    left = v.new_ones(batch, length, heads) if g is None else g.exp().expand(batch, length, heads)
    outputs = []
    for t in range(length):
        key, value, rate = k[:, t], v[:, t], beta[:, t, :, None, None]
        turn = one - rate * key[..., :, None] * key[..., None, :]
        state = left[:, t, :, None, None] * state @ turn + rate * value[..., :, None] * key[..., None, :]
        outputs.append((state @ q[:, t, :, :, None]).squeeze(-1))
    tolerance = FORWARD[layer.call.dtype].loosened(CORRECTED)
    assert_close("o", found.o, torch.stack(outputs, 1), tolerance)
