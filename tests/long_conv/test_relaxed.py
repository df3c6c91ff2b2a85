"""A convolution a token at a time: as the convolution at once, in work of L log² L."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops import get, layers
from based_ops.errors import GradientError, ShapeError, StateError
from based_ops.layers import RelaxedConvolution
from based_ops.recall.catalogue import compiled, convolution

CONV = compiled(convolution(3))
LONG = get("long_conv_l2048")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3), st.integers(1, 70), st.integers(1, 4), st.integers(0, 70), st.integers(0, 10**6))
def test_steps_are_the_convolution(batch: int, length: int, width: int, prompt: int, seed: int) -> None:
    """However many tokens come at once before them, and in between."""
    torch.manual_seed(seed)
    u, h = torch.randn(batch, length, width).double(), torch.randn(length, width).double()
    relaxed = RelaxedConvolution(h)
    state = relaxed.init_state(batch)
    prompt = min(prompt, length)
    found = [relaxed.extend(u[:, :prompt], state)]
    again = (prompt + length) // 2
    found += [relaxed.step(u[:, t : t + 1], state) for t in range(prompt, again)]
    found.append(relaxed.extend(u[:, again : again + 1], state))
    found += [relaxed.step(u[:, t : t + 1], state) for t in range(again + 1, length)]
    torch.testing.assert_close(torch.cat(found, 1), LONG(u, h)[0], rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=5), st.integers(0, 10**6))
def test_slots_of_a_pool_go_on_each_from_its_own_length(begun: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    slots, h = len(begun), torch.randn(40, 3).double()
    relaxed = RelaxedConvolution(h)
    u = torch.randn(slots, 40, 3).double()
    pool = relaxed.init_state(slots)
    for t in range(max(begun)):
        named = [slot if t < begun[slot] else -1 for slot in range(slots)]
        relaxed.step(u[:, t : t + 1], pool, named)
    order = torch.randperm(slots).tolist()[:-1] + [-1]
    y = relaxed.step(torch.stack([u[slot, begun[slot]] for slot in order]).unsqueeze(1), pool, order)[:, 0]
    whole, _ = LONG(u, h)
    for row, slot in enumerate(order[:-1]):
        torch.testing.assert_close(y[row], whole[slot, begun[slot]], rtol=1e-10, atol=1e-10)
    assert (y[-1] == 0).all()
    assert pool.length.tolist() == [n + (slot in order) for slot, n in enumerate(begun)]


def counted(length: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Products of all steps: those of transforms, n log n of n numbers, and of spectra."""
    relaxed = RelaxedConvolution(torch.randn(length, 1))
    state, u = relaxed.init_state(1), torch.randn(1, 1, 1)
    made: list[float] = []

    def count(transform: Any) -> Any:
        def counting(x: torch.Tensor, n: int) -> torch.Tensor:
            made.append(n * math.log2(n) + n / 2)
            return transform(x, n=n)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(torch.fft, "rfft", count(torch.fft.rfft))
        patch.setattr(torch.fft, "irfft", count(torch.fft.irfft))
        for _ in range(length):
            relaxed.step(u, state)
    return sum(made) + length


def test_work_grows_as_the_length_and_the_square_of_its_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [2**n for n in range(6, 13)]
    work = [counted(length, monkeypatch) / (length * math.log2(length) ** 2) for length in lengths]
    assert max(work) < 1.5 * min(work)
    assert counted(4096, monkeypatch) < 0.03 * 4096**2 * math.log2(4096)  # a transform for every token


def made(number: int) -> Any:
    torch.manual_seed(3)
    layer = [
        lambda: layers.Hyena(8, 40, CONV, 8),
        lambda: layers.MultiHyena(8, 2, 40, CONV, 8),
        lambda: layers.BaseConv(8, length=40),
        lambda: layers.BaseConv(8, CONV),
        lambda: layers.ExplicitConv(4, 40, share=2),
        lambda: layers.ModalConv(4, 3, share=2),
        lambda: layers.Hyena(8, 40, CONV, modes=3),
        lambda: layers.MultiHyena(8, 2, 40, CONV, modes=3),
    ][number]()
    return layer.double()


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("prompt", [0, 1, 17])
@torch.no_grad()
def test_layers_go_on_after_a_prompt(number: int, prompt: int) -> None:
    """A prompt's state, put where there is room, as engines do; then tokens one and several at a time."""
    layer = made(number)
    x = torch.randn(2, 40, 8, dtype=torch.double)
    whole = layer(x)[0]
    state = layer.init_state(2, 40) if layer.grows else layer.init_state(2)
    found = []
    if prompt:
        y, final = layer(x[:, :prompt], output_state=True)
        found.append(y)
        put(state, final)
    found += [layer.step(x[:, t : t + 1], state) for t in range(prompt, 36)]
    y, state = layer(x[:, 36:38], state, True)
    found.append(y)
    found.append(layer.step(x[:, 38:], state))
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-9, atol=1e-9)


