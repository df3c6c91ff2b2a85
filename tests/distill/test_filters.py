"""Filters as state spaces: what a fit finds, and the bound that none goes below."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from based_ops.distill import fitted, hankel
from based_ops.distill.fit import Modes, begin_balanced, distance, refine
from based_ops.errors import ArgumentTypeError, ArgumentValueError, ShapeError
from based_ops.layers import ModalConv

float64 = torch.float64


def modes(filters: int, count: int, seed: int) -> Modes:
    """Poles well apart, that fade within some hundred taps."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(filters, count, dtype=float64, generator=draw)

    places = math.pi * (torch.arange(count, dtype=float64) + 0.5 + uniform(-0.3, 0.3)) / count
    sizes = torch.polar(uniform(0.5, 2.0), uniform(-3.0, 3.0))
    return Modes(uniform(0.01, 0.1).log(), places, sizes)


def dense(filters: Tensor) -> Tensor:
    m = hankel.size(filters.shape[1])
    return filters[:, 1 + torch.arange(m).unsqueeze(1) + torch.arange(m)]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(8, 80), st.integers(1, 12), st.integers(0, 10**6))
def test_singular_values_are_those_of_the_dense_matrix(rows: int, length: int, count: int, seed: int) -> None:
    filters = torch.randn(rows, length, dtype=float64, generator=torch.Generator().manual_seed(seed))
    filters = filters * torch.exp(-0.2 * torch.arange(length, dtype=float64))
    values, vectors = hankel.singular(filters, count)
    matrix = dense(filters)
    exact = torch.linalg.svdvals(matrix)[:, :count]
    # None is larger than it is, and the larger ones are met.
    assert (values <= exact * (1 + 1e-9) + 1e-12).all()
    torch.testing.assert_close(values, exact, rtol=1e-3, atol=1e-6 * float(exact.max()))
    x = torch.randn(rows, matrix.shape[1], 2, dtype=float64)
    torch.testing.assert_close(hankel.product(filters, x), matrix @ x)
    own = vectors[:, :, :1]
    torch.testing.assert_close((matrix @ own).norm(dim=(1, 2)), exact[:, 0], rtol=1e-4, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from(["l2", "hinf"]), st.integers(0, 10**6))
