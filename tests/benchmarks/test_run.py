"""Runs on a CPU: what is measured, what fails, and how it is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import Tensor

from based_ops.benchmarks import compile_time
from based_ops.benchmarks.ops import measure, ours
from based_ops.benchmarks.ops import run as running
from based_ops.benchmarks.ops.measure import Effort
from based_ops.benchmarks.ops.report import rows, summary
from based_ops.benchmarks.ops.results import Line, Report, read
from based_ops.benchmarks.ops.run import run
from based_ops.benchmarks.ops.works import Entry, Target, Work
from based_ops.cli import main
from based_ops.codegen.pipeline import compiler_hash

FORWARD = Work("taylor2_qk16_v64", "forward", 1, 1, 128, "float32")
ENTRIES = [
    Entry("taylor", FORWARD, Target(ms=1e9)),
    Entry("training", Work("window64_d64", "training", 1, 1, 128, "float32"), Target(ms=1e-9)),
    Entry("step", Work("taylor2_qk16_v64", "step", 1, 1, 1, "float32"), Target(times=1e9, of=(FORWARD,))),
    Entry("calls", Work("window64_d64", "step", 1, 1, 1, "float32", clock="host")),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that do not take the time that a good median needs."""
    for module, name in ((measure, "TABLE"), (running, "TABLE"), (running, "SWEEP")):
        monkeypatch.setattr(module, name, Effort(0.0, 1.0))
    monkeypatch.setattr(measure, "CALLS", 3)


