"""Tuning records override the policy, program by program."""

from __future__ import annotations

import pytest

from based_ops.codegen import pipeline
from based_ops.codegen.schedule import records
from based_ops.codegen.schedule.policy import policy
from tests.conftest import SPECS

NAME = "taylor2_qk16_v64"


def test_a_record_overrides_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pipeline.load(SPECS, [NAME])[NAME]
    program = next(p for p in pipeline.lower(spec).programs if p.name == "outputs")
    chosen = policy(spec, program, "triton")
    record = {
        "backend": "triton",
        "program": "outputs",
        "v": 64,
        "dtype": "bfloat16",
        "CHUNK": 128,
        "warps": 8,
    }
    monkeypatch.setattr(records, "_records", lambda: {"settings": [record]})
    found = records.apply(spec, program, chosen)
    assert found.origin == "record sm_90"
    assert found.settings["bfloat16"].constants == chosen.settings["bfloat16"].constants | {"CHUNK": 128}
    assert found.settings["bfloat16"].warps == 8
    assert found.settings["bfloat16"].stages == chosen.settings["bfloat16"].stages
    assert found.settings["float32"] == chosen.settings["float32"]


@pytest.mark.parametrize(
    "fact", [{"program": "states"}, {"backend": "tilelang"}, {"v": 128}, {"mixer": "sliding_window"}], ids=str
)
def test_a_record_of_something_else_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, fact: dict[str, object]
) -> None:
    spec = pipeline.load(SPECS, [NAME])[NAME]
    program = next(p for p in pipeline.lower(spec).programs if p.name == "outputs")
    chosen = policy(spec, program, "triton")
    monkeypatch.setattr(records, "_records", lambda: {"settings": [fact | {"warps": 8}]})
    assert records.apply(spec, program, chosen) == chosen


def test_records_say_which_backend_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pipeline.load(SPECS, [NAME])[NAME]
    monkeypatch.setattr(records, "_records", lambda: {"serves": {"linear_attention": "tilelang"}})
    assert records.serves(spec) == {"cuda": "tilelang", "cpu": "torch"}
