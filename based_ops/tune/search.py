"""What to try: coordinate descent over the programs of one pass, from the policy's choice outwards.

A *trial* is the whole generated module of one backend with other schedules for some programs.  Trials are
checked in parallel and timed one after the other while nothing else runs.  A round changes one choice of one
program at a time and then takes the best change of every program together; rounds go on until no change
helps, then with two choices at a time, for as long as the budget lasts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from time import monotonic
from typing import Any

from based_ops.codegen import pipeline
from based_ops.codegen.emit import registry
from based_ops.codegen.emit.layer import ScheduledLayer, ScheduledProgram
from based_ops.codegen.names import PASSES, on_warpgroups, portable
from based_ops.codegen.schedule import space
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.schedule.policy import policy
from based_ops.codegen.schedule.record_file import RecordError
from based_ops.codegen.schedule.records import launches
from based_ops.codegen.spec.model import LayerSpec

from .journal import Journal, Result
from .pool import Answer, Pool, Task, Worker

GAIN = 0.99
"""A candidate replaces the best so far if it needs less than this fraction of its time."""
CHECK_SECONDS, CLOCK_SECONDS = 300.0, 120.0
"""After which a candidate counts as hung."""
MOST_CHANGES = 2
NO_BUILD = "00000000"
"""Stands for the build in a trial's text, so that equal texts are equal trials."""

Schedules = dict[str, Schedule]


@dataclass(frozen=True)
class Job:
    """One pass of one layer in one dtype on one backend, at one shape (batch, heads, tokens)."""

    spec: LayerSpec
    backend: str
    which: str
    dtype: str
    device: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.spec.name} {self.which} {self.dtype} {self.backend}"


@dataclass
class Progress:
    """Where a search stands; times are milliseconds of the whole pass."""

    job: Job
    tried: int = 0
    failed: int = 0
    policy_ms: float | None = None
    best_ms: float | None = None


@dataclass
class Outcome:
    """The best schedules found for the programs of a job, or `why` the policy's own choice fails.

    Times are milliseconds of the whole pass; `bytes` is what it has to read and write at least.
    """

    job: Job
    progress: Progress
    schedules: Schedules = field(default_factory=dict)
    ms: float = 0.0
    policy_ms: float = 0.0
    bytes: int = 0
    why: str | None = None


class Search:
    """Runs jobs on workers; `machine` is what measurements depend on besides the job."""

    def __init__(
        self, workers: Pool, timer: Worker, journal: Journal, machine: Mapping[str, Any], directory: Path
    ) -> None:
        self.workers, self.timer, self.journal = workers, timer, journal
        self.machine, self.directory = machine, directory
        self.checked: dict[str, Answer] = {}

    def prepare(self, jobs: Iterable[Job], deadline: float) -> None:
        """Check the policy's choices of all jobs at once: one by one, each would wait for its own kernels."""
        trials: dict[str, tuple[_Run, _Trial]] = {}
        for job in jobs:
            run = _Run(self, job, deadline, lambda progress: None, {})
            trial = run.policy_trial()
            if self.journal.get(trial.key) is None:
                trials[trial.key] = run, trial
        tasks = [trial.task("check", run) for run, trial in trials.values()]
        keys = list(trials)
        for number, answer in self.workers.answers(tasks, CHECK_SECONDS, deadline):
            self.checked[keys[number]] = answer

    def run(
        self,
        job: Job,
        deadline: float,
        report: Callable[[Progress], None],
        found: Mapping[str, Schedule] = {},
    ) -> Iterator[Outcome]:
        """Yield the policy's outcome and then every better one; the last is confirmed by measuring again.

        `found` are schedules of other programs of this layer, from jobs before this one.
        """
        return _Run(self, job, deadline, report, found).outcomes()


