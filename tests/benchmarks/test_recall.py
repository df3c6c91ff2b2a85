"""Pictures of recall, and the papers' claims about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from based_ops.benchmarks.ops.results import read as read_records
from based_ops.benchmarks.recall import widths
from based_ops.benchmarks.recall.claims import claims, visible, winners
from based_ops.benchmarks.recall.plots import bound, draw, frontier
from based_ops.benchmarks.recall.tables import recall_table, tasks_table
from based_ops.cli.places import RECALL, RECORDS
from based_ops.errors import ResultsError
from based_ops.recall.model import information_bytes
from based_ops.recall.results import Line, points, read
from tests.recall.lines import line

LINES = [
    line("based d=64 features=8", 0.7, 10_000),
    line("based d=64 features=16", 0.9, 40_000),
    line("based d=64 features=16", 0.92, 40_000, seed=1),
    line("based d=256 features=24", 0.985, 330_000),
    line("attention d=64", 0.99, 500_000),
    line("window d=64 window=16", 0.02, 9000),
    line("window d=64 window=64", 0.04, 41_000),
    line("based d=64 features=16 window=16", 0.9, 45_000),
    line("based d=64 features=16 window=64", 0.91, 60_000),
    line("mamba2 d=64", 0.8, 41_000),
    line("map d=64 map=relu", 0.6, 17_000),
    line("map d=64 map=square", 0.5, 17_000),
]


def judged(lines: list[Line]) -> dict[str, bool | None]:
    return {x.says: x.holds for x in claims(points(lines))}


def test_claims_hold_where_points_show_them() -> None:
    found = judged(LINES)
    assert found["attention solves everything"] is True
    assert found["windows fail beyond their width"] is True
    assert found["Based is above window at equal bytes"] is True
    assert found["Based is above mamba2 at equal bytes"] is True
    assert found["Based is above gla at equal bytes"] is None
    assert found["Based reaches 0.98 at 256 pairs, 256 wide"] is True
    assert found["relu is at or near the frontier of the maps"] is True
    assert winners(points(LINES)) == []


def test_equal_bytes_are_those_of_a_normaliser_more() -> None:
    """The delta rule has none, so its states are that much smaller than those it is compared with."""
    lines = [line("based d=64 features=16", 0.9, 40_292), line("delta d=64 features=16", 0.92, 39_680)]
    assert winners(points(lines)) == [
        f"{lines[1].parsed} (39.7 kB: 0.920) is above {lines[0].parsed} (40.3 kB: 0.900)"
    ]
    assert winners(points([*lines[:1], line("delta d=64 features=16", 0.92, 39_000)])) == []


def test_a_table_has_every_point_and_the_range_of_its_seeds() -> None:
    _, _, columns, _, *rows = recall_table(LINES).splitlines()
    assert columns.endswith("| mean of the tests | 256 pairs | epochs | seeds |")
    assert len(rows) == len(points(LINES)) and rows[0].startswith("| attention |")
    seeds = next(row for row in rows if "`based d=64`" in row)
    assert "| 40.0 | 0.900 – 0.920 |" in seeds and seeds.endswith("| 2 |")


def test_a_table_of_words_has_every_length() -> None:
    words = {"recipe": "parity-quick", "tests": "16/16=1.0 128/128=0.6"}
    turns = [line("delta d=32 negative=True", 0.8, seed=seed, **words) for seed in (0, 1)]
    _, _, columns, _, *rows = recall_table([line("based d=32", 0.7, **words), *turns]).splitlines()
    assert columns.endswith("| mean of the tests | 16 tokens | 128 tokens | epochs | seeds |")
    assert rows[0].endswith("| 0.800 | 1.000 | 0.600 | 8 of 8 | 2 |") and "| Based |" in rows[1]


def test_a_table_of_tasks_has_a_column_for_each() -> None:
    digits = [
        line("s4d d=32", x, seed=seed, recipe="digits-quick", tests=f"64/1={x}")
        for seed, x in enumerate((0.95, 0.9))
    ]
    delay = [
        line(name, x, recipe="delay-quick", tests=f"128/64={x}")
        for name, x in (("s4d d=32", 0.5), ("s4d d=32 basis=inv", 0.25))
    ]
    _, _, columns, _, *rows = tasks_table([digits, delay]).splitlines()
    assert columns == "| layer | digits-quick | delay-quick |"
    assert rows == ["| `s4d d=32` | 0.900 – 0.950 | 0.500 |", "| `s4d d=32 basis=inv` |  | 0.250 |"]


def test_a_panel_for_every_length(tmp_path: Path) -> None:
    lines = [
        line(
            f"{model} d={d}",
            accuracy,
            tests=f"{length}/{length // 16}={accuracy}",
            recipe=f"zoology-{length}",
        )
        for length in (64, 256)
        for model, accuracy in (("attention", 0.99), ("base_conv", 32 / length), ("sparse", 0.9))
        for d in (64, 128)
    ]
    assert [x.name for x in widths.draw(lines, tmp_path)] == [
        "recall-against-width-light.png",
        "recall-against-width-dark.png",
    ]
    with pytest.raises(ResultsError, match="got 3 tests of one model, must be CSVs of one length each"):
        widths.draw([*lines, LINES[0]], tmp_path)
    with pytest.raises(ResultsError, match="got no lines"):
        widths.draw([], tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (line("attention d=128", 0.9, 10**6), "attention solves everything"),
        (line("window d=64 window=128", 0.6, 67_000), "windows fail beyond their width"),
        (line("mamba2 d=128", 0.95, 50_000), "Based is above mamba2 at equal bytes"),
        (line("map d=64 map=exp", 0.9, 17_000), "relu is at or near the frontier of the maps"),
    ],
)
def test_claims_fall_where_points_are_against_them(more: Line, says: str) -> None:
    assert judged([*LINES, more])[says] is False


def test_a_narrower_based_is_not_its_large_end() -> None:
    narrow = [x for x in LINES if "d=256" not in str(x.design)]
    assert judged(narrow)["Based reaches 0.98 at 256 pairs, 256 wide"] is None
    lower = [*narrow, line("based d=256 features=24", 0.9, 330_000)]
    assert judged(lower)["Based reaches 0.98 at 256 pairs, 256 wide"] is False


def test_a_peer_that_wins_is_named() -> None:
    (text,) = winners(points([*LINES, line("mamba2 d=128", 0.95, 50_000)]))
    assert text.startswith("mamba2 d=128") and "is above based d=64 features=16" in text


def test_what_a_window_sees() -> None:
    assert visible((64, 4), 64) == 1.0
    assert visible((1024, 256), 1024) == 1.0
    parts = [visible((1024, 256), window) for window in (1, 64, 400, 512, 768)]
    assert parts[0] == 0.0 and parts == sorted(parts) and 0.1 < parts[3] < 0.9


def test_the_bound_is_reached_where_all_pairs_fit() -> None:
    tests = [(64, 4), (1024, 256)]
    size = information_bytes(256, 8192)
    assert bound(size, tests, 8192) == 1.0
    assert bound(size - 1, tests, 8192) < 1.0
    assert bound(0, tests, 8192) == 0.0
    assert bound(information_bytes(4, 8192), tests, 8192) == pytest.approx((1 + 4 / 256) / 2)


def test_the_frontier_rises() -> None:
    found = frontier(points(LINES), None)
    assert [x.state_bytes for x in found] == sorted(x.state_bytes for x in found)
    assert [x.mean() for x in found] == sorted(x.mean() for x in found)
    assert found[-1].mean() == 0.99


def test_pictures_are_drawn(tmp_path: Path) -> None:
    drawn = draw(LINES, tmp_path)
    names = {"recall-against-bytes", "recall-of-maps", "recall-against-window"}
    assert {x.name for x in drawn} == {f"{name}-{theme}.png" for name in names for theme in ("light", "dark")}
    assert all(x.stat().st_size > 10_000 for x in drawn)
    assert draw([], tmp_path / "none") == []
    timed = draw(LINES, tmp_path / "timed", measured=read_records(RECORDS))
    wider = [x.stat().st_size for x in (drawn[-2], timed[-2])]
    assert wider[0] < wider[1]
    one = draw(LINES[:1], tmp_path / "one")
    assert {x.name for x in one} == {f"recall-against-bytes-{theme}.png" for theme in ("light", "dark")}


@pytest.mark.skipif(not RECALL.exists(), reason="no results are committed yet")
def test_the_papers_claims_hold_of_the_committed_results() -> None:
    found = points(read(RECALL))
    wrong = [f"{x.says}: {x.because}" for x in claims(found) if x.holds is False]
    assert not wrong
