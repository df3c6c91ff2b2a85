"""Which maps a layer may divide by the sum of, and what is said of the others."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given

from based_ops import errors
from based_ops.codegen.errors import SpecErrors, SpecWarning
from based_ops.codegen.spec.feature_map import parse
from based_ops.codegen.spec.load import load_dir, parse_spec
from based_ops.codegen.spec.signs import NEAR, objection
from based_ops.reference import elementwise
from tests.spec.test_bad_specs import elementwise as spec_of
from tests.strategies import expressions

ROOT = Path(__file__).parents[2]

ONE_SIGN = (
    *("relu(x)", "elu(x) + 1", "x**2", "exp(x)", "softplus(x)**2", "abs(x)", "1 - tanh(x)", "sin(x) + 1"),
    *("gelu(x) + 0.17", "silu(x) + 0.279", "exp(x) - x - 1", "log(1 + x**2)", "1/exp(-exp(x))", "x*tanh(x)"),
    # Zero is the least value, where rounding has either sign.
    *("x**2 - 0.2*x + 0.01", "sqrt(x**2 - 2*x + 1)", "x**4 - 2*x**2 + 1"),
    # Nowhere positive: the weights are products of two such values.
    *("-exp(x)*0.1 + 0.01*x", "-relu(x)", "log(sigmoid(x))"),
)
SIGNED = (
    *("x", "x**3", "tanh(x)", "sin(x)", "elu(x)", "gelu(x)", "silu(x)", "x - 1", "exp(x) - 1"),
    *(
        "x*relu(x) - 1e-3",
        "gelu(x) + 0.16",
        "(x - 1.2345)**2 - 1e-6",
        "abs(x + 0.777) - 1e-4",
        "sin(100*x) + 0.999",
    ),
)
UNDEFINED = (
    *("log(x)", "sqrt(x)", "1/x", "x**-2", "log(x**2)", "sqrt(x + 3)", "1/(x - 5.25)**2"),
    "1/(x**2 - 1)",
)
RARELY_SIGNED = {
    "minimum(x, 0) + 3": "φ(0) = 3 and φ(-4) = -1",
    "x + 1e6": "φ(0) = 1e+06 and φ(-1.001e+06) = -1000",
    "exp(x) - 1e-6": "φ(0) = 0.999999 and φ(-16) = -8.87465e-07",
}


@pytest.mark.parametrize("text", ONE_SIGN)
def test_maps_of_one_sign_are_taken_without_a_word(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_spec(spec_of(text))


@pytest.mark.parametrize("text", [*SIGNED, *UNDEFINED])
def test_maps_whose_sums_can_vanish_must_be_wanted(text: str) -> None:
    with pytest.raises(SpecErrors, match="normalize. divides by"):
        parse_spec(spec_of(text))
    parse_spec(spec_of(text) + "normalize: false\n")
    parse_spec(spec_of(text) + "signed_weights: true\n")


@pytest.mark.parametrize(("text", "shown"), RARELY_SIGNED.items())
def test_what_only_rare_inputs_show_is_warned_of(text: str, shown: str) -> None:
    with pytest.warns(SpecWarning) as caught:
        parse_spec(spec_of(text), "my.yaml")
    (warning,) = caught
    assert str(warning.message).startswith("my.yaml:5:15: ") and shown in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_spec(spec_of(text) + "signed_weights: true\n")


@pytest.mark.parametrize("directory", ["specs", "benchmarks/specs"])
def test_shipped_specs_say_what_they_want(directory: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dir(ROOT / directory)


@given(expressions())
def test_objections_are_true_and_no_sign_is_missed(text: str) -> None:
    """Against PyTorch's values of the same map."""
    found = objection(parse(text))
    if found is not None:
        places = [float(x) for x in re.findall(r"φ\(([^)]*)\)", found.shown)]
        signs = elementwise(text, torch.tensor(places, dtype=torch.float64)).sign().tolist()
        assert sorted(signs) == [-1, 1], found
    else:
        values = elementwise(text, torch.linspace(-NEAR, NEAR, 4001, dtype=torch.float64))
        noise = 1e-9 * max(1.0, float(values.abs().max()))
        assert bool((values > -noise).all()) or bool((values < noise).all())


def test_errors_of_specs_are_errors_of_the_library(tmp_path: Path) -> None:
    import based_ops

    assert issubclass(errors.SpecErrors, errors.BasedOpsError) and issubclass(errors.SpecErrors, ValueError)
    assert issubclass(errors.ExpressionError, errors.BasedOpsError)
    (tmp_path / "bad.yaml").write_text(spec_of("x"))
    with pytest.raises(errors.BasedOpsError) as caught:
        based_ops.load(tmp_path / "bad.yaml")
    assert type(caught.value) is errors.SpecErrors and caught.value.errors[0].line == 5
