"""Tuning records override the policy, program by program, and are never ignored in silence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from based_ops.codegen import pipeline
from based_ops.codegen.ir.program import Program
from based_ops.codegen.names import on_warpgroups
from based_ops.codegen.schedule import record_file, records
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.policy import policy
from based_ops.codegen.schedule.record_file import RecordError
from based_ops.codegen.spec.model import LayerSpec
from tests.conftest import SPECS
from tests.layers import import_text

NAME = "taylor2_qk16_v64"
MEASURED = {"ms": 0.3161, "of_limit": 0.61, "shape": "B16 H16 T8192", "torch": "2.11.0", "triton": "3.6.0"}
FILES = sorted(records.DIRECTORY.glob("*.yaml"))

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes these entries the records of every architecture."""

    def replace(*entries: dict[str, Any], serves: dict[str, str] | None = None) -> None:
        book = record_file.book({"serves": serves or {}, "settings": list(entries)}, "records")
        monkeypatch.setattr(records, "book", lambda architecture: book)

    return replace


@pytest.fixture(scope="module")
def spec() -> LayerSpec:
    return pipeline.load(SPECS, [NAME])[NAME]


@pytest.fixture(scope="module")
def outputs(spec: LayerSpec) -> Program:
    return next(p for p in pipeline.lower(spec).programs if p.name == "outputs")


def test_a_record_overrides_what_it_names(install: Install, spec: LayerSpec, outputs: Program) -> None:
    chosen = policy(spec, outputs, "triton")
    entry = {"backend": "triton", "program": "outputs", "v": 64, "dtype": "bfloat16"}
    install(entry | {"CHUNK": 128, "warps": 8, "rewrites": []})
    found = choose(spec, outputs, "triton")
    assert found.settings["bfloat16"].origin == "record sm_90"
    assert found.settings["bfloat16"].constants == chosen.settings["bfloat16"].constants | {"CHUNK": 128}
    assert found.settings["bfloat16"].warps == 8
    assert found.settings["bfloat16"].stages == chosen.settings["bfloat16"].stages
    assert found.settings["float32"] == chosen.settings["float32"]
    assert found.settings["float32"].origin == "policy"
    assert found.rewrites == () != chosen.rewrites


def test_a_measured_record_says_how_it_was_measured(
    install: Install, spec: LayerSpec, outputs: Program
) -> None:
    install({"program": "outputs", "map": "taylor2", "measured": MEASURED})
    origin = choose(spec, outputs, "triton").settings["float16"].origin
    assert origin == "record sm_90: 0.316 ms at B16 H16 T8192, 61 % of limit, torch 2.11.0 triton 3.6.0"


@pytest.mark.parametrize(
    "fact",
    [
        {"program": "states"},
        {"backend": "tilelang"},
        {"v": 128},
        {"mixer": "sliding_window"},
        {"window": 64},
        {"map": "taylor1"},
        {"normalize": False},
        {"dtype": "float64"},
        {"name": "another"},
    ],
    ids=str,
)
def test_a_record_of_something_else_changes_nothing(
    install: Install, fact: dict[str, object], spec: LayerSpec, outputs: Program
) -> None:
    install(fact | {"warps": 8, "CHUNK": 1, "NOTHING": 3})
    assert choose(spec, outputs, "triton") == policy(spec, outputs, "triton")


def test_records_say_which_backend_serves(install: Install, spec: LayerSpec) -> None:
    install(serves={"linear_attention": "tilelang"})
    assert records.serves(spec) == {"cuda": "tilelang", "cpu": "torch"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"program": "gone"}, "no program of that name"),
        ({"program": "outputs", "pass": "step"}, "the pass step of the layer taylor2_qk16_v64 has no such"),
        ({"program": "outputs", "GONE": 3}, "the program has no GONE, only .*CHUNK"),
        ({"program": "outputs", "QK": 8}, "does not admit it: .*QK=8 does not cover 16"),
        (
            {"program": "forward", "pass": "backward"},
            "the pass backward of the layer taylor2_qk16_v64 has no",
        ),
        ({"program": "forward", "CHUNK": 64}, "the program has no CHUNK, only LONGEST, TOKENS, .*FEWEST"),
        (
            {"program": "forward", "dtype": "float32", "TOKENS": 1 << 16},
            "does not admit it: .*nothing recurs",
        ),
        ({"program": "backward", "LENGTH": 192}, "LENGTH=192 is no multiple of SEGMENT=128"),
    ],
    ids=str,
)
def test_a_stale_record_is_an_error_that_says_how_to_mend_it(
    install: Install, change: dict[str, object], why: str, spec: LayerSpec
) -> None:
    install(records.layer_facts(spec) | {"backend": "triton", "dtype": "bfloat16"} | change)
    with pytest.raises(RecordError, match=why) as found:
        pipeline.schedule(pipeline.lower(spec), "triton")
    assert "based-ops tune taylor2_qk16_v64 --backend triton" in str(found.value).replace("NAME", NAME)
    pipeline.schedule(pipeline.lower(spec), "tilelang")