class _Run:
    def __init__(
        self,
        search: Search,
        job: Job,
        deadline: float,
        report: Callable[[Progress], None],
        found: Mapping[str, Schedule],
    ) -> None:
        self.search, self.job, self.deadline, self.report = search, job, deadline, report
        self.lowered = pipeline.lower(job.spec)
        self.kernels = pipeline.kernels(self.lowered, job.backend)
        self.tuned = tuned_programs(self.lowered, job.which, job.backend, job.dtype)
        self.keep = space.fixed(self.kernels)
        self.base = {p.name: found.get(p.name) or _present(job, p) for p in self.kernels}
        self.base |= {p.name: policy(job.spec, p, job.backend) for p in self.kernels if p.name in self.tuned}
        self.passes = pipeline.passes_of(self.lowered, job.backend)
        plans = pipeline.plans_of(self.lowered, job.backend)
        self.plans = tuple(choose(job.spec, plan, job.backend) for plan in plans)
        self.progress = Progress(job)
        self.seen: set[str] = set()

    def outcomes(self) -> Iterator[Outcome]:
        first = self.policy_trial()
        # The policy's choice is measured whatever the budget: everything is compared with it.
        result = dict(self._measured([first], float("inf"))).get(first.key, {"why": "not measured"})
        if "why" in result:
            yield Outcome(self.job, self.progress, why=result["why"])
            return
        self.progress.policy_ms = self.progress.best_ms = result["ms"]
        yield self._outcome(self.base, result)
        best = self.base
        for best, faster in self._improvements(self.base, result):
            yield self._outcome(best, faster)
        if best is not self.base:
            yield self._confirmed(best)

    def policy_trial(self) -> _Trial:
        """What everything is compared with."""
        return self._trial(self.base)

    def _improvements(self, best: Schedules, result: Result) -> Iterator[tuple[Schedules, Result]]:
        """Ever better schedules until no change helps or the budget is spent."""
        for changes in range(1, MOST_CHANGES + 1):
            improved = True
            while improved and monotonic() < self.deadline:
                improved = False
                gains: dict[str, tuple[float, Schedule]] = {}
                center, least = best, GAIN * result["ms"]
                for name, trial, found in self._neighbours(center, changes):
                    if found["ms"] < gains.get(name, (least,))[0]:
                        gains[name] = found["ms"], trial.schedules[name]
                        if found["ms"] < GAIN * result["ms"]:
                            best, result, improved = trial.schedules, found, True
                            yield best, result
                if len(gains) > 1:
                    # The programs of a pass run one after the other, so their gains add up.
                    together = self._trial(center | {name: schedule for name, (_, schedule) in gains.items()})
                    for _, found in self._measured([together], float("inf")):
                        if found.get("ms", float("inf")) < result["ms"]:
                            best, result = together.schedules, found
                            yield best, result

    def _neighbours(self, center: Schedules, changes: int) -> Iterator[tuple[str, _Trial, Result]]:
        """Trials in which one program has another schedule, with its name and the result.

        The programs take turns, each with its nearest candidates first.
        """
        turns = [self._near(center, name, changes) for name in self.tuned]
        queue = (entry for turn in zip_longest(*turns) for entry in turn if entry is not None)
        while batch := list(islice(queue, 2 * self.search.workers.jobs)):
            names = {trial.key: name for name, trial in batch}
            trials = {trial.key: trial for _, trial in batch if trial.key not in self.seen}
            for key, result in self._measured(trials.values(), self.deadline):
                if "ms" in result:
                    yield names[key], trials[key], result
            if monotonic() > self.deadline:
                return

    def _near(self, center: Schedules, name: str, changes: int) -> Iterator[tuple[str, _Trial]]:
        program = next(p for p in self.kernels if p.name == name)
        whole = center[name]
        near = space.candidates(program, whole.only(self.job.dtype), self.keep, changes)
        for schedule in islice(near, 1, None):
            yield (
                name,
                self._trial(center | {name: replace(schedule, settings=whole.settings | schedule.settings)}),
            )

    def _measured(self, trials: Iterable[_Trial], deadline: float) -> Iterator[tuple[str, Result]]:
        """Check trials in parallel, then time those that are right, one by one; each result with its key."""
        unknown, right = [], []
        for trial in trials:
            known = self.search.journal.get(trial.key)
            if known is None:
                unknown.append(trial)
            else:
                yield self._finished(trial, known)
        for trial, answer in self._checked(unknown, deadline):
            if "why" in answer:
                yield self._finished(trial, self._keep(trial, answer))
            else:
                right.append(trial)
        for trial in right:
            if monotonic() < deadline:
                answer = self.search.timer.ask(trial.task("clock", self), CLOCK_SECONDS)
                yield self._finished(trial, self._keep(trial, answer))

    def _checked(self, trials: list[_Trial], deadline: float) -> Iterator[tuple[_Trial, Answer]]:
        """Each trial with what a worker says of it, unless the deadline came first."""
        before = self.search.checked
        yield from ((trial, before[trial.key]) for trial in trials if trial.key in before)
        rest = [trial for trial in trials if trial.key not in before]
        tasks = [trial.task("check", self) for trial in rest]
        for number, answer in self.search.workers.answers(tasks, CHECK_SECONDS, deadline):
            yield rest[number], answer

    def _finished(self, trial: _Trial, result: Result) -> tuple[str, Result]:
        self.seen.add(trial.key)
        self.progress.tried += 1
        self.progress.failed += "why" in result
        if "ms" in result and self.progress.best_ms is not None:
            self.progress.best_ms = min(self.progress.best_ms, result["ms"])
        self.report(self.progress)
        return trial.key, result

    def _keep(self, trial: _Trial, result: Result) -> Result:
        settings = {name: str(trial.schedules[name].settings[self.job.dtype]) for name in self.tuned}
        self.search.journal.add(trial.key, result, {"job": str(self.job), "settings": settings})
        return result

    def _confirmed(self, best: Schedules) -> Outcome:
        """The best and the policy's choice, measured again: of many times one is low by chance."""
        times = {}
        for which, schedules in (("policy", self.base), ("best", best)):
            answer = self.search.timer.ask(self._trial(schedules).task("clock", self), CLOCK_SECONDS)
            if "why" in answer:
                return Outcome(self.job, self.progress, why=answer["why"])
            times[which] = answer
        self.progress.policy_ms = times["policy"]["ms"]
        better = times["best"]["ms"] < times["policy"]["ms"]
        return self._outcome(best, times["best"]) if better else self._outcome(self.base, times["policy"])

    def _outcome(self, schedules: Schedules, result: Result) -> Outcome:
        chosen = {name: schedules[name] for name in self.tuned}
        assert self.progress.policy_ms is not None
        return Outcome(
            self.job, self.progress, chosen, result["ms"], self.progress.policy_ms, result["bytes"]
        )

    def _trial(self, schedules: Schedules) -> _Trial:
        job = self.job
        programs = tuple(ScheduledProgram.of(p, schedules[p.name]) for p in self.kernels)
        layer = ScheduledLayer(job.spec, job.backend, NO_BUILD, programs, self.passes, self.plans)
        text = pipeline.emit(layer)
        machine = {key: value for key, value in self.search.machine.items() if key != "bandwidth"}
        facts = [text, job.which, job.dtype, job.device, job.shape, machine]
        return _Trial(schedules, text, hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24])


