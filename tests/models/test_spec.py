"""Spec files of models: what they hold, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from based_ops.errors import CheckpointError, SpecErrors
from based_ops.models import checkpoint, load_spec, shipped
from based_ops.models.spec import parse_spec

GOOD = """\
name: my-model
d_model: 64
vocabulary: 100
layers: 3
mixer: {kind: gated_conv}
placement:
  - {layers: [1], mixer: {kind: linear_attention, variant: taylor2_qk16_v64, heads: 2}}
mlp: {inner: 128}
"""


@pytest.mark.parametrize("name", shipped())
def test_what_is_written_is_read(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name and parse_spec(checkpoint.dump(spec)) == spec


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("my-model", "My Model", "1:7: the name `My Model` must be lower-case ASCII letters"),
        ("d_model: 64\n", "", "1:1: `d_model` is missing: width of the residual stream"),
        ("layers: 3", "layers: three", "4:9: `layers` must be a whole number from 1 to 1024, not three"),
        ("gated_conv", "gated_konv", "5:15: `mixer.kind` cannot be gated_konv"),
        ("[1]", "[3]", "`placement[0].layers` names 3, the last layer is 2"),
        ("heads: 2", "head: 2", "unknown field `placement[0].mixer.head`"),
        ("inner: 128", "inner: 0", "8:14: `mlp.inner` must be a whole number from 1 to"),
        ("mlp:", "mlps:", "unknown field `mlps`"),
    ],
)
def test_wrong_specs(old: str, new: str, message: str) -> None:
    assert parse_spec(GOOD).layers == 3
    with pytest.raises(SpecErrors) as caught:
        parse_spec(GOOD.replace(old, new, 1), "my-model.yaml", "my-model" if old != "my-model" else None)
    assert message in str(caught.value)


def test_the_name_of_the_file() -> None:
    with pytest.raises(SpecErrors, match="differs from the name of the file, `other.yaml`"):
        parse_spec(GOOD, "other.yaml", "other")
    with pytest.raises(CheckpointError, match=r"did you mean based-1b\?"):
        load_spec("based_1b")
