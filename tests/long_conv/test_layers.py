"""Long convolutions against sums over the history, H3 against its recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops import get, layers
from based_ops.errors import ArgumentValueError, ShapeError, StateError


@given(st.integers(1, 3), st.integers(1, 50), st.integers(1, 3), st.sampled_from((1, 2)), st.integers(0, 99))
def test_a_convolution_is_a_sum_over_the_history(
    batch: int, length: int, width: int, share: int, seed: int
) -> None:
    """With the bias and the gate, whether filters are shared or not."""
    torch.manual_seed(seed)
    layer = layers.ExplicitConv(width, 50, share).double()
    x, gate = torch.randn(2, batch, length, width * share).double()
    h, bias = (t.repeat_interleave(share, -1) for t in (layer.filters(50), layer.bias))
    sums = torch.stack([(h[: t + 1].flip(0) * x[:, : t + 1]).sum(1) for t in range(length)], 1)
    torch.testing.assert_close(layer(x, gate=gate)[0], gate * (sums + bias * x))
    torch.testing.assert_close(layer(x)[0], sums + bias * x)


CONV = get("conv4_plain")


def made() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [
        layers.Hyena(8, 32, CONV),
        layers.H3(8, 4),
        layers.BaseConv(8, length=32),
        layers.BaseConv(8, CONV),
        layers.ImplicitConv(8, 32, groups=2),
        layers.ExplicitConv(4, 32, share=2),
        layers.MultiHyena(8, 2, 32, CONV),
    ]


def called(layer: Any, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("number", range(7))
def test_no_token_sees_a_later_one(number: int) -> None:
    layer = made()[number].double()
    x = torch.randn(2, 32, 8, dtype=torch.double, requires_grad=True)
    y = called(layer, x)
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y[:, 10].square().sum(), x, retain_graph=True)
    assert gradient[:, 11:].abs().max() < 1e-12 * gradient.abs().max()
    assert all(x is not None for x in torch.autograd.grad(y.sum(), list(layer.parameters())))
    torch.testing.assert_close(called(layer, x[:, :20]), y[:, :20])


@pytest.mark.parametrize("number", range(7))
def test_under_autocast_filters_stay_in_float32(number: int) -> None:
    layer, x = made()[number], torch.randn(2, 32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = called(layer, x)
    wanted = called(layer, x)
    assert (y - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_the_channels_of_a_head_share_its_filter() -> None:
    """MultiHyena against its definition: q_t Σ_s h_s (k ⊗ v)_(t-s), head by head."""
    torch.manual_seed(2)
    layer = layers.MultiHyena(6, 2, 16, CONV).double()
    x = torch.randn(1, 16, 6, dtype=torch.double)
    q, k, v = (y.unflatten(-1, (2, 3)) for y in layer.short(layer.in_proj(x))[0].chunk(3, -1))
    h = layer.long.filters(16)
    assert h.shape == (16, 2)
    taps = h.clone()
    taps[0] += layer.long.bias
    y = torch.zeros(1, 16, 2, 3, dtype=torch.double)
    for t in range(16):
        for s in range(t + 1):
            weight = taps[s] * (q[:, t] * k[:, t - s]).sum(-1)
            y[:, t] += weight.unsqueeze(-1) * v[:, t - s]
    torch.testing.assert_close(called(layer, x), layer.out_proj(y.flatten(-2)))


def test_h3_is_two_recurrences() -> None:
    """A shift register of the keys, and poles that each token turns and shrinks (zero-order hold)."""
    torch.manual_seed(1)
    layer = layers.H3(3, 4).double()
    x = torch.randn(1, 12, 3, dtype=torch.double)
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    pole = torch.complex(-layer.log_decay.exp(), layer.frequency)
    turn = torch.exp(pole * layer.log_step.exp().unsqueeze(-1))
    register = torch.zeros(3, 4, dtype=torch.double)
    state = torch.zeros(3, 2, dtype=torch.cdouble)
    found = []
    for t in range(12):
        register = torch.cat([k[0, t].unsqueeze(1), register[:, :-1]], 1)
        entering = ((layer.shift * register).sum(1) + layer.shift_skip * k[0, t]) * v[0, t]
        state = turn * state + (turn - 1) / pole * entering.unsqueeze(1)
        read = 2 * (torch.view_as_complex(layer.read) * state).sum(1).real + layer.skip * entering
        found.append(q[0, t] * read)
    y, _ = layer(x)
    torch.testing.assert_close(y[0], layer.out_proj(torch.stack(found)))


def test_pieces_and_steps_of_h3_are_the_whole() -> None:
    torch.manual_seed(1)
    layer = layers.H3(3, 4).double()
    x = torch.randn(2, 60, 3, dtype=torch.double)
    with torch.no_grad():
        want, nothing = layer(x)
        assert nothing is None
        head, state = layer(x[:, :40], output_state=True)
        middle, state = layer(x[:, 40:42], state, output_state=True)
        steps = [layer.step(x[:, 42:50], state)]
        steps += [layer.step(x[:, t : t + 1], state) for t in range(50, 60)]
    torch.testing.assert_close(torch.cat([head, middle, *steps], 1), want)
    assert sum(part.nbytes for part in layer.init_state(3)) == layer.state_bytes(3)
    with pytest.raises(StateError, match=r"state.keys: got \(1, 4, 3\), must be of shape \(2, 4, 3\)"):
        layer.step(x[:, :1], layer.init_state(1))


def test_groups_have_filters_of_their_own() -> None:
    layer = layers.ImplicitConv(8, 16, groups=2)
    with torch.no_grad():
        before = layer.filters(16)
        layer.last[1] += 1
        after = layer.filters(16)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])


def test_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"x: got \(1, 33, 8\), must be of shape \[B, T up to 32, 8\]"):
        made()[0](torch.zeros(1, 33, 8))
    with pytest.raises(ShapeError, match=r"x: got \(1, 4, 7\), must be of shape \[B, T, 8\]"):
        made()[1](torch.zeros(1, 4, 7))
    broken = layers.ExplicitConv(4, 32)
    with torch.no_grad():
        broken.weight[2, 5] = float("nan")
    for call in (broken, lambda x: broken.step(x, broken.init_state(1))):
        with pytest.raises(ArgumentValueError, match="filters: got nan as tap 5 of filter 2.*ExplicitConv"):
            with torch.no_grad():
                call(torch.zeros(1, 10, 4))
    with pytest.raises(ShapeError, match="state: got 3, must be even"):
        layers.H3(8, 3)
    with pytest.raises(ShapeError, match="channels: got 8, must be a multiple of groups, 3"):
        layers.ImplicitConv(8, 16, groups=3)
    with pytest.raises(ShapeError, match="length: got None, must be given, unless a variant is"):
        layers.BaseConv(8)
