"""Matrices by quadrature, kernels by the matrix exponential, and signals read back from their states."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from based_ops import hippo
from based_ops.errors import ArgumentValueError, ShapeError

NAMES = sorted(hippo.BASES)
READ = sorted(name for name, basis in hippo.BASES.items() if basis.orthonormal)
float64 = torch.float64
RULES: tuple[Literal["zoh", "bilinear"], ...] = ("zoh", "bilinear")


def close(found: Tensor, wanted: Tensor, within: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=within * float(wanted.abs().max() + 1))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(NAMES), st.integers(1, 24))
def test_quadrature_finds_the_closed_form(name: str, order: int) -> None:
    order += order % 2 if name.startswith("fou") else 0  # a cosine is closed with its sine alone
    a, b = hippo.matrices(name, order)
    found_a, found_b = hippo.construct(name, order)
    # The sine of frequency 0 is no function: nothing says what its row holds.
    there = [n for n in range(order) if not (name.startswith("fou") and n == 1)]
    close(found_a[there][:, there], a[there][:, there], 1e-9)
    close(found_b[there], b[there], 1e-9)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 48),
    st.floats(1e-4, 0.2),
    st.integers(1, 200),
    st.integers(0, 10**6),
)
def test_kernels_are_those_of_the_matrix_exponential(
    name: str, order: int, delta: float, length: int, seed: int
) -> None:
    a, b = hippo.matrices(name, order)
    c = torch.randn(order, dtype=float64, generator=torch.Generator().manual_seed(seed))
    found = hippo.kernel(a, b, c, delta, length)
    _, held = hippo.discretise(a, b, delta)
    for place in {0, 1, length // 2, length - 1} & set(range(length)):
        wanted = c @ torch.linalg.matrix_exp(a * (delta * place)) @ held
        assert abs(float(found[place] - wanted)) <= 1e-10 * float(1 + c.norm() * held.norm())
    # What is held for a step is the integral of exp(sA)B over it.
    if name in ("legs", "lagt"):
        close(a @ held, (torch.linalg.matrix_exp(delta * a) - torch.eye(order, dtype=float64)) @ b, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_bilinear_nears_the_exponential_by_the_square_of_the_step(name: str) -> None:
    a, b = hippo.matrices(name, 8)
    errors = []
    for delta in (1e-2, 5e-3):
        ones = torch.ones(round(1 / delta), dtype=float64)
        held, tustin = (hippo.remember(a, b, ones, delta, rule) for rule in RULES)
        errors.append(float((tustin - held).norm()))
    assert errors[1] < errors[0] / 3.5


def test_a_basis_of_ones_own() -> None:
    """Legendre over a window of another length is legt at another speed."""
    legt = hippo.BASES["legt"]
    mine = hippo.Basis("mine", lambda n, s: legt.functions(n, s / 3), lambda s: legt.measure(s / 3) / 3, 6.0)
    a, b = hippo.construct(mine, 12)
    closed_a, closed_b = hippo.matrices("legt", 12)
    close(3 * a, closed_a, 1e-9)
    close(3 * b, closed_b, 1e-9)


def test_functions_that_are_not_finite_and_measures_without_end() -> None:
    never = hippo.Basis("never", lambda n, s: s.expand(n, *s.shape), lambda s: 1 / (1 + s))
    with pytest.raises(ArgumentValueError, match="basis.measure: got never, without end"):
        hippo.construct(never, 4)
    steep = hippo.Basis("steep", lambda n, s: s.expand(n, *s.shape), lambda s: s**-0.5, 1.0)
    with pytest.raises(ArgumentValueError, match="basis.measure: got steep, not finite"):
        hippo.construct(steep, 4)


def smooth(t: Tensor, seed: int) -> Tensor:
    draw = torch.randn(2, 4, dtype=float64, generator=torch.Generator().manual_seed(seed))
    turns = torch.arange(1, 5, dtype=float64).unsqueeze(1) * t
    return draw[0] @ turns.cos() + draw[1] @ turns.sin()


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(READ), st.sampled_from([1e-3, 2e-3]), st.integers(0, 10**6))
def test_what_is_read_back_is_nearer_the_higher_the_order(name: str, delta: float, seed: int) -> None:
    end = hippo.BASES[name].end
    long = 12.0 if math.isinf(end) else end
    times = delta * torch.arange(round(long / delta), dtype=float64)
    signal = smooth(times * (1.0 if math.isinf(end) else 2.0), seed)
    ages = times[times < 1.0]
    newest = signal.flip(-1)[: len(ages)]
    ages = ages + delta / 2  # a sample holds for a step
    errors = []
    for order in (4, 16, 48):
        a, b = hippo.matrices(name, order)
        state = hippo.remember(a, b, signal, delta)
        errors.append(float((hippo.recall(name, state, ages) - newest).norm() / newest.norm()))
    assert errors[2] < errors[0]
    if name.startswith("leg"):
        assert errors[2] < errors[1] < errors[0]
    # Legendre converges at once, Fourier as slowly as a jump between the ends of a window lets it.
    assert errors[2] < {"legs": 0.05, "legt": 0.02, "fout": 0.6, "lagt": 0.3}[name]


@settings(deadline=None, max_examples=10)
@given(st.integers(50, 400), st.integers(0, 10**6))
def test_legs_keeps_the_whole_history_whatever_its_length(length: int, seed: int) -> None:
    parts = torch.arange(length, dtype=float64) / (length - 1)
    signal = smooth(3 * parts, seed)
    errors = []
    for order in (4, 24):
        state = hippo.history(signal, order)
        errors.append(float((hippo.recall_history(state, parts) - signal).norm() / signal.norm()))
    assert errors[1] < min(errors[0], 0.1)


def test_errors() -> None:
    a, b = hippo.matrices("legs", 4)
    with pytest.raises(ArgumentValueError, match="delta: got -1, must be a positive number"):
        hippo.kernel(a, b, b, -1, 8)
    with pytest.raises(ArgumentValueError, match="rule: got 'euler', must be zoh or bilinear"):
        hippo.kernel(a, b, b, 0.1, 8, "euler")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"c: got \(3,\), must be of shape \[..., 4\]"):
        hippo.kernel(a, b, b[:3], 0.1, 8)
    with pytest.raises(ArgumentValueError, match="ages: got 0 to 3, must be from 0 to 2"):
        hippo.recall("legt", b, torch.tensor([0.0, 3.0], dtype=float64))
    with pytest.raises(ArgumentValueError, match="basis: got 'foud', must be orthonormal"):
        hippo.recall("foud", b, torch.zeros(1, dtype=float64))
