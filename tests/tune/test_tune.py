"""Tuning: workers that survive their candidates, a search that resumes, records that `generate` reads."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from click.testing import CliRunner, Result

from based_ops.cli import main
from based_ops.codegen import pipeline
from based_ops.codegen.names import PASSES, RECURRENCE, on_warpgroups, packed
from based_ops.codegen.schedule import record_file, records
from based_ops.codegen.schedule.record_file import Book, Entry
from based_ops.codegen.spec.model import LayerSpec
from based_ops.tune.journal import Journal
from based_ops.tune.measure import Shape
from based_ops.tune.pool import Pool, Worker
from based_ops.tune.search import ProgramRun, Search, tuned_programs
from based_ops.tune.trials import Job, Outcome
from tests.conftest import SPECS
from tests.kernels.runners import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="tunes the torch backend, which is not interpreted")

NAME = "window16_d64"
SPEC = pipeline.load(SPECS, [NAME])[NAME]
LINEAR = pipeline.load(SPECS, ["taylor1_qk16_v64"])["taylor1_qk16_v64"]
SHAPE = Shape(1, 1, 64)
TIMEOUT = 120.0
MACHINE = {"bandwidth": 1e10, "architecture": "cpu", "device": "here", "torch": "2.0"}


def job(which: str = "forward", spec: LayerSpec = SPEC) -> Job:
    return Job(spec, "torch", which, "float32", "cpu", (SHAPE,))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """What the search would send to a worker for the policy's own choice."""
    tools = Search(Pool(1), Worker(), Journal(tmp_path / "j"), MACHINE, tmp_path)
    run = ProgramRun(tools, job(), 0.0, lambda progress: None, {})
    (trial,) = run.first()
    return run.task(trial, "check")


def changed(task: dict[str, Any], do: str, suffix: str) -> dict[str, Any]:
    """The task with a line at the end of its module, under another name."""
    name = f"{task['name']}_{abs(hash(suffix))}"
    files = {path.replace(task["name"], name): text for path, text in task["files"].items()}
    files["__init__.py"] = files["__init__.py"].replace(task["name"], name)
    files[f"{name}/torch.py"] += suffix
    return task | {"do": do, "name": name, "directory": f"{task['directory']}_{name}", "files": files}


AROUND = """
_exact = forward


def forward(*arguments):
    o, lse = _exact(*arguments)
    {}
    return o, lse
"""


# Workers


def test_a_right_candidate_passes_and_is_timed(worker: Worker, task: dict[str, Any]) -> None:
    assert worker.ask(task, TIMEOUT) == {}
    found = worker.ask(task | {"do": "clock"}, TIMEOUT)
    tokens, width = 64, 64
    # q, k, v and o in float32, and one number a row
    assert found["bytes"] == 4 * tokens * (4 * width + 1) and 0 < found["ms"] < 1e3


def test_a_wrong_candidate_is_found_before_it_is_timed(worker: Worker, task: dict[str, Any]) -> None:
    answer = worker.ask(changed(task, "check", AROUND.format("o[:, -1] *= 1.001")), TIMEOUT)
    assert "wrong: forward o at B" in answer["why"] and "allowed" in answer["why"]


def test_runs_must_agree_bit_for_bit(worker: Worker, task: dict[str, Any]) -> None:
    suffix = AROUND.format("o += 1e-7 * torch.rand_like(o)")
    assert worker.ask(changed(task, "clock", suffix), TIMEOUT)["why"].startswith(
        "Unsteady: 3 runs of forward"
    )


def test_a_crash_or_a_hang_costs_one_candidate(worker: Worker, task: dict[str, Any]) -> None:
    crash = AROUND.format("import os; os.kill(os.getpid(), 11)")
    assert "died with code -11" in worker.ask(changed(task, "check", crash), TIMEOUT)["why"]
    assert worker.ask(task, TIMEOUT) == {}
    hang = AROUND.format("import time; time.sleep(1000)")
    assert worker.ask(changed(task, "check", hang), 8.0) == {"why": "took longer than 8 s"}
    broken = worker.ask(changed(task, "check", "\nraise ValueError('no such tile')"), TIMEOUT)
    assert broken == {"why": "ValueError: no such tile"}


