"""S4 as a layer against HiPPO's dense matrices, and its steps against its convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from based_ops import errors, hippo
from based_ops.layers import S4
from based_ops.layers.timescales import timescales

F64 = torch.float64
WIDTH, ORDER, TOKENS = 3, 16, 60


@pytest.fixture
def s4() -> S4:
    torch.manual_seed(0)
    return S4(WIDTH, ORDER, dtype=F64)


def dense(layer: S4, channel: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """A, B and C of a channel as real matrices, and Δ."""
    found = hippo.normal_plus_low_rank("legs", ORDER)
    a, b = found.dense()
    upper = found.vectors[:, ORDER // 2 :]
    c = 2 * (torch.view_as_complex(layer.c.detach())[:, channel] @ upper.mH).real
    return a, b, c, float(layer.log_step[channel].detach().exp())


def test_the_kernel_is_that_of_the_dense_matrices(s4: S4) -> None:
    a, b, _, _ = dense(s4, 0)
    assert_close(hippo.matrices("legs", ORDER)[0], a, atol=1e-9, rtol=1e-9)
    for channel in range(WIDTH):
        _, _, c, step = dense(s4, channel)
        wanted = hippo.kernel(a, b, c, step, TOKENS, "bilinear")
        assert_close(s4.filters(TOKENS)[:, channel].detach(), wanted, rtol=1e-6, atol=1e-8)


def test_pieces_and_steps_are_the_convolution(s4: S4) -> None:
    x = torch.randn(2, TOKENS, WIDTH, dtype=F64)
    with torch.no_grad():
        want, nothing = s4(x)
        assert nothing is None
        head, state = s4(x[:, :20], output_state=True)
        middle, state = s4(x[:, 20:30], state, output_state=True)
        steps = [s4.step(x[:, 30:40], state)]
        steps += [s4.step(x[:, t : t + 1], state) for t in range(40, TOKENS)]
        assert_close(torch.cat([head, middle, *steps], 1), want, rtol=1e-6, atol=1e-7)
    assert s4.init_state(3).modes.nbytes == s4.state_bytes(3)


@pytest.mark.parametrize("order", [32, 64])
def test_matrices_that_have_learned_are_diagonal_and_new_ones_are_not(order: int) -> None:
    """Those that are HiPPO's have eigenvectors too badly conditioned in any basis that is orthogonal."""
    torch.manual_seed(0)
    layer = S4(WIDTH, order, mix=False, dtype=F64)
    with pytest.raises(
        errors.ArgumentValueError, match="^diagonal: got filters off by .*, must be of filters"
    ):
        layer.diagonal()
    with torch.no_grad():
        layer.p.mul_(1 + 0.2 * torch.randn_like(layer.p))
        same = layer.diagonal()
        assert same.modes >= order // 2
        assert_close(same.filters(TOKENS), layer.filters(TOKENS), rtol=1e-6, atol=1e-8)
        x = torch.randn(2, TOKENS, WIDTH, dtype=F64)
        state = same.init_state(2)
        steps = torch.cat([same.step(token, state) for token in x.split(1, 1)], 1)
        assert_close(steps, layer(x)[0], rtol=1e-6, atol=1e-7)


def test_gradients_are_those_of_the_recurrence(s4: S4) -> None:
    """Of the kernel by its generating function, and of steps one after the other."""
    x = torch.randn(2, TOKENS, WIDTH, dtype=F64, requires_grad=True)
    dy = torch.randn(2, TOKENS, WIDTH, dtype=F64)
    leaves = [x, *s4.parameters()]
    found, wanted = (torch.autograd.grad(y, leaves, dy) for y in (s4(x)[0], s4(x, s4.init_state(2))[0]))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_it_stays_stable_and_its_timescales_are_known(s4: S4) -> None:
    """A + A* has no positive eigenvalue, whatever Λ and P become: decays add up."""
    with torch.no_grad():
        for x in s4.parameters():
            x.add_(torch.randn_like(x))
        taps = s4.filters(2000)
    assert bool(taps.isfinite().all()) and taps[-100:].abs().max() < taps.abs().max()
    assert timescales(s4) == list(S4.timescales)
    half = S4(WIDTH, ORDER, dtype=torch.bfloat16)
    assert half(torch.randn(1, 4, WIDTH, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    assert half.log_step.dtype == torch.float32


def test_what_does_not_fit_is_refused(s4: S4) -> None:
    for name, changed in (
        ("order", {"order": 7}),
        ("basis", {"basis": "legt"}),
        ("steps", {"steps": (1, 0)}),
    ):
        with pytest.raises(errors.ArgumentValueError, match=f"^{name}: "):
            S4(WIDTH, **changed)
    with pytest.raises(errors.ShapeError, match="^x: "):
        s4(torch.zeros(2, 3, 4, dtype=F64))
    with pytest.raises(errors.StateError, match=r"^state\.modes: "):
        s4(torch.zeros(1, 3, WIDTH, dtype=F64), s4.init_state(2))
    with pytest.raises(errors.GradientError, match="^x: "):
        s4.step(torch.zeros(1, 1, WIDTH, dtype=F64, requires_grad=True), s4.init_state(1))
