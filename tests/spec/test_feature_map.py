"""Elementwise expressions: what they parse to, their derivatives, their canonical form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from based_ops.codegen.errors import ExpressionError
from based_ops.codegen.spec.feature_map import FUNCTIONS, canonical_text, derivative, gradient, parse, to_tree
from based_ops.codegen.spec.tree import BINARY, COMPARISONS, UNARY
from tests.spec.trees import nodes, run_text, run_tree
from tests.strategies import expressions

ROOT = Path(__file__).parents[2]

# Away from round numbers, where kinks and ties are.
POINTS = torch.linspace(-3, 3, 37, dtype=torch.float64) + 0.01371


def slope(text: str, x: torch.Tensor) -> torch.Tensor:
    """dφ/dx by torch's autograd."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run_text(text, x).sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, size: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * max(1.0, size))


@given(expressions())
def test_values_and_slopes_equal_torch(text: str) -> None:
    expr = parse(text)
    value, gradient = run_text(text, POINTS), slope(text, POINTS)
    size = max(value.abs().max().item(), gradient.abs().max().item())
    assume(size < 1e6)
    assert_near(run_tree(to_tree(expr), POINTS), value, size)
    assert_near(run_tree(to_tree(derivative(expr)), POINTS), gradient, size)


@given(expressions())
def test_canonical_text_is_a_fixed_point(text: str) -> None:
    expr = parse(text)
    canonical = canonical_text(expr)
    assert parse(canonical) == expr
    assert canonical_text(parse(canonical)) == canonical
    assert to_tree(parse(canonical)) == to_tree(expr)


@given(expressions())
def test_trees_use_only_the_neutral_operations(text: str) -> None:
    expr = parse(text)
    allowed = {"x", "const", "where", *UNARY, *BINARY, *COMPARISONS}
    assert nodes(to_tree(expr)) | nodes(to_tree(derivative(expr))) <= allowed
    assert nodes(gradient(expr)) <= {"g", *allowed}


@given(st.text(alphabet="x01.+-*/() ,eabs_relu'[]:", max_size=40) | st.text(max_size=20))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        expr = parse(text)
    except ExpressionError as error:
        assert error.message and 0 <= error.offset <= len(text)
    else:
        assert parse(canonical_text(expr)) == expr


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("x", "x"),
        (" 1+elu( x ) ", "elu(x) + 1"),
        ("1 - x", "1 - x"),
        ("-(x + 1)*exp(x)/3", "-exp(x)*(x + 1)/3"),
        ("2*(x + 1)", "2*x + 2"),
        ("x*x", "x**2"),
        ("x**-2", "1/x**2"),
        ("relu(x)**0.5", "sqrt(relu(x))"),
        ("x**(1/2)", "sqrt(x)"),
        ("x**-0.5", "1/sqrt(x)"),
        ("minimum(x, 1)", "minimum(1, x)"),
        ("0.1*x + 0.2*x", "0.3*x"),
        ("x*2/3", "2*x/3"),
        ("1e-3*x", "0.001*x"),
        ("x/(3*(x + 1))", "x/(3*x + 3)"),
        ("exp(1)*x", "exp(1)*x"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert canonical_text(parse(text)) == canonical


X = ("x",)


def number(value: float) -> tuple[str, float]:
    return ("const", value)


@pytest.mark.parametrize(
    ("text", "value", "slope_tree"),
    [
        ("x", X, number(1.0)),
        ("x**2", ("mul", X, X), ("mul", number(2.0), X)),
        ("relu(x)", ("relu", X), ("if_positive", X, number(1.0))),
        (
            "elu(x) + 1",
            ("where", ("lt", X, number(0.0)), ("exp", ("min", X, number(0.0))), ("add", X, number(1.0))),
            ("exp", ("min", X, number(0.0))),
        ),
        ("x/4 - 1", ("sub", ("mul", number(0.25), X), number(1.0)), number(0.25)),
        ("1/x", ("div", number(1.0), X), ("div", number(-1.0), ("mul", X, X))),
        ("exp(-x)", ("exp", ("neg", X)), ("neg", ("exp", ("neg", X)))),
    ],
)
def test_trees(text: str, value: object, slope_tree: object) -> None:
    expr = parse(text)
    assert to_tree(expr) == value
    assert to_tree(derivative(expr)) == slope_tree


def test_powers_are_repeated_squares() -> None:
    square = ("mul", X, X)
    fourth = ("mul", square, square)
    assert to_tree(parse("x**8")) == ("mul", fourth, fourth)
    assert to_tree(parse("x**7")) == ("mul", ("mul", ("mul", square, X), ("mul", square, X)), X)


@pytest.mark.parametrize(
    "text",
    [
        "relu(x)",
        "abs(x)",
        "elu(x)",
        "maximum(x, 0)",
        "minimum(0, x)",
        "maximum(2*x, x)",
        "relu(x) - relu(-x)",
    ],
)
def test_slopes_at_a_kink_are_those_of_autograd(text: str) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert run_tree(to_tree(derivative(parse(text))), zero) == slope(text, zero)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "elu", "softplus", "silu", "gelu", "erf", "abs"])
def test_far_arguments_stay_finite_in_float32(name: str) -> None:
    x = torch.tensor([-1e30, -1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e4, 1e30])
    expr = parse(f"{name}(x)")
    wide = torch.tensor(x.tolist(), dtype=torch.float64)
    for tree, expected in ((to_tree(expr), run_text(f"{name}(x)", wide)), (to_tree(derivative(expr)), None)):
        value = run_tree(tree, x)
        assert value.isfinite().all()
        if expected is not None:
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)


