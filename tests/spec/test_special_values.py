"""Expressions at zero, infinity and NaN, and where values are small: against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.spec import functions as f
from based_ops.codegen.spec.feature_map import gradient, parse, to_tree
from based_ops.reference.feature_maps import elementwise
from tests.spec.trees import run_text, run_tree
from tests.strategies import expressions, wild_expressions

POINTS = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.37, -0.63, 2.0, -2.5, 30.0, -30.0], dtype=torch.float64)
FAR = torch.tensor([float("inf"), -float("inf"), 1e3, -1e3], dtype=torch.float64)
NAN = torch.tensor([float("nan")], dtype=torch.float64)


def by_autograd(text: str, x: Tensor, g: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(run_text(text, x), x, g, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def assert_agree_where_finite(ours: Tensor, theirs: Tensor, others: Tensor) -> None:
    """Where PyTorch's number is finite so is ours, and it is the same; `others` went into both."""
    known = theirs.isfinite() & (others.abs() < 1e6)
    torch.testing.assert_close(ours[known], theirs[known], rtol=1e-7, atol=1e-9)


@given(wild_expressions() | expressions())
def test_nan_is_where_it_is_in_torch(text: str) -> None:
    tree = to_tree(parse(text))
    assert run_tree(tree, NAN).isnan().all()
    for x in (POINTS, FAR):
        ours, theirs = run_tree(tree, x), run_text(text, x)
        # Terms that cancel and factors that divide each other are gone, and with them what they made NaN.
        assert not (ours.isnan() & ~theirs.isnan()).any()
        assert_agree_where_finite(ours, theirs, theirs)


@given(wild_expressions() | expressions(), st.sampled_from((1.0, -0.7, 0.0)))
def test_gradients_are_finite_where_they_are_in_torch(text: str, size: float) -> None:
    g = torch.full_like(POINTS, size)
    theirs = by_autograd(text, POINTS, g)
    assert_agree_where_finite(run_tree(gradient(parse(text)), POINTS, g), theirs, run_text(text, POINTS))


@given(wild_expressions(), st.sampled_from((float("inf"), float("nan"))))
def test_gradients_that_are_no_numbers_are_chosen_among_like_others(text: str, g: float) -> None:
    """relu hands on no NaN where it hands on nothing."""
    gradients = torch.full_like(POINTS, g)
    theirs = by_autograd(text, POINTS, gradients)
    ours = run_tree(gradient(parse(text)), POINTS, gradients)
    assert not (ours.isnan() & (theirs == 0)).any()


@given(wild_expressions())
def test_gradients_of_kinked_maps_are_nan_at_nan(text: str) -> None:
    expr = parse(text)
    kinks = expr.atoms(f.Relu, f.Minimum, f.Maximum, f.Absolute, f.Elu)
    if any(kink.free_symbols for kink in kinks):
        assert run_tree(gradient(expr), NAN, torch.ones_like(NAN)).isnan().all()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("relu(x)**0.5 + 0.1", 0.0),
        ("1/maximum(x, 0)", None),
        ("1/sqrt(relu(x) + 1)", 0.0),
        ("sqrt(maximum(x, 0)) + 1", None),
        ("sqrt(relu(x) + relu(2*x))", 0.0),
        ("log(relu(x))*relu(x)", None),
        ("sqrt(relu(sqrt(relu(x))))", 0.0),
        ("minimum(1/relu(x), 2)", 0.0),
    ],
)
def test_slopes_choose(text: str, wanted: float | None) -> None:
    """At 0 and below it, where the chain is infinite; None where PyTorch has no number at 0 either."""
    x = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    found = run_tree(gradient(parse(text)), x, torch.ones_like(x))
    assert found[0] == 0
    assert wanted is None or found[1] == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("relu(x)", "elu(x)", "elu(x) + 1", "abs(x)", "softplus(x)", "silu(x)", "gelu(x)"),
        *("maximum(x, 0) + 1", "minimum(x, 0) + 3", "maximum(x, -x)", "minimum(relu(x), x)"),
    ],
)
def test_the_reference_has_the_slopes_of_torch(text: str) -> None:
    x = POINTS.clone().requires_grad_()
    (found,) = torch.autograd.grad(elementwise(text, x).sum(), x)
    torch.testing.assert_close(found, by_autograd(text, POINTS, torch.ones_like(POINTS)))


LEVELS = torch.cat([-torch.logspace(-9, 1.2, 60), torch.logspace(-9, 1.2, 60)])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "softplus(x)",
            "softplus(x)**2",
            "elu(x)",
            "2*(elu(x) + 1)",
            "-3*elu(x) - 3",
            "elu(x) + 1",
            "expm1(x)",
        ),
        *("log1p(softplus(x))", "log1p(x**2)", "tanh(x)", "sigmoid(x)", "silu(x)", "gelu(x)", "erf(x)"),
    ],
)
def test_small_values_keep_their_digits(text: str) -> None:
    """In float32, each by itself; against float64, in forms that keep them there."""
    x = LEVELS.double()
    above = torch.where(x > 0, x + 1, x.exp())
    kept = {
        "elu(x) + 1": above,
        "2*(elu(x) + 1)": 2 * above,
        "-3*elu(x) - 3": -3 * above,
        "gelu(x)": x * torch.erfc(-x * 0.5**0.5) / 2,
    }
    wanted = kept[text] if text in kept else run_text(text, x)
    found = run_tree(to_tree(parse(text)), LEVELS)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize(
    "text", ["softplus(x)", "elu(x)", "elu(x) + 1", "expm1(x)", "silu(x)", "log1p(x**2)"]
)
def test_small_slopes_keep_their_digits(text: str) -> None:
    found = run_tree(gradient(parse(text)), LEVELS, torch.ones_like(LEVELS)).double()
    wanted = by_autograd(text, LEVELS.double(), torch.ones_like(found))
    torch.testing.assert_close(found, wanted, rtol=3e-6, atol=1e-7 if text == "silu(x)" else 1e-37)