def test_a_worker_that_cannot_start_says_why(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("based_ops.tune.pool.sys.executable", "/bin/false")
    pool = Pool(1)
    ((number, answer),) = pool.answers([task], TIMEOUT, monotonic() + 60)
    pool.close()
    assert number == 0 and "died with code 1" in answer["why"]


def test_no_task_begins_after_the_deadline(task: dict[str, Any]) -> None:
    pool = Pool(1)
    assert list(pool.answers([task, task], TIMEOUT, monotonic() - 1)) == []
    pool.close()


# Search


class Stub(Pool):
    """Finds every candidate right at once."""

    def answers(self, tasks: Any, timeout: float, deadline: float) -> Iterator[tuple[int, Any]]:
        yield from ((number, {}) for number, _ in enumerate(tasks))


class Clock(Worker):
    """Says that a module is the faster the smaller its CHUNK is, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def ask(self, task: Any, timeout: float) -> Any:
        self.asked += 1
        text = task["files"][f"{task['name']}/torch.py"]
        chunk = next(line for line in text.splitlines() if "torch.float32: dict(" in line)
        return {"ms": float(chunk.split("CHUNK=")[1].split(",")[0]), "bytes": 1000}


def test_the_search_finds_the_best_and_goes_on_where_it_was(tmp_path: Path) -> None:
    clock = Clock()
    made = Search(Stub(2), clock, Journal(tmp_path / "journal.jsonl"), MACHINE, tmp_path)
    outcomes = list(made.run(job(), monotonic() + 60, lambda progress: None))
    last = outcomes[-1]
    assert last.schedules["outputs"].settings["float32"].constants["CHUNK"] == 16
    assert last.schedules["outputs"].settings["bfloat16"].constants["CHUNK"] > 16, "one dtype is tuned"
    assert (last.policy_ms, last.ms) == (64.0, 16.0)
    assert last.progress.tried == clock.asked - 2 > 10 and last.progress.failed == 0

    with (tmp_path / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "half a li')
    clock.asked = 0
    again = Search(Stub(2), clock, Journal(tmp_path / "journal.jsonl"), MACHINE, tmp_path)
    resumed = list(again.run(job(), monotonic() + 60, lambda progress: None))[-1]
    assert clock.asked == 2, "only the confirmation is measured again"
    assert resumed.schedules == last.schedules

    newer = Search(Stub(2), clock, Journal(tmp_path / "journal.jsonl"), MACHINE | {"torch": "3.0"}, tmp_path)
    next(iter(newer.run(job(), monotonic() + 60, lambda progress: None)))
    assert clock.asked == 3, "another version is another measurement"


def test_the_gains_of_several_programs_are_taken_together(tmp_path: Path) -> None:
    class Sum(Clock):
        """A pass takes as long as its CHUNKs are large, all programs together."""

        def ask(self, task: Any, timeout: float) -> Any:
            text = task["files"][f"{task['name']}/torch.py"]
            rows = [line for line in text.splitlines() if "torch.float32: dict(" in line and "CHUNK=" in line]
            return {"ms": float(sum(int(row.split("CHUNK=")[1].split(",")[0]) for row in rows)), "bytes": 1}

    made = Search(Stub(99), Sum(), Journal(tmp_path / "j"), MACHINE, tmp_path)
    outcomes = list(made.run(job("backward", LINEAR), monotonic() + 60, lambda progress: None))
    chosen = outcomes[-1].schedules
    assert (
        list(chosen) == list(tuned_programs(pipeline.lower(LINEAR), "backward", "torch", "float32"))
        and len(chosen) > 2
    )
    chunks = {
        name: schedule.settings["float32"].constants["CHUNK"]
        for name, schedule in chosen.items()
        if "CHUNK" in schedule.settings["float32"].constants
    }
    assert set(chunks.values()) == {16}
    single, together = (outcome.schedules for outcome in outcomes[-3:-1])
    assert sum(single[name] != together[name] for name in chosen) > 1, "not one round a program"


def test_policies_are_checked_together_and_once(tmp_path: Path) -> None:
    class Counting(Stub):
        asked: list[list[str]] = []

        def answers(self, tasks: Any, timeout: float, deadline: float) -> Iterator[tuple[int, Any]]:
            self.asked.append([task["name"] + task["pass"] for task in tasks])
            yield from super().answers(tasks, timeout, deadline)

    workers = Counting(2)
    made = Search(workers, Clock(), Journal(tmp_path / "j"), MACHINE, tmp_path)
    jobs = [job("forward"), job("step")]
    made.prepare(jobs, monotonic() + 60)
    (together,) = workers.asked
    assert len(together) == 2
    for each in jobs:
        outcome = next(iter(made.run(each, monotonic() + 60, lambda progress: None)))
        assert outcome.ms == 64.0
    assert sum(workers.asked, []) == together
    made.prepare(jobs, monotonic() + 60)
    assert sum(workers.asked, []) == together, "the journal has them"


def test_a_policy_that_fails_is_told_and_not_recorded(tmp_path: Path) -> None:
    class Broken(Clock):
        def ask(self, task: Any, timeout: float) -> Any:
            return {"why": "Unsteady: today"}

    made = Search(Stub(2), Broken(), Journal(tmp_path / "j"), MACHINE, tmp_path)
    (outcome,) = made.run(job(), monotonic() + 60, lambda progress: None)
    assert outcome.why == "Unsteady: today"


def test_a_program_is_tuned_with_the_first_pass_that_launches_it() -> None:
    lowered = pipeline.lower(LINEAR)
    of_torch = partial(tuned_programs, lowered, backend="torch", dtype="float32")
    forward, backward = (of_torch(which=which) for which in ("forward", "backward"))
    launched = next(part for part in lowered.passes if part.name == "backward").launches
    assert "states" in forward and "states" in launched and "states" not in backward
    together = [name for which in PASSES for name in of_torch(which=which)]
    of_packed = {packed("prefix"), packed("suffix")}
    assert sorted(together) == sorted({program.name for program in lowered.programs} - of_packed)


@pytest.mark.parametrize(
    ("dtype", "recurrences"), [("bfloat16", [on_warpgroups(RECURRENCE)]), ("float32", [])]
)
def test_only_what_runs_is_tuned(dtype: str, recurrences: list[str]) -> None:
    spec = pipeline.load(SPECS, ["taylor2_qk16_v64"])["taylor2_qk16_v64"]
    tuned = tuned_programs(pipeline.lower(spec), "forward", "triton", dtype)
    assert [name for name in tuned if name.startswith("recurrence")] == recurrences


# The command


def tune(tmp_path: Path, *words: str, code: int = 0) -> Result:
    places = ["--records", str(tmp_path), "--journal", str(tmp_path / "journal.jsonl")]
    small = ["--device", "cpu", "--dtype", "float32", "--shape", "1,1,64", "--jobs", "1"]
    result = CliRunner().invoke(main, ["tune", *words, *small, *places])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def test_from_the_command_to_what_generate_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand-written record of another layer stays; a stale one of this pass goes."""
    path = tmp_path / "cpu.yaml"
    facts = records.layer_facts(SPEC) | {"backend": "torch", "pass": "step", "dtype": "float32"}
    stale = Entry(facts | {"program": "gone"})
    other = Entry({"mixer": "linear_attention", "qk": 13, "program": "states"}, {"CHUNK": 16})
    path.write_text(record_file.text(Book({}, (stale, other))), encoding="utf-8")
    done = tune(tmp_path, NAME, "--pass", "step", "--budget-minutes", "0.15")
    assert NAME in done.stdout and "policy ms" in done.stdout and str(path) in done.stdout
    lines = (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("ms" in json.loads(line)["result"] for line in lines)

    entries = record_file.load(path).entries
    assert [entry.facts.get("program") for entry in entries] == ["states", "token"]
    token = entries[1]
    assert token.facts == facts | {"program": "token"}
    assert token.measured["shape"] == "B1 H1 T1" and token.measured["layer"] == NAME
    assert 0 < token.measured["ms"] <= token.measured["policy_ms"] and token.measured["of_limit"] > 0

    monkeypatch.setattr(records, "DIRECTORY", tmp_path)
    monkeypatch.setattr(records, "book", records.book.__wrapped__)
    layer = pipeline.schedule(pipeline.lower(SPEC), "torch")
    chosen = layer.find("token").schedule.settings["float32"]
    assert chosen.origin.startswith("record cpu: ") and "ms at B1 H1 T1" in chosen.origin
    assert dict(token.sizes).items() <= chosen.constants.items()
    shown = CliRunner().invoke(main, ["show", NAME, "--stage", "schedule"]).stdout
    assert chosen.origin in shown and "policy" in shown


def interrupt() -> None:
    raise KeyboardInterrupt  # SIGINT itself may be ignored here, as it is in a shell's background


@pytest.mark.parametrize("end", [interrupt, partial(signal.raise_signal, signal.SIGTERM)], ids=["C", "TERM"])
def test_an_interrupt_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[], None]
) -> None:
    def interrupted(self: Search, wanted: Job, *rest: Any) -> Iterator[Outcome]:
        made = Search(Stub(1), Clock(), Journal(tmp_path / "j"), MACHINE, tmp_path)
        yield next(iter(original(made, wanted, *rest)))
        end()

    original = Search.run
    monkeypatch.setattr(Search, "run", interrupted)
    done = tune(tmp_path, NAME, "--pass", "forward", code=130)
    (entry,) = record_file.load(tmp_path / "cpu.yaml").entries
    assert entry.facts["program"] == "outputs" and entry.measured["ms"] == 64.0
    assert "next: based-ops generate" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "triton", NAME], "on a CPU only torch is"),
        (["--shape", "1,2"], "three positive integers"),
        (["--shape", "1,0,4"], "three positive integers"),
        (["window16_d46"], NAME),
        (["--pass", "foreward"], "forward"),
        (["--budget-minutes", "0"], "budget-minutes"),
    ],
    ids=str,
)
def test_wrong_arguments_end_the_command(words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["tune", "--device", "cpu", *words])
    assert result.exit_code == 2 and message in result.stderr
