"""`based-ops recall`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from based_ops.cli import main
from based_ops.cli.recall import QUICK_LONG_RANGE, QUICK_WORDS, TASKS
from based_ops.recall import recipe, sweep
from based_ops.recall.mqar import Segment
from based_ops.recall.results import read, write
from based_ops.recall.words import Words
from tests.recall.lines import line

TINY = recipe.Recipe(32, (Segment(16, 2, 16),), (Segment(16, 2, 8),), epochs=1, rates=(1e-3,), batch=8)


def run(*words: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, ["recall", *map(str, words)])
    return found.exit_code, found.stdout, found.stderr


def test_a_run_writes_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipe.RECIPES, "small", TINY)
    path = tmp_path / "found.csv"
    points = ["--point", "attention d=16", "--point", "attention d=24"]
    command = ["mqar", "--quick", "--device", "cpu", "--csv", path, "--seeds", "0,3", *points]
    code, out, err = run(*command, "--dials", "d=16")
    assert code == 0 and [x.seed for x in read(path)] == [0, 3]
    assert "1 of 1 points to train" in err and "epoch 1 of 1" in err and "left: 0.0 min" in err
    assert out.splitlines()[0].startswith("model") and out.splitlines()[1].startswith("attention d=16")
    code, out, err = run(*command, "--lrs", "1e-3")
    assert code == 0 and "1 of 2 points to train" in err and len(read(path)) == 4
    code, out, _ = run(*command, "--json")
    assert code == 0 and [x["model"] for x in json.loads(out)] == ["attention d=16", "attention d=24"]


def test_words_are_trained_on_like_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = recipe.Recipe(6, (Words(8, "s3", 16),), (Words(8, "s3", 8), Words(16, "s3", 8)), 1, (1e-3,))
    monkeypatch.setitem(recipe.RECIPES, "s3", small)
    path = tmp_path / "s3.csv"
    points = ["--point", "attention d=16", "--point", "delta d=16 features=8 negative=True"]
    code, out, _ = run("synthetic", "s3", "--device", "cpu", "--csv", path, *points)
    assert code == 0 and "delta d=16" in out
    assert all(x.recipe == "s3" and set(x.accuracies) == {(8, 8), (16, 16)} for x in read(path))
    assert run("synthetic", "s4", "--csv", path)[0] == 2
    code, _, err = run("synthetic", "parity", "--device", "cpu", "--csv", path, *points)
    assert code == 2 and "holds results of the recipe s3, not parity" in err


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_quick_form(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same tokens, on a list of its own."""
    name = f"{task}-quick"
    full, quick = recipe.RECIPES[task], recipe.RECIPES[name]
    assert quick.vocabulary == full.vocabulary and type(quick.train[0]) is type(full.train[0])
    few = {"train": tuple(x.of(4) for x in quick.train), "tests": tuple(x.of(2) for x in quick.tests)}
    monkeypatch.setitem(recipe.RECIPES, name, replace(quick, **few))
    path = tmp_path / "found.csv"
    only = ["--models", "attention", "--seeds", "0", "--epochs", "1"]
    code, _, err = run("synthetic", task, "--quick", "--device", "cpu", "--csv", path, *only)
    assert code == 0, err
    assert [(x.recipe, x.parsed.d_model) for x in read(path)] == [(name, 32)]


@pytest.mark.parametrize("path", [QUICK_WORDS, QUICK_LONG_RANGE])
def test_lists_of_quick_points_can_be_made(path: Path) -> None:
    jobs = sweep.read(path)
    assert len({job.design for job in jobs}) == len(jobs)
    for job in jobs:
        job.design.layers()


def test_a_study_of_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for length in (64, 128):
        small = recipe.Recipe(32, (Segment(16, 2, 16, True),), (Segment(length, 2, 8, True),), 1, (1e-3,))
        monkeypatch.setitem(recipe.RECIPES, f"zoology-{length}", small)
        paths.append(tmp_path / f"{length}.csv")
        points = ["--point", "attention d=16", "--point", "sparse d=16", "--point", "sparse d=24"]
        options = ["--recipe", f"zoology-{length}", "--device", "cpu", "--csv", paths[-1]]
        assert run("mqar", *options, *points)[0] == 0
    code, out, _ = run("widths", *paths, "--out", tmp_path)
    assert code == 0 and f"written: {tmp_path / 'recall-against-width-light.png'}" in out
    assert (tmp_path / "recall-against-width-dark.png").stat().st_size > 10_000


def test_a_point_that_fails_ends_the_command_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipe.RECIPES, "small", TINY)
    words = ["--quick", "--device", "cpu", "--csv", tmp_path / "found.csv"]
    code, _, err = run("mqar", *words, "--point", "map d=256 map=dpfp", "--point", "attention d=16")
    assert code == 1 and "failed: map d=256 map=dpfp" in err and len(read(tmp_path / "found.csv")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--point", "bassed d=64"], "model: 'bassed' is none; did you mean based?"),
        (["--models", "nothing"], "--models and --dials leave no point of"),
        (["--seeds", "a"], "'a' is no list of ints with commas between them"),
        (["--epochs", "0"], "0 is not in the range x>=1"),
        (["--sweep", "no-such-file"], "does not exist"),
    ],
)
def test_what_cannot_be_run(words: list[str], message: str) -> None:
    code, _, err = run("mqar", "--device", "cpu", *words)
    assert code in (1, 2) and message in err


def test_pictures_and_claims(tmp_path: Path) -> None:
    write(tmp_path / "found.csv", [line("based d=64", 0.7, 10_000), line("attention d=64", 1.0, 500_000)])
    code, out, _ = run("plots", tmp_path / "found.csv")
    assert code == 0 and f"written: {tmp_path / 'recall-against-bytes-dark.png'}" in out
    assert "attention solves everything" in out and "holds" in out
    code, out, err = run("plots", tmp_path / "found.csv", "--json")
    verdicts = {x["claim"]: x["verdict"] for x in json.loads(out)}
    assert code == 0 and verdicts["attention solves everything"] == "holds" and "written: " in err
    (tmp_path / "found.csv").write_text("nothing\n")
    code, _, err = run("plots", tmp_path / "found.csv")
    assert code == 2 and "not a file of `based-ops recall`" in err


def test_models_are_listed() -> None:
    code, out, _ = run("models", "--json")
    found = {x["model"]: x["dials"] for x in json.loads(out)}
    assert code == 0 and found["based"] == "features=16 order=2 window=0 conv=3"
