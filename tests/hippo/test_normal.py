"""HiPPO's matrices as normal ones and corrections, and the poles of diagonal state spaces."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops import hippo
from based_ops.errors import ArgumentValueError

NAMES = sorted(hippo.BASES)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(NAMES), st.integers(1, 64))
def test_the_form_is_the_matrix(name: str, order: int) -> None:
    a, b = hippo.matrices(name, order)
    form = hippo.normal_plus_low_rank(name, order)
    again_a, again_b = form.dense()
    scale = a.abs().max() + 1
    torch.testing.assert_close(again_a / scale, a / scale, rtol=0, atol=1e-12)
    torch.testing.assert_close(again_b, b, rtol=0, atol=1e-12)
    one = torch.eye(order, dtype=torch.complex128)
    torch.testing.assert_close(form.vectors.mH @ form.vectors, one, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([*NAMES, "lin", "inv", "real", "random"]), st.integers(1, 32).map(lambda n: 2 * n))
def test_poles_are_stable_and_half_of_the_pairs(name: str, order: int) -> None:
    found = hippo.poles(name, order)
    assert found.dtype == torch.complex128 and found.shape == (order // 2,)
    assert (found.real < 0).all() and (found.imag >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_poles_turn_as_the_normal_part_does(name: str) -> None:
    a, _ = hippo.matrices(name, 16)
    form = hippo.normal_plus_low_rank(name, 16)
    correction = (form.vectors @ form.p).real
    turns = torch.linalg.eigvals(a + correction @ correction.mT).imag
    both = hippo.poles(name, 16).imag
    found = torch.cat([-both, both]).sort().values
    torch.testing.assert_close(found, turns.sort().values, rtol=0, atol=1e-9)


def test_formulas() -> None:
    n = torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(hippo.poles("lin", 8), -0.5 + 1j * math.pi * n)
    torch.testing.assert_close(hippo.poles("fout", 8), hippo.poles("lin", 8))
    torch.testing.assert_close(hippo.poles("inv", 8), -0.5 + 1j * 8 / math.pi * (8 / (2 * n + 1) - 1))
    torch.testing.assert_close(hippo.poles("real", 8), -(n + 1) + 0j)
    torch.testing.assert_close(hippo.poles("foud", 8), -0.5 + 2j * math.pi * n)


def test_random_poles_follow_their_generator() -> None:
    first, second = (hippo.poles("random", 16, torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first, hippo.poles("random", 16, torch.Generator().manual_seed(4)))


def test_errors() -> None:
    with pytest.raises(ArgumentValueError, match="basis: got 'legq', must be one of"):
        hippo.poles("legq", 8)
    with pytest.raises(ArgumentValueError, match="order: got 7, must be even"):
        hippo.poles("legs", 7)
    with pytest.raises(ArgumentValueError, match="did you mean legs"):
        hippo.matrices("leggs", 8)
    mine = hippo.Basis("mine", lambda n, s: s.expand(n, *s.shape), torch.ones_like, 1.0)
    with pytest.raises(ArgumentValueError, match="basis: got 'mine', must be one with a closed form"):
        hippo.matrices(mine, 8)