def test_a_record_is_of_a_meaning_and_not_of_a_name(install: Install) -> None:
    """A layer that has a shipped one's name and another meaning is left alone, stale record or not."""
    first = pipeline.load(SPECS, ["taylor1_qk16_v64"])["taylor1_qk16_v64"]
    install(records.layer_facts(first) | {"map": "taylor2", "program": "gone", "backend": "triton"})
    assert pipeline.schedule(pipeline.lower(first), "triton")


def test_one_program_has_one_set_of_rewrites(install: Install, spec: LayerSpec, outputs: Program) -> None:
    install(
        {"program": "outputs", "dtype": "bfloat16", "rewrites": []},
        {"program": "outputs", "dtype": "float32", "rewrites": ["gather_by_product"]},
    )
    with pytest.raises(RecordError, match="one set of rewrites"):
        choose(spec, outputs, "triton")


def test_a_record_can_change_the_order_of_a_printed_kernel(install: Install, spec: LayerSpec) -> None:
    name = on_warpgroups("recurrence")
    install({"program": name, "dtype": "bfloat16", "rewrites": ["mask_bits"]})
    layer = pipeline.schedule(pipeline.lower(spec), "triton")
    assert layer.find(name).schedule.rewrites == ("mask_bits",)
    assert "A_operand = where_bits(A_operand, seen_bits.load(LEFT_64))" in pipeline.emit(layer)


def test_a_record_can_say_that_the_portable_program_is_faster(install: Install) -> None:
    spec = pipeline.load(SPECS, ["window64_d64"])["window64_d64"]
    name = on_warpgroups("outputs")

    def served() -> list[torch.dtype]:
        text = pipeline.emit(pipeline.schedule(pipeline.lower(spec), "triton"))
        return list(import_text(text, "served").SCHEDULE[name])

    install()
    assert served() == [torch.bfloat16, torch.float16]
    install({"program": name, "dtype": "bfloat16", "used": False})
    assert served() == [torch.float16]


