"""`based-ops dial`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import based_ops
from based_ops.benchmarks.ops.results import read as read_records
from based_ops.benchmarks.recall.dial import choices, cost
from based_ops.cli import main
from based_ops.cli.dial import UNITS, Bytes
from based_ops.cli.places import RECORDS
from based_ops.codegen.spec.load import load_file
from based_ops.recall.results import points, write
from tests.recall.lines import line

LINES = [line("based d=64 features=8", 0.7, 12_000), line("based d=64 features=16", 0.9, 40_000)]


def run(*words: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, ["dial", *map(str, words)])
    return found.exit_code, found.stdout, found.stderr


@given(st.integers(2000, 400_000), st.sampled_from([1, 4, 16]), st.sampled_from([48, 64]))
@settings(max_examples=4)
def test_what_fits_fits_and_the_best_recall_is_first(most: int, heads: int, width: int) -> None:
    found = choices(most, width, heads, 128, points(LINES))
    assert all(x.state_bytes <= most for x in found)
    recalls = [-1 if x.recall is None else x.recall.mean() for x in found]
    assert recalls == sorted(recalls, reverse=True)
    for choice in found[:2]:
        op = based_ops.get("taylor2_qk16_v64")
        if choice.spec.name == op.name:
            assert choice.state_bytes == op.state_bytes(1, heads)


def test_a_step_costs_what_was_measured() -> None:
    measured = read_records(RECORDS)
    spec = based_ops.get("taylor2_qk16_v64").spec
    (own,) = [
        x for x in measured.lines if x.group == "step" and x.work.variant == spec.name and x.work.rows == 2048
    ]
    found = cost(spec, 16, 128, measured)
    assert found is not None and found.measured and own.own is not None and found.ms == own.own.ms
    times = [cost(spec, 16, batch, measured) for batch in (1, 3, 20, 100, 200, 1000)]
    assert all(x is not None for x in times)
    ms = [x.ms for x in times if x is not None]
    assert ms == sorted(ms) and not times[-1].measured  # type: ignore[union-attr]
    assert cost(spec, 16, 128, None) is None
    assert cost(based_ops.get("taylor2_delta_qk16_v64").spec, 16, 128, measured) is None


def test_a_choice_is_written_and_drawn(tmp_path: Path) -> None:
    write(tmp_path / "found.csv", LINES)
    words = ["--bytes", "64KiB", "--csv", tmp_path / "found.csv", "--write", tmp_path / "my_layer.yaml"]
    code, out, err = run(*words, "--picture", tmp_path / "pictures")
    assert code == 0, err
    first = out.splitlines()[1].split()
    assert first[:3] == ["based", "d=64", "features=16"] and "0.900" in first
    spec = load_file(tmp_path / "my_layer.yaml")
    assert spec.name == "my_layer" and spec.describe() == based_ops.get("taylor2_qk16_v64").spec.describe()
    assert {x.name for x in (tmp_path / "pictures").iterdir()} == {
        "recall-against-bytes-light.png",
        "recall-against-bytes-dark.png",
    }
    code, out, _ = run(*words, "--choose", "window d=64 window=32", "--json")
    assert code == 0 and load_file(tmp_path / "my_layer.yaml").mixer == "sliding_window"
    assert json.loads(out)[0]["recall"] == "0.900"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bytes", "many"], "'many' is no number of bytes: write 65536, 64KiB or 0.5MB"),
        (["--bytes", "0KiB"], "'0KiB' is no number of bytes"),
        (["--bytes", "64KX"], "'64KX' is no number of bytes"),
        (["--bytes", "10"], "--bytes: no layer with values 64 wide in 1 heads has so small a state"),
        (["--bytes", "64KiB", "--csv", "no-such-file.csv"], "no-such-file.csv: cannot be read"),
        (["--bytes", "64KiB", "--records", "no-such-file.json"], "no-such-file.json"),
        (["--bytes", "9KiB", "--choose", "based d=64"], "--choose: based d=64 features=16"),
        (["--bytes", "9KiB", "--choose", "based d=64 width=3"], "a dial of based: got 'width'"),
        (["--bytes", "9KiB", "--write", "My Layer.yaml"], "name"),
    ],
)
def test_what_cannot_be_dialled(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*words)
    assert code in (1, 2) and message in err
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)))
def test_bytes_are_read(number: int, unit: str) -> None:
    assert Bytes().convert(f"{number}{unit}", None, None) == number * UNITS[unit]
