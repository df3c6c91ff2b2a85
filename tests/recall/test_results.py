"""The CSV: what was written is read, and what is wrong is named with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from based_ops.errors import ResultsError
from based_ops.recall.results import COLUMNS, points, read, write

from .lines import line

GOOD = [line("based d=64 features=16"), line("map d=64 map=relu", 0.25), line("attention d=64", 1.0)]


@given(st.lists(st.sampled_from(GOOD), max_size=4), st.floats(0, 1), st.text("ab,\"\n '", max_size=5))
def test_what_was_written_is_read(lines: list, accuracy: float, device: str) -> None:
    import tempfile

    changed = [replace(x, accuracy=accuracy, device=device) for x in lines]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "new" / "found.csv"
        write(path, changed)
        assert read(path) == changed
        assert [x.name for x in path.parent.iterdir()] == ["found.csv"]


def test_an_interruption_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "found.csv"
    write(path, GOOD[:1])

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, GOOD)
    assert read(path) == GOOD[:1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("design,", "shape,", ":1: not a file of `based-ops recall`: 'shape' is none of its columns"),
        (",date", "", ":1: not a file of `based-ops recall`: 'date' is none of its columns or missing"),
        ("design,seed", "seed,design", ":1: not a file of `based-ops recall`: in another order"),
        ("0.001,zoology", "fast,zoology", ":2: rate: got 'fast', must be of type float"),
        ("64/4=0.5", "64/4=half", ":2: tests: got '64/4=half 64/16=0.5 1024/256=0.5', must be accuracies"),
        ("64/4=0.5 64/16=0.5 1024/256=0.5", "", ":2: tests: got '', must be accuracies such as 64/4=0.98"),
        ("64/4=0.5", "64/4=5", ":2: tests: got '64/4=5 64/16=0.5 1024/256=0.5', must be accuracies"),
        ("torch 2.11,2026-11-29", "torch", f":2: has {len(COLUMNS) - 1} of {len(COLUMNS)} columns: cut off"),
        ("based d", "bassed d", ":2: design: model: 'bassed' is none; did you mean based?"),
        ("based d=64", "based d=6", ":2: design: d_model: got 6, must be an int of 16 or more"),
    ],
)
def test_a_file_that_is_corrupted(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    write(path, GOOD[:1])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ResultsError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}{message}")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for data in (b"", b"\xff\xfe", b"\x00"):
        (tmp_path / "found.csv").write_bytes(data)
        with pytest.raises(ResultsError, match="found.csv"):
            read(tmp_path / "found.csv")
    with pytest.raises(ResultsError, match="cannot be read"):
        read(tmp_path)


def test_a_point_has_the_best_rate_of_each_seed_and_the_longest_training() -> None:
    lines = [
        line("attention d=64", 0.9, epochs=4),
        line("attention d=64", 0.5, rate=0.1),
        line("attention d=64", 0.7),
        line("attention d=64", 0.6, seed=1),
    ]
    (point,) = points(lines)
    assert point.of(None) == [0.6, 0.7] and point.mean() == pytest.approx(0.65)
    assert point.of((64, 16)) == [0.6, 0.7]