@pytest.mark.parametrize(
    ("name", "program", "part", "sizes"),
    [
        (NAME, "forward", "forward", {"TOKENS": 1 << 13, "FEWEST": 2}),
        (NAME, on_warpgroups("backward"), "backward", {"SHORTEST": 256, "PROGRAMS": 528}),
        ("window64_d64", on_warpgroups("backward"), "backward", {"PROGRAMS": 132}),
    ],
)
def test_a_record_of_a_plan_changes_by_what_a_pass_launches(
    install: Install, name: str, program: str, part: str, sizes: dict[str, int]
) -> None:
    spec = pipeline.load(SPECS, [name])[name]
    lowered = pipeline.lower(spec)

    def table() -> dict[torch.dtype, dict[str, int]]:
        module = import_text(pipeline.emit(pipeline.schedule(lowered, "triton")), "planned")
        found: dict[torch.dtype, dict[str, int]] = module.SCHEDULE[program]
        return found

    install()
    before = table()
    facts = records.layer_facts(spec) | {"backend": "triton", "pass": part, "program": program}
    measured = {"ms": 0.093, "policy_ms": 0.1, "of_limit": 0.25, "shapes": ["B1 H1 T512", "B1 H16 T2048"]}
    install(facts | {"dtype": "bfloat16", "measured": measured} | sizes)
    after = table()
    assert after == before | {torch.bfloat16: before[torch.bfloat16] | sizes} != before
    (plan,) = (plan for plan in pipeline.schedule(lowered, "triton").plans if plan.program == program)
    origins = {dtype: setting.origin for dtype, setting in plan.settings.items()}
    told = "record sm_90: 0.093 ms over 2 shapes, 25 % of limit"
    assert origins["bfloat16"] == told and origins["float16"] == "policy"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be a mapping"),
        ({"setings": []}, "unknown key `setings` .did you mean `settings`"),
        ({"serves": {"linear": "triton"}}, "did you mean `linear_attention`"),
        ({"serves": {"linear_attention": "tritn"}}, "did you mean `triton`"),
        ({"settings": [{"warp": 4}]}, "entry 1: unknown key `warp` .did you mean `warps`"),
        ({"settings": [{}, {"warps": 0}]}, "entry 2: warps: 0 must be a positive integer"),
        ({"settings": [{"CHUNK": "64"}]}, "CHUNK: '64' must be a positive integer"),
        ({"settings": [{"dtype": "bf16"}]}, "did you mean `bfloat16`"),
        ({"settings": [{"pass": "foreward"}]}, "did you mean `forward`"),
        ({"settings": [{"rewrites": ["gather_by_products"]}]}, "did you mean `gather_by_product`"),
        ({"settings": [{"used": 0}]}, "used: 0 must be of type bool"),
        ({"settings": [{"v": "64"}]}, "v: '64' must be of type int"),
        ({"settings": [{"measured": {"mss": 1.0}}]}, "did you mean `ms`"),
        ({"settings": [{"measured": {"ms": "1"}}]}, "ms: '1' is of the wrong type"),
        ({"settings": [{"measured": {"shapes": "B1 H1 T512"}}]}, "shapes: 'B1 H1 T512' is of the wrong type"),
    ],
    ids=str,
)
def test_a_wrong_file_is_an_error_with_the_nearest_name(data: object, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        record_file.book(data, "file.yaml")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    sizes = {"CHUNK": 64, "SEGMENT": 512}
    made = record_file.Book(
        {"linear_attention": "triton"},
        tuple(
            record_file.Entry(
                facts, sizes, 4, 2, ("gather_by_product",), False, MEASURED | {"date": date(2026, 1, 2)}
            )
            for facts in ({"qk": 128, "program": "b"}, {"qk": 16, "program": "b"}, {"qk": 16, "program": "a"})
        ),
    )
    path = tmp_path / "sm_90.yaml"
    path.write_text(record_file.text(made), encoding="utf-8")
    read = record_file.load(path)
    assert read.serves == made.serves
    assert [(e.facts["qk"], e.facts["program"]) for e in read.entries] == [(16, "a"), (16, "b"), (128, "b")]
    assert set(map(str, read.entries)) == set(map(str, made.entries))
    assert all(
        e.used is False and e.sizes == sizes and e.measured == made.entries[0].measured for e in read.entries
    )
    assert record_file.text(read) == record_file.text(made)
    fresh = record_file.Entry({"qk": 16, "program": "c"}, {"CHUNK": 16})
    merged = record_file.merged(read, [fresh], ["qk"])
    assert [str(e) for e in merged.entries] == ["{qk: 128, program: b}", "{qk: 16, program: c}"]
    merged = record_file.merged(read, [fresh], ["qk"], keeps=["a"])
    assert [e.facts["program"] for e in merged.entries] == ["a", "b", "c"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_records_are_current_sorted_and_of_use(path: Path) -> None:
    """Every entry changes some shipped layer; `schedule` raises if one is stale."""
    book = record_file.load(path)
    assert book.entries == record_file.load(path).entries
    assert record_file.text(book) == path.read_text(encoding="utf-8"), "not as `based-ops tune` writes it"
    used: set[str] = set()
    for spec in pipeline.load(SPECS).values():
        for target in (t for t, a in records.ARCHITECTURE.items() if a == path.stem):
            layer = pipeline.schedule(pipeline.lower(spec), target)
            for schedule in (*(part.schedule for part in layer.kernels), *layer.plans):
                used |= {
                    str(entry)
                    for dtype, setting in schedule.settings.items()
                    for entry in book.entries
                    if setting.origin != "policy"
                    and records.applies(entry, spec, target, schedule.program, dtype)
                }
    assert used == {str(entry) for entry in book.entries}