def put(into: Any, state: Any) -> None:
    for place, x in zip(into, state, strict=True):
        if isinstance(x, tuple):
            put(place, x)
        elif x.shape == place.shape:
            place.copy_(x)
        else:
            place[:, :, : x.shape[2]] = x


@pytest.mark.parametrize("number", range(8))
def test_bytes_of_states_are_those_that_are_made(number: int) -> None:
    layer = made(number).float()

    def of(state: Any) -> int:
        return sum(of(x) for x in state) if isinstance(state, tuple) else state.nbytes

    for most in (16, 64) if layer.grows else ():
        assert of(layer.init_state(3, most)) == layer.state_bytes(3, most)


@pytest.mark.parametrize("number", [0, 1, 4, 5, 6, 7])
@torch.no_grad()
def test_sequences_that_are_packed_or_padded_are_apart(number: int) -> None:
    layer = made(number)
    lengths = [5, 1, 12]
    each = [torch.randn(1, n, 8, dtype=torch.double) for n in lengths]
    wanted = [layer(x)[0] for x in each]
    ends = torch.tensor([0, 5, 6, 18])
    torch.testing.assert_close(layer(torch.cat(each, 1), cu_seqlens=ends)[0], torch.cat(wanted, 1))
    padded = torch.cat(
        [torch.nn.functional.pad(x, (0, 0, 14 - n, 0)) for x, n in zip(each, lengths, strict=True)]
    )
    mask = torch.arange(14) >= 14 - torch.tensor(lengths).unsqueeze(1)
    y, state = layer(padded, output_state=True, attention_mask=mask)
    for row, (x, n) in enumerate(zip(wanted, lengths, strict=True)):
        torch.testing.assert_close(y[row, 14 - n :], x[0])
    # They go on as they would have alone, from a state that is given too.
    more = torch.randn(3, 3, 8, dtype=torch.double)
    room = layer.with_room(state, 30) if layer.grows and hasattr(layer, "with_room") else state
    room = state.with_room(30) if number == 4 else room
    there = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    y, room = layer(more, room, True, attention_mask=there)
    last = torch.randn(3, 1, 8, dtype=torch.double)
    y = torch.cat([y, layer.step(last, room)], 1)
    for row, x in enumerate(each):
        own = torch.cat([x, more[row : row + 1, row:], last[row : row + 1]], 1)
        torch.testing.assert_close(y[row, row:], layer(own)[0][0, lengths[row] :])


def test_states_have_no_gradients() -> None:
    layer, x = made(4), torch.randn(1, 4, 8, dtype=torch.double)
    with pytest.raises(GradientError, match="bias: got a tensor that requires a gradient"):
        layer.step(x, layer.init_state(1))
    with pytest.raises(GradientError, match="x: got a tensor that requires a gradient"):
        layer(x.requires_grad_(), layer.init_state(1))


@torch.no_grad()
def test_a_filter_that_has_changed_is_made_anew() -> None:
    layer = made(4)
    x = torch.randn(1, 4, 8, dtype=torch.double)
    before = layer.step(x, layer.init_state(1))
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    torch.testing.assert_close(layer.step(x, layer.init_state(1)), 2 * before)


@torch.no_grad()
def test_what_does_not_fit() -> None:
    layer = made(0)
    x = torch.zeros(1, 41, 8, dtype=torch.double)
    with pytest.raises(
        ShapeError, match=r"x: got \(1, 41, 8\), must be of shape \[B, T up to 40, 8\] for Hyena"
    ):
        layer(x)
    with pytest.raises(StateError, match="cu_seqlens: got packed sequences with a state"):
        layer(x[:, :4], output_state=True, cu_seqlens=torch.tensor([0, 2, 4]))
    state = layer.init_state(1)
    layer(x[:, :38], state)
    with pytest.raises(StateError, match="room for 40 tokens, 38 of them taken and 3 more to come.*40 taps"):
        layer.step(x[:, :3], state)
    with pytest.raises(StateError, match="state: got tuple, must be a HyenaState"):
        layer.step(x[:, :3], ())
    with pytest.raises(ShapeError, match=r"filters: got \(0, 3\), must be of shape \[T, D\]"):
        RelaxedConvolution(torch.zeros(0, 3))