def test_a_state_space_is_found_again(rows: int, count: int, norm: str, seed: int) -> None:
    filters = modes(rows, count, seed).taps(160)
    fit = fitted(filters, 2 * count, norm)  # type: ignore[arg-type]
    assert fit.l2.max() < 1e-6 and fit.hankel.max() < 1e-6 and fit.hinf.max() < 1e-6
    again = fit.modes.taps(160)
    again[:, 0] += fit.skip
    torch.testing.assert_close(again, filters, rtol=0, atol=1e-5 * float(filters.abs().max()))
    assert (fitted(filters, "auto").order <= 2 * count) and (fit.needed <= 2 * count).all()


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_no_fit_goes_below_the_bound_and_most_come_near(count: int, seed: int) -> None:
    """Of filters of six pairs, with fewer."""
    filters = modes(4, 6, seed).taps(192)
    fit = fitted(filters, 2 * count)
    assert (fit.hankel >= fit.bound * (1 - 1e-6)).all()
    assert fit.hankel.median() <= 2 * fit.bound.median()
    assert (fit.hankel <= 6 * fit.bound).all()
    exact = torch.linalg.svdvals(dense(filters))
    torch.testing.assert_close(fit.bound, exact[:, 2 * count] / exact[:, 0], rtol=1e-3, atol=1e-9)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_fits_are_stable_whatever_the_filter(seed: int) -> None:
    """Of noise, and of a filter that grows to its end, which no stable one is."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 64, dtype=float64, generator=draw)
    grows = torch.exp(0.05 * torch.arange(64, dtype=float64)).unsqueeze(0)
    fit = fitted(torch.cat([noise, grows]), 6)
    assert (fit.modes.log_poles.real < 0).all()
    assert fit.l2.isfinite().all() and (fit.l2 <= 1 + 1e-9).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 10).map(lambda n: 2 * n), st.floats(3.0, 40.0), st.integers(0, 10**6))
def test_balanced_truncation_keeps_to_its_guarantee_and_no_fit_is_further(
    order: int, fade: float, seed: int
) -> None:
    """Twice the sum of the singular values that it neglects, at every frequency and for ever."""
    length, most = 64, 8192
    ages = torch.arange(length, dtype=float64)
    drawn = torch.randn(3, length, dtype=float64, generator=torch.Generator().manual_seed(seed))
    filters = drawn * torch.exp(-ages / fade)
    start = begin_balanced(filters, order)
    assert start.log_poles.real.max() < 0
    ended = torch.nn.functional.pad(filters, (0, length))
    ensured = 2 * torch.linalg.svdvals(dense(ended))[:, order:].sum(1) + 1e-9 * filters.norm(dim=1)
    error = torch.nn.functional.pad(filters, (0, most - length)) - start.taps(most)
    assert (torch.fft.rfft(error[:, 1:], n=2 * most).abs().amax(1) <= ensured).all()
    fit = fitted(filters, order)
    least, reached = distance(filters, start), fit.hankel * hankel.norm(filters)
    near = fit.hankel <= 2 * fit.bound * (1 + 1e-6)
    assert (near | (reached <= least * (1 + 1e-6) + 1e-12)).all()


def test_weights_trade_squares_for_the_largest_error() -> None:
    filters = modes(6, 6, 5).taps(192)
    squares, largest = (fitted(filters, 4, norm) for norm in ("l2", "hinf"))
    assert (squares.l2 <= largest.l2 * (1 + 1e-6)).all()
    assert (largest.hankel <= squares.hankel * (1 + 1e-6)).all()
    assert largest.hankel.mean() < squares.hankel.mean()


def test_a_step_never_makes_a_fit_worse() -> None:
    wanted, start = modes(3, 4, 1).taps(96), modes(3, 4, 2)
    errors = [
        (wanted - refine(wanted, start, steps=n).taps(96))[:, 1:].square().sum(1) for n in (0, 1, 2, 5, 20)
    ]
    for before, after in zip(errors, errors[1:], strict=False):
        assert (after <= before * (1 + 1e-12)).all()
    assert (errors[-1] < errors[0]).all()


def test_a_filter_of_zeros_is_met() -> None:
    fit = fitted(torch.cat([torch.zeros(1, 32), modes(1, 2, 0).taps(32).float()]), 4)
    assert fit.modes.taps(32)[0].abs().max() < 1e-12 and fit.l2[1] < 1e-5


def test_errors() -> None:
    filters = torch.randn(2, 32)
    with pytest.raises(ArgumentValueError, match="order: got 5, must be even, from 2 to 14: blocks.0 has 32"):
        fitted(filters, 5, name="blocks.0")
    with pytest.raises(ArgumentValueError, match="order: got 64, must be even, from 2 to 14"):
        fitted(filters, 64)
    with pytest.raises(ArgumentTypeError, match="order: got float, must be an int or 'auto'"):
        fitted(filters, 4.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="norm: got 'l1', must be l2 or hinf"):
        fitted(filters, 4, "l1")  # type: ignore[arg-type]
    filters[1, 3] = math.nan
    with pytest.raises(
        ArgumentValueError, match="blocks.1.mixer.long.filters: got NaN or infinity in filter 1"
    ):
        fitted(filters, 4, name="blocks.1.mixer.long.filters")
    with pytest.raises(ShapeError, match=r"filters: got \(2, 3\), must be of shape \[C, L\], with 8 taps"):
        fitted(filters[:, :3])
    poles = torch.tensor([[1.25 + 0j]])
    with pytest.raises(ArgumentValueError, match="poles: got one of magnitude 1.25, must be stable"):
        ModalConv.of(poles, poles, torch.zeros(1))
    with pytest.raises(ArgumentValueError, match="residues: got a number that is not finite"):
        ModalConv.of(poles / 2, poles * math.nan, torch.zeros(1))