def test_lines_are_measured_saved_and_judged(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    saved: list[int] = []

    def save(report: Report) -> None:
        saved.append(len(report.lines))
        report.write(path)

    report = run(ENTRIES, "cpu", 5.0, lambda text: None, save)
    assert saved == [1, 2, 3, 4]
    assert [line.met for line in report.lines] == [True, False, True, None]
    assert not report.not_measured
    taylor, training, _, call = report.lines
    assert [time.by for time in taylor.times] == [time.by for time in training.times] == ["torch", "SDPA"]
    own, peer = taylor.times
    assert own.speedup == {"SDPA": pytest.approx(peer.ms / own.ms)}
    assert own.percent == pytest.approx(100 * taylor.limit_ms / own.ms)
    assert own.gb_s == pytest.approx(taylor.bytes / own.ms / 1e6)
    assert peer.percent is None and call.times[0].percent is None
    assert set(taylor.missing) == {"triton", "tilelang"}
    document = json.loads(path.read_text())
    assert document["machine"]["torch"] and document["ceilings"]["copy_gb_s"] > 0
    again = read(path)
    assert [line.work for line in again.lines] == [entry.work for entry in ENTRIES]
    assert again.lines[0].times[0].ms == pytest.approx(own.ms, rel=1e-4)


def test_what_fails_costs_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> Tensor:
        raise RuntimeError("\n  no such kernel\nmore")

    monkeypatch.setattr("based_ops.benchmarks.ops.peers.pytorch.scaled_dot_product_attention", explode)
    report = run(ENTRIES[:1], "cpu", 5.0, lambda text: None)
    assert report.lines[0].missing["SDPA"] == "RuntimeError: no such kernel"
    assert [time.by for time in report.lines[0].times] == ["torch"]


def test_a_line_without_inputs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise MemoryError("too large")

    monkeypatch.setattr(running, "make", refuse)
    report = run(ENTRIES[:2], "cpu", 5.0, lambda text: None)
    assert [line.times for line in report.lines] == [[], []]
    assert list(report.lines[0].missing.values()) == ["MemoryError: too large"]
    assert report.lines[0].met is False


def test_a_lost_device_ends_the_run_and_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = running.measure_line

    def lose(entry: Entry, *rest: Any) -> Line:
        if entry.group == "training":
            raise running.DeviceLost("illegal memory access")
        return measured(entry, *rest)

    monkeypatch.setattr(running, "measure_line", lose)
    said: list[str] = []
    report = run(ENTRIES, "cpu", 5.0, said.append)
    assert [line.group for line in report.lines] == ["taylor"]
    assert report.not_measured == [str(entry.work) for entry in ENTRIES[1:]]
    assert said[-1].endswith("the device is lost: illegal memory access")


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ours.expected
    monkeypatch.setattr(ours, "expected", lambda *x: tuple(1.01 * y for y in exact(*x)))
    report = run(ENTRIES[:1], "cpu", 5.0, lambda text: None)
    line = report.lines[0]
    assert line.missing["torch"].startswith("wrong: o has error")
    assert [time.by for time in line.times] == ["SDPA"]
    assert line.met is False
    assert any("no time" in text for text in summary(report))


def test_time_running_out_names_what_is_left() -> None:
    report = run(ENTRIES, "cpu", 1e-9, lambda text: None)
    assert report.lines == []
    assert report.not_measured == [str(entry.work) for entry in ENTRIES]


def test_a_report_is_shown_in_full(report: Report) -> None:
    shown = rows(report)
    assert [row[7] for row in shown if row[7]] == ["2.5000 met", "2.0000 MISSED"]
    assert shown[0][8] == "3.00x rival"
    text = "\n".join(summary(report))
    assert "targets met: 1 of 2; lines on which a peer is faster: 1" in text
    assert "missed: taylor2_qk16_v64 forward B1 H16 T2048 bfloat16: 2.00 times its target" in text
    assert "no number: absent: is not installed (3 lines)" in text
    assert "not measured: something else" in text


def test_a_run_goes_on_where_it_was_out_of_time() -> None:
    first = run(ENTRIES[:1], "cpu", 5.0, lambda text: None)
    said: list[str] = []
    both = run(ENTRIES[:2], "cpu", 5.0, said.append, earlier=first)
    assert [line.work for line in both.lines] == [entry.work for entry in ENTRIES[:2]]
    assert both.lines[0].times == first.lines[0].times, "what was measured is not measured again"
    assert not any(str(ENTRIES[0].work) in text for text in said)
    assert both.machine == first.machine and both.ceilings == first.ceilings
    assert both.seconds > first.seconds and both.not_measured == []


@pytest.mark.parametrize("key", ["device", "torch", "compiler"])
def test_no_run_goes_on_for_another(key: str) -> None:
    first = run([], "cpu", 5.0, lambda text: None)
    other = replace(first, machine=first.machine | {key: "another"})
    with pytest.raises(ValueError, match=f"of other code or of another machine: {key} another, here"):
        run(ENTRIES[:1], "cpu", 5.0, lambda text: None, earlier=other)
    tomorrow = replace(first, machine=first.machine | {"date": "2100-01-01"})
    assert run([], "cpu", 5.0, lambda text: None, earlier=tomorrow).machine["date"] == "2100-01-01"


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="not a result of `based-ops bench ops`"):
        read(path)
    done = CliRunner().invoke(main, ["bench", "plots", str(path)])
    assert done.exit_code == 2 and "not a result" in done.stderr


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    result = tmp_path / "cpu.json"
    words = ["bench", "ops", "--device", "cpu", "--only", "calls", "--json", str(result)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "torch (default)" in done.stdout and "targets met" in done.stdout
    document = json.loads(result.read_text())
    assert len(document["lines"]) == 1
    assert document["machine"]["compiler"] == compiler_hash()[:8]
    document["lines"][0]["times"][0]["ms"] = 123.0
    result.write_text(json.dumps(document))
    again = CliRunner().invoke(main, [*words, "--resume"])
    assert again.exit_code == 0 and "123.0000" in again.stdout, again.output
    document["machine"]["compiler"] = "another"
    result.write_text(json.dumps(document))
    other = CliRunner().invoke(main, [*words, "--resume"])
    assert other.exit_code == 2 and "compiler another" in other.stderr
    assert CliRunner().invoke(main, [*words[:-2], "--resume"]).exit_code == 2


def test_the_command_names_the_groups() -> None:
    done = CliRunner().invoke(main, ["bench", "ops", "--device", "cpu", "--only", "nosuch"])
    assert done.exit_code == 2
    assert "--only: got nosuch, must be among taylor" in done.stderr


def test_compile_times_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(compile_time, "generate_seconds", lambda: 11.0)
    report = compile_time.measure(lambda text: None)
    generated, imported = report.rows
    assert generated.met is False and generated.cells[2] == "10 MISSED"
    assert 0 < imported.seconds < 60 and imported.met is None
    assert "no CUDA device" in report.missing[0]
    compile_time.write(report, tmp_path / "compile.json")
    assert json.loads((tmp_path / "compile.json").read_text())["rows"][0]["met"] is False
