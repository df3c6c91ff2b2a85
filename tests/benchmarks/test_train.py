"""The comparison of models that are trained: equal weights, resumed runs, tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from based_ops.benchmarks.ops.tables import rewritten
from based_ops.benchmarks.train import contenders, results, run
from based_ops.benchmarks.train import text as text_module
from based_ops.benchmarks.train.results import Line, Quality, Report, Speed
from based_ops.cli import main
from based_ops.models import LanguageModel
from based_ops.recall.tasks import Example
from based_ops.train import Settings, Text, read

ROOT = Path(__file__).parents[2]
RECIPE = Settings(3, 2, 64, warmup=1, dtype="float32")
TINY = ("based-tiny", "transformer-tiny")


@pytest.fixture(scope="module")
def words() -> Text:
    """What is held out says everything twice, and nothing that was trained on: half of it can be recalled."""
    said = torch.randint(128, 256, (40, 1, 32), generator=torch.Generator().manual_seed(0))
    return replace(read(ROOT / "docs"), held_out=said.expand(-1, 2, -1).flatten().to(torch.int32))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SEQUENCES", 16)
    monkeypatch.setattr(run, "WARM", 1)
    monkeypatch.setattr(run, "TIMED", 2)


def go(todo: list[results.Point], words: Text, earlier: Report | None = None, minutes: float = 9) -> Report:
    asked = [Example("Name: abc\n\nName:", "abc")]
    said: list[str] = []
    return run.run(todo, words, asked, RECIPE, "cpu", minutes, said.append, earlier=earlier)


def test_weights_are_equal() -> None:
    counts = {
        name: contenders.weights(LanguageModel(contenders.SPECS / f"{name}.yaml", device="meta"))
        for name in contenders.SMALL
    }
    assert max(counts.values()) < 1.02 * min(counts.values()), counts


def test_the_width_that_makes_weights_equal() -> None:
    assert contenders._width(lambda inner: 1000 + 30 * inner, 1000 + 30 * 400) == 400
    assert contenders._width(lambda inner: 1000 + 30 * inner, 1000 + 30 * 403) == 400


def test_a_run_and_its_resumption(words: Text, tmp_path: Path) -> None:
    todo = run.points(TINY, [1e-3], 2, run.timed("cpu"))
    assert [type(x) for x in todo] == [Speed] * 2 + [Quality] * 4
    assert [x.seed for x in todo[2:]] == [0, 0, 1, 1], "a seed of every model before the next"  # type: ignore
    first = go(todo[:3], words)
    assert not first.missing and len(first.lines) == 3
    line = first.lines[2]
    assert line.tokens == 3 * 2 * 64 and line.fields in (0.0, 1.0) and 6 < line.bits < 9  # type: ignore
    first.write(tmp_path / "x.json")
    again = results.read(tmp_path / "x.json")
    whole = go(todo, words, earlier=again)
    assert whole.lines[:3] == again.lines and len(whole.lines) == 6, "what is there is not done again"
    assert len(list(results.quality_rows(whole))) == 2
    assert all("±" in row[2] for row in results.quality_rows(whole))
    with pytest.raises(ValueError, match="length: got 48, must be above 48"):
        run.run(todo, words, [Example("a", "b")], replace(RECIPE, length=48), "cpu", 1, print)
    with pytest.raises(ValueError, match="of another machine, text or recipe: steps 3, here 4"):
        run.run(todo, words, [], replace(RECIPE, steps=4), "cpu", 1, print, earlier=again)
    other = replace(again, machine={**again.machine, "device": "another"})
    with pytest.raises(ValueError, match="device another, here"):
        go(todo, words, earlier=other)


def test_quality_is_the_same_twice(words: Text) -> None:
    one, two = (go([Quality("based-tiny", 1e-3, 0)], words).lines[0] for _ in range(2))
    assert (one.bits, one.hits, one.others) == (two.bits, two.hits, two.others)
    parts = one.hit_share * one.hits + (1 - one.hit_share) * one.others  # type: ignore[operator]
    assert parts == pytest.approx(one.bits)


def test_text_without_hits(words: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ORDER", 7)
    monkeypatch.setattr(run, "SEQUENCES", 1)
    once = replace(words, held_out=torch.arange(65, dtype=torch.int32))
    report = go([Quality("based-tiny", 1e-3, 0)], once)
    assert not report.missing, "a report without hits is printed too"
    assert report.lines[0].hits is None and report.lines[0].others == pytest.approx(report.lines[0].bits)
    assert next(results.quality_rows(report))[3] == "-"


def test_failures_cost_their_own_point(words: Text) -> None:
    todo: list[results.Point] = [Quality("bazed-tiny", 1e-3, 0), Quality("based-tiny", 1e9, 0)]
    found = go([*todo, Quality("based-tiny", 1e-3, 0)], words)
    assert len(found.lines) == 1
    assert "did you mean based-tiny?" in found.missing["bazed-tiny lr 0.001 seed 0"]
    assert found.missing["based-tiny lr 1e+09 seed 0"].startswith("RuntimeError: the loss is ")
    late = go([Quality("based-tiny", 1e-3, 0)], words, minutes=-1)
    assert not late.lines and "want of time" in next(iter(late.missing.values()))


def test_peers_that_are_not_installed(words: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    found = go([Quality(name, 1e-3, 0) for name in contenders.FLA], words)
    assert set(found.missing.values()) == {
        "RuntimeError: flash-linear-attention and transformers: not installed"
    }


def test_the_best_learning_rate_counts(tmp_path: Path) -> None:
    def line(model: str, lr: float, seed: int, bits: float) -> Line:
        return Line(Quality(model, lr, seed), 10, 5, 1.0, 5.0, None, bits, 2 * bits, bits / 2, 0.1)

    lines = [
        line("a", 1e-3, 0, 2.0),
        line("a", 1e-3, 1, 2.2),
        line("a", 1e-2, 0, 3.0),
        line("b", 1e-3, 0, 1.5),
    ]
    lines.append(Line(Speed("a", 2, 64, True), 10, 5, 1.0, 5.0, 0.46, memory_gb=3.0))
    report = Report({"device": "some", "torch": "2"}, {"steps": 3}, lines, {})
    b, a = results.quality_rows(report)
    assert b[:3] == ("b", "10", "1.5000") and a[2].startswith("2.1000 ± 0.1414") and a[-2:] == ("0.001", "2")
    (fast,) = results.speed_rows(report)
    assert fast[4:] == ("blocks compiled", "5", "46.0 %", "3.0")
    report.write(tmp_path / "x.json")
    again = results.read(tmp_path / "x.json")
    assert [asdict(x) for x in again.lines] == [asdict(x) for x in lines]
    text = "<!-- from x.json: based-ops bench tables -->\n<!-- end -->"
    assert "| b | 10 | 1.5000 |" in rewritten(text, tmp_path)
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(ValueError, match="not a result of `bench train`"):
        results.read(tmp_path / "y.json")


def test_text_of_any_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    for name in ("a.py", "below/b.py", "site-packages/c.py", "d.txt"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(name)
    monkeypatch.setattr(text_module.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    folders, asked = text_module.gather(tmp_path / "out")
    assert sorted(x.name for x in folders[0].rglob("*.py")) == ["a.py", "b.py"]
    assert len(asked) > 9 and len(list(folders[1].iterdir())) > 9
    assert not {x.document for x in asked} & {x.stem for x in folders[1].iterdir()}


def test_the_command(tmp_path: Path) -> None:
    words = ["bench", "train", "--device", "cpu", "--text", str(ROOT / "docs"), "--model", "based-tiny"]
    words += ["--steps", "2", "--batch", "2", "--length", "32", "--seeds", "1", "--no-speed"]
    words += ["--json", str(tmp_path / "x.json")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0 and "based-tiny" in done.output, done.output
    assert len(json.loads((tmp_path / "x.json").read_text())["lines"]) == 1
    again = CliRunner().invoke(main, [*words, "--resume"])
    assert again.exit_code == 0 and "tokens/s |" not in again.stderr
    changed = CliRunner().invoke(main, [*words, "--resume", "--lr", "1e-3", "--length", "16"])
    assert changed.exit_code == 2 and "length 32, here 16" in changed.stderr
    assert CliRunner().invoke(main, ["bench", "train", "--resume"]).exit_code == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("model", TINY)
def test_speed_on_a_gpu(model: str, compiled: bool) -> None:
    line = run.measured(Speed(model, 2, 256, compiled), None, [], replace(RECIPE, dtype="bfloat16"), "cuda")  # type: ignore
    assert line.tokens_per_second > 0 and line.memory_gb
