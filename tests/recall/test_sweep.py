"""Sweeps: the order of a list, what is there already, interruptions, and what is refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops.benchmarks.recall.plots import series
from based_ops.cli.recall import SWEEP
from based_ops.errors import ArgumentTypeError, ArgumentValueError, ResultsError
from based_ops.recall import recipe, results, sweep
from based_ops.recall.ahead import _prepare
from based_ops.recall.designs import Design
from based_ops.recall.mqar import Segment
from based_ops.recall.peers import PEERS
from based_ops.recall.sweep import Job, Settings
from based_ops.recall.train import Data, Training

TINY = recipe.Recipe(32, (Segment(16, 2, 16),), (Segment(16, 2, 8),), epochs=1, rates=(1e-3,), batch=8)
SETTINGS = Settings("tiny", 1, (1e-3, 1e-2), torch.device("cpu"), torch.float32, graphs=False)
JOBS = [Job(Design.of("attention", d), (0,)) for d in (16, 24, 32)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(recipe.RECIPES, "tiny", TINY)
    yield


def names(path: Path) -> list[str]:
    return [x.design for x in results.read(path)]


def test_points_are_trained_in_order_and_once(tmp_path: Path) -> None:
    path, said = tmp_path / "found.csv", list[str]()
    first = sweep.run(JOBS[:2], SETTINGS, path, 60, said.append).lines
    assert names(path) == ["attention d=16"] * 2 + ["attention d=24"] * 2
    assert [(x.seed, x.rate, x.beside) for x in first] == [(0, 1e-3, 2), (0, 1e-2, 2)] * 2
    again = sweep.run(JOBS, SETTINGS, path, 60, said.append).lines
    assert again[:4] == first and len(again) == 6
    assert "1 of 3 points to train, 1 epochs, on cpu" in said
    more = sweep.run([Job(JOBS[0].design, (0, 1))], SETTINGS, path, 60, said.append).lines
    assert [x.seed for x in more if x.design == "attention d=16"] == [0, 0, 1, 1]
    twice = [JOBS[2], Job(JOBS[2].design, (0, 1))]
    both = sweep.run(twice, SETTINGS, tmp_path / "other.csv", 60, said.append).lines
    assert [(x.seed, x.beside) for x in both] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    longer = sweep.run(JOBS[:1], replace(SETTINGS, epochs=2), path, 60, said.append).lines
    assert {x.epochs for x in longer if x.design == "attention d=16"} == {1, 2}


def test_an_interruption_loses_the_point_that_was_trained(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"

    def interrupt(text: str) -> None:
        if "attention d=24: epoch" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(JOBS, SETTINGS, path, 60, interrupt)
    assert set(names(path)) == {"attention d=16"}
    sweep.run(JOBS, SETTINGS, path, 60, lambda text: None)
    assert len(names(path)) == 6


def test_no_point_begins_for_which_there_is_no_time(tmp_path: Path) -> None:
    said = list[str]()
    sweep.run(JOBS, SETTINGS, tmp_path / "found.csv", 1e-6, said.append)
    assert "3 points are left" in said[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="peers may be there")
def test_a_peer_that_is_missing_is_named_and_left_out(tmp_path: Path) -> None:
    said = list[str]()
    jobs = [Job(Design.of("gla", 16), (0,)), JOBS[0]]
    sweep.run(jobs, SETTINGS, tmp_path / "found.csv", 60, said.append)
    assert set(names(tmp_path / "found.csv")) == {"attention d=16"}
    assert any(x.startswith("left out: gla: ") for x in said)


def test_a_point_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = [Job(Design.of("map", 256, map="dpfp"), (0,)), JOBS[0]]
    found = sweep.run(jobs, SETTINGS, tmp_path / "found.csv", 60, lambda text: None)
    assert {x.design for x in found.lines} == {"attention d=16"}
    (text,) = found.failed
    assert (
        text.startswith("map d=256 map=dpfp features=0: SpecErrors: ") and "at most 256 are allowed" in text
    )


def test_results_of_another_recipe_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    sweep.run(JOBS[:1], SETTINGS, path, 60, lambda text: None)
    with pytest.raises(ResultsError, match="holds results of the recipe tiny, not small: name another file"):
        sweep.run(JOBS, replace(SETTINGS, recipe="small"), path, 60, lambda text: None)


def test_the_list_that_comes_with_the_package() -> None:
    jobs = sweep.read(SWEEP)
    assert len(jobs) > 50
    assert {series(results.Point(x.design, 0, 0, ())) for x in jobs[:5]} >= {"Based", "attention", "windows"}
    assert len({(job.design, job.seeds) for job in jobs}) == len(jobs)
    for job in jobs:
        if job.design.model not in PEERS:
            job.design.layers()
    some = sweep.chosen(jobs, ["based"], ["d=64", "features=16", "order=2", "conv=3"])
    assert some and all(x.design.model == "based" and x.design.d_model == 64 for x in some)


@given(st.sampled_from([x.design for x in sweep.read(SWEEP) if x.design.model not in PEERS]))
@settings(max_examples=4)
def test_points_of_the_list_take_a_step(design: Design) -> None:
    training = Training(design, TINY, [1e-3, 1e-2], [0], "cpu")
    epoch = training.epoch(Data.of(TINY, "cpu"), 1)
    assert all(math.isfinite(x) for x in epoch.losses)
    assert all(torch.isfinite(x).all() for x in training.model.parameters())


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a: 1", ArgumentValueError, "must be a list of stages"),
        (
            "- {points: [], seeds: [0]}",
            ArgumentValueError,
            "stage 1: must have `stage`, `points` and `seeds`",
        ),
        ("- {stage: a, points: [], seeds: [-1]}", ArgumentValueError, "stage 1: seeds: got [-1], must be"),
        (
            "- {stage: a, points: [based], seeds: [0]}",
            ArgumentValueError,
            "stage 1: based: d_model: got None",
        ),
        (
            "- {stage: a, points: [based d=64 order=x], seeds: [0]}",
            ArgumentTypeError,
            "stage 1: based d=64 order=x: order: got 'x', must be of type int",
        ),
        ("- [", ArgumentValueError, "cannot be read"),
    ],
)
def test_a_list_that_is_wrong(text: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(error) as raised:
        sweep.read(tmp_path / "list.yaml")
    assert message in str(raised.value)


def test_what_the_process_beside_does() -> None:
    """A step of each segment, and the tests; no point before its turn, and none that cannot run here."""
    turns = list[None]()

    class Reached:
        def acquire(self) -> None:
            turns.append(None)

    given = [Job(Design.of("gla", 16), (0,)), *JOBS[:2]]
    _prepare(*pickle.loads(pickle.dumps((given, SETTINGS))), Reached())
    assert len(turns) == 3


@pytest.mark.gpu
def test_kernels_are_compiled_ahead(tmp_path: Path) -> None:
    device = torch.device("cuda")
    settings = replace(SETTINGS, recipe="small", device=device, dtype=torch.bfloat16, graphs=True)
    jobs = [Job(Design.read(f"based d=32 features={n}"), (0,)) for n in (8, 16)]
    assert len(sweep.run(jobs, settings, tmp_path / "found.csv", 60, lambda text: None).lines) == 4
