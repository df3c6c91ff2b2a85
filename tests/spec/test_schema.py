"""The JSON schema and the template for new specs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen.errors import SpecErrors
from based_ops.codegen.mixers import mixers
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.spec.load import parse_spec
from based_ops.codegen.spec.model import HeadDims, LayerSpec, Power, TaylorExp, spec_to_dict
from based_ops.codegen.spec.schema import SCHEMA_FILE, model_schema_text, schema_text
from based_ops.codegen.spec.template import new_spec_text
from tests.spec.test_bad_specs import BAD_SPECS
from tests.strategies import layer_names, layer_specs

SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(schema_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_committed_schema_is_current() -> None:
    assert (SPECS / SCHEMA_FILE).read_text(encoding="utf-8") == schema_text()
    assert (SPECS / "models" / SCHEMA_FILE).read_text(encoding="utf-8") == model_schema_text()


@pytest.mark.parametrize("path", sorted((SPECS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_of_models_accepts_the_shipped(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(model_schema_text())
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(validator.iter_errors(data)) == []
    assert list(validator.iter_errors(data | {"mixer": {"kind": "rnn"}}))
    assert list(validator.iter_errors(data | {"heads": 3}))


@given(spec=layer_specs())
def test_the_schema_accepts_every_spec(validator: Any, spec: LayerSpec) -> None:
    assert list(validator.iter_errors(spec_to_dict(spec))) == []


# What a schema cannot see: names of files, and spelling below the level of YAML values.
BEYOND_A_SCHEMA = (
    "keyword as the name",
    "name of another file",
    "key given twice",
    "inner key given twice",
    "anchor",
    "normalize yes",
    "normalize True",
    "eps not a number",
    "window 64.0",
    "window 010",
    "window 1:30",
    "order 1 with a normaliser",
    "a Taylor map of wide queries",
    "an identity of another width",
    "groups that do not divide",
    "too many features",
    "branches of several widths",
    "features too many for the map",
    "keys of other features",
    "tied parameters of other parts",
    "positions in the middle",
    "positions under a map",
    "positions in a narrow state",
    "positions of queries alone",
    "the third order of both signs",
    "an odd power",
    "the third order of wide queries",
    "a fourth power of wide queries",
    "parts with normalisers of their own that share a rescaling",
    "a normaliser of the delta rule",
    "a normaliser of the delta rule as asked for",
    "the delta rule without keys of one length",
    "the delta rule after other parts of keys",
    "the delta rule with positions",
    "the delta rule in a narrow state",
    "replay of a state that fades",
    "replay by the delta rule",
    "replay with positions",
    "unit keys of sums",
)


def refusable() -> Iterator[Any]:
    """The bad specs that are YAML and whose fault a schema can see, as plain data."""
    for name, text, messages in BAD_SPECS:
        inside_expression = any("feature_map.expression`:" in message for message in messages)
        if name not in BEYOND_A_SCHEMA and not inside_expression:
            with suppress(yaml.YAMLError, TypeError):
                yield pytest.param(yaml.safe_load(text), id=name.replace(" ", "-"))


@pytest.mark.parametrize("data", list(refusable()))
def test_the_schema_refuses_what_the_loader_refuses(validator: Any, data: Any) -> None:
    assert list(validator.iter_errors(data))


def test_new_specs_load() -> None:
    assert parse_spec(new_spec_text("a")) == LinearAttention("a", TaylorExp(2), HeadDims(16, 64))
    assert parse_spec(new_spec_text("a", feature_map="taylor1", qk=8, v=16)) == LinearAttention(
        "a", TaylorExp(1), HeadDims(8, 16), normalize=False
    )
    assert parse_spec(new_spec_text("a", feature_map="taylor3")) == LinearAttention(
        "a", TaylorExp(3), HeadDims(16, 64), normalize=False
    )
    assert parse_spec(new_spec_text("a", feature_map="power2")) == LinearAttention(
        "a", Power(2), HeadDims(16, 64)
    )
    assert parse_spec(new_spec_text("a", feature_map="power4")).head_dims == HeadDims(8, 64)
    spec = parse_spec(new_spec_text("a", feature_map="1 + elu(x)"))
    assert spec_to_dict(spec)["feature_map"] == {"kind": "elementwise", "expression": "elu(x) + 1"}
    assert spec.head_dims == HeadDims(64, 64)
    assert parse_spec(new_spec_text("a", "sliding_window", window=7)) == SlidingWindow(
        "a", 7, HeadDims(64, 64)
    )


@given(layer_names(), st.sampled_from(list(mixers())), st.sampled_from(["taylor2", "power4", "x**2", "x"]))
def test_new_specs_explain_every_field(name: str, mixer: str, feature_map: str) -> None:
    if mixer == "hybrid" and feature_map == "x":
        feature_map = "exp(x)"  # a hybrid takes no map of both signs
    given = {"feature_map": feature_map} if "feature_map" in mixers()[mixer].template_options else {}
    text = new_spec_text(name, mixer, **given)
    assert parse_spec(text, stem=name).mixer == mixer
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    for above, line in zip(lines, lines[1:], strict=False):
        if line and not line.lstrip().startswith("#"):
            assert above.lstrip().startswith("#"), line


def test_a_new_spec_that_cannot_be_is_refused() -> None:
    with pytest.raises(SpecErrors) as caught:
        new_spec_text("my-layer", feature_map="taylor4", qk=4)
    assert str(caught.value).splitlines() == [
        "my-layer.yaml:1:7: the name `my-layer` must be lower-case ASCII letters, digits and underscores, "
        "starting with a letter (did you mean `my_layer`?)",
        "my-layer.yaml:5:10: `feature_map.order` must be a whole number from 1 to 3, not 4",
        "my-layer.yaml:7:7: `head_dims.qk` must be a whole number from 8 to 256, not 4",
    ]


def test_text_that_tries_to_be_yaml_stays_one_value() -> None:
    with pytest.raises(SpecErrors, match="the expression is not a formula"):
        new_spec_text("a", feature_map="x'\nname: other")