@dataclass(frozen=True)
class _Trial:
    """Schedules of all programs, the module that they give, and what identifies its measurement."""

    schedules: Schedules
    text: str
    key: str

    def task(self, do: str, run: _Run) -> Task:
        """What a worker needs to check or time this trial."""
        job, build = run.job, hashlib.sha256(self.text.encode()).hexdigest()[:8]
        name = f"{job.spec.name}_{build}"
        files = {
            f"{name}/{job.backend}.py": self.text.replace(NO_BUILD, build),
            f"{name}/__init__.py": registry.variant(job.spec, build),
            "__init__.py": registry.package([name]),
        }
        concerned = {portable(part.name) for part in run.passes if {*launches(part)} & {*run.tuned}}
        return {
            "do": do,
            "name": name,
            "directory": str(run.search.directory / name),
            "files": files,
            "backend": job.backend,
            "device": job.device,
            "dtype": job.dtype,
            "pass": job.which,
            "passes": sorted(concerned, key=PASSES.index),
            "shape": job.shape,
        }


def tuned_programs(lowered: pipeline.Lowered, which: str, backend: str, dtype: str) -> tuple[str, ...]:
    """The programs that are tuned with a pass: those that it launches and no pass before it, in order.

    Launch plans are not among them: one shape cannot judge by what a pass should tell shapes apart.  Nor are
    programs that do not run in this dtype, or in whose place another runs.
    """
    kernels = pipeline.kernels(lowered, backend)
    present = {p.name for p in kernels if dtype in policy(lowered.spec, p, backend).settings}
    parts = {part.name: part for part in pipeline.passes_of(lowered, backend)}
    taken: set[str] = set()
    names: tuple[str, ...] = ()
    for name in PASSES:
        launched, faster = launches(parts[name]), parts.get(on_warpgroups(name))
        if faster and present.issuperset(launches(faster)):
            launched = launches(faster)
        names = tuple(program for program in launched if program not in taken)
        if name == which:
            break
        taken |= {*names}
    present -= {program for program in present if on_warpgroups(program) in present}
    return tuple(name for name in names if name in present)


def _present(job: Job, program: Any) -> Schedule:
    """What `generate` would choose, or the policy's choice where a stale record stands in the way."""
    try:
        return choose(job.spec, program, job.backend)
    except RecordError:
        return policy(job.spec, program, job.backend)