def test_elu_plus_one_stays_positive() -> None:
    x = torch.tensor([-80.0, -30.0, -1.0])
    torch.testing.assert_close(run_tree(to_tree(parse("elu(x) + 1")), x), x.exp())


def test_the_same_in_every_process() -> None:
    """Neither texts nor trees depend on hashes, which differ from process to process."""
    program = (
        "from codegen.spec.feature_map import *\n"
        "texts = 'maximum(sin(x), cos(x))*exp(1)*tanh(x) - gelu(x)*x**2', 'silu(x)*erf(x)/elu(x)'\n"
        "for text in texts:\n"
        "    e = parse(text)\n"
        "    print(canonical_text(e), canonical_text(derivative(e)), to_tree(e), to_tree(derivative(e)))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("", "the expression is empty", 0),
        ("3", "the expression must depend on x, but is the constant 3", 0),
        ("x - x", "the expression must depend on x, but is the constant 0", 0),
        ("x + y", "unknown name `y`; the variable is x", 4),
        ("X + 1", "unknown name `X`; the variable is x", 0),
        ("relu", "`relu` is a function: write relu(...)", 0),
        ("1 + max(x, 0)", "unknown function `max`", 4),
        (
            "__import__('os').system('true')",
            "only the functions of the language can be called, by their bare names",
            0,
        ),
        ("eval('1')", "unknown function `eval`", 0),
        ("x.__class__", "only x, numbers, operators and functions are allowed", 0),
        ("(lambda: x)()", "only the functions of the language can be called, by their bare names", 0),
        ("[x for x in x]", "only x, numbers, operators and functions are allowed", 0),
        ("x^2", "`^` is not an operator; write ** for powers", 0),
        ("x % 2", "this operator is not allowed", 0),
        ("+x", "of the signs only - is allowed", 0),
        ("2x", "the expression is not a formula: invalid decimal literal", 0),
        ("x > 0", "comparisons and conditions are not allowed; relu, abs, minimum and maximum may serve", 0),
        ("'a' + x", "'a' is not a number", 0),
        ("True*x", "True is not a number", 0),
        ("1j*x", "1j is not a number", 0),
        ("sin(x, x)", "`sin` takes one argument, without names", 0),
        ("minimum(x)", "`minimum` takes two arguments, without names", 0),
        ("relu(x=x)", "`relu` takes one argument, without names", 0),
        ("1e7*x", "numbers go up to 1000000", 0),
        ("x + 1e999", "numbers go up to 1000000", 4),
        ("x**9", "an exponent must be a whole number from -8 to 8, 0.5 or -0.5", 3),
        ("x**x", "an exponent must be a whole number from -8 to 8, 0.5 or -0.5", 3),
        ("x**0.3", "an exponent must be a whole number from -8 to 8, 0.5 or -0.5", 3),
        ("(x**8)**8", "a power of `x` grows beyond 8", 0),
        ("(1e6*x)**8", "a constant becomes too large or too small for float32", 0),
        ("x/0", "divides by zero", 2),
        ("x/(x - x)", "divides by zero", 3),
        ("x*0**-1", "divides by zero", 5),
        ("x*log(-1)", "log of -1 is not a finite number", 0),
        ("x + é", "the expression holds the character 'é'; only printable ASCII is allowed", 4),
        ("x +\n 1", "the expression holds the character '\\n'; only printable ASCII is allowed", 3),
        ("x" * 201, "the expression has 201 characters, at most 200 are allowed", 0),
        ("x" + "+x" * 40, "the expression has 81 terms and operations, at most 64 are allowed", 0),
        ("-" * 20 + "x", "the expression is nested 21 deep, at most 16 is allowed", 0),
    ],
)
def test_refused_expressions(text: str, message: str, offset: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert (caught.value.message, caught.value.offset) == (message, offset)


def test_a_long_chain_is_not_deep() -> None:
    assert canonical_text(parse("cos(x)" + " + x" * 18)) == "18*x + cos(x)"


@pytest.mark.parametrize("text", ["gelu(" * 14 + "x" + ")" * 14, "sin((" * 6 + "x" + ")**8)" * 6])
def test_growth_is_bounded(text: str) -> None:
    with pytest.raises(
        ExpressionError, match="the expression is too large: the map takes .* at most 1024 are allowed"
    ):
        parse(text)


def test_unknown_functions_name_the_nearest() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse("sigmoyd(x)")
    assert caught.value.nearest == "sigmoid"
    assert caught.value.allowed == FUNCTIONS
