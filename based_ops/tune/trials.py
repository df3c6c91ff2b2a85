"""What every search is made of: trials, checked and timed, whose results a journal keeps.

A *trial* is the whole generated module of one backend with other schedules for some programs, at one shape.
Trials are checked in parallel and timed one after the other while nothing else runs.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from based_ops.codegen import artifacts, pipeline
from based_ops.codegen.emit import registry
from based_ops.codegen.emit.layer import ScheduledLayer, scheduled
from based_ops.codegen.ir.kernels import Sized
from based_ops.codegen.names import PASSES
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.schedule.policy import policy
from based_ops.codegen.schedule.record_file import RecordError
from based_ops.codegen.spec.model import LayerSpec

from .journal import Journal, Result
from .measure import Shape
from .pool import Answer, Pool, Task, Worker

GAIN = 0.99
"""A candidate replaces the best so far if it needs less than this fraction of its time."""
CHECK_SECONDS, CLOCK_SECONDS = 300.0, 120.0
"""After which a candidate counts as hung."""

Schedules = dict[str, Schedule]
"""By the name of a program or of a launch plan."""


@dataclass(frozen=True)
class Job:
    """One pass of one layer in one dtype on one backend: its programs, at one shape, or its launch plan."""

    spec: LayerSpec
    backend: str
    which: str
    dtype: str
    device: str
    shapes: tuple[Shape, ...]
    plan: bool = False
    """Whether the launch plan is tuned, at several shapes, and not the programs."""

    def __str__(self) -> str:
        return f"{self.spec.name} {self.what} {self.dtype} {self.backend}"

    @property
    def what(self) -> str:
        return f"{self.which} plan" if self.plan else self.which


@dataclass
class Progress:
    """Where a search stands; times are milliseconds of the whole pass, over several shapes their mean."""

    job: Job
    tried: int = 0
    failed: int = 0
    policy_ms: float | None = None
    best_ms: float | None = None


@dataclass
class Outcome:
    """The best schedules found for a job, or `why` the policy's own choice fails.

    Times are milliseconds of the whole pass; `bytes` is what it has to read and write at least.  Over several
    shapes both are geometric means.
    """

    job: Job
    progress: Progress
    schedules: Schedules = field(default_factory=dict)
    ms: float = 0.0
    policy_ms: float = 0.0
    bytes: float = 0
    why: str | None = None


@dataclass
class Tools:
    """What trials are measured with; `machine` is what measurements depend on besides the job."""

    workers: Pool
    timer: Worker
    journal: Journal
    machine: Mapping[str, Any]
    directory: Path
    checked: dict[str, Answer] = field(default_factory=dict)
    """What workers said of candidates."""

    def check(self, tasks: Iterable[Task], deadline: float) -> None:
        """Have candidates checked in parallel, each once, whatever the number of its shapes."""
        fresh = {_checked_as(task): task for task in tasks if _checked_as(task) not in self.checked}
        names = list(fresh)
        for number, answer in self.workers.answers(fresh.values(), CHECK_SECONDS, deadline):
            self.checked[names[number]] = answer


@dataclass(frozen=True)
class Trial:
    """Schedules of all programs and plans, a module with these programs, and what its time is known by."""

    schedules: Schedules
    shape: Shape
    text: str
    key: str


@dataclass(eq=False)
class Run(ABC):
    """A job at work: what it starts from, and the measurement of its trials."""

    tools: Tools
    job: Job
    deadline: float
    report: Callable[[Progress], None]
    found: Mapping[str, Schedule]
    """Schedules of this layer from jobs before this one."""
    seen: set[str] = field(default_factory=set, init=False)
    """The keys of trials that have a result."""

    def __post_init__(self) -> None:
        job, found = self.job, self.found
        self.progress = Progress(job)
        self.lowered = pipeline.lower(job.spec)
        self.kernels = pipeline.kernels(self.lowered, job.backend)
        self.plans = pipeline.plans_of(self.lowered, job.backend)
        self.passes = pipeline.passes_of(self.lowered, job.backend)
        subjects = (*self.kernels, *self.plans)
        self.base: Schedules = {s.name: found.get(s.name) or _present(job, s) for s in subjects}
        self.tuned, concerned = self.subject()
        self.concerned = sorted(concerned, key=PASSES.index)
        self.base |= {s.name: policy(job.spec, s, job.backend) for s in subjects if s.name in self.tuned}

    @abstractmethod
    def subject(self) -> tuple[tuple[str, ...], set[str]]:
        """The names of what is tuned, and the passes that have to be right after it."""

    @abstractmethod
    def first(self) -> list[Trial]:
        """Trials of the policy's choice, with which everything is compared."""

    @abstractmethod
    def outcomes(self) -> Iterator[Outcome]:
        """The policy's outcome and then every better one; the last is confirmed by measuring again."""

    def text(self, schedules: Schedules) -> str:
        """The module with these schedules."""
        kernels = tuple(scheduled(kernel, schedules[kernel.name]) for kernel in self.kernels)
        plans = tuple(schedules[plan.name] for plan in self.plans)
        job = self.job
        return pipeline.emit(ScheduledLayer(job.spec, job.backend, kernels, self.passes, plans))

    def trial(self, schedules: Schedules, shape: Shape, text: str, *further: object) -> Trial:
        """A trial, whose time depends on the module's text and on what else is given."""
        machine = {key: value for key, value in self.tools.machine.items() if key != "bandwidth"}
        job = self.job
        facts = [text, job.which, job.dtype, job.device, shape, machine, *further]
        return Trial(schedules, shape, text, hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24])

    def measured(self, trials: Iterable[Trial], deadline: float) -> Iterator[tuple[Trial, Result]]:
        """Check trials in parallel, then time those that are right, one by one; each with its result."""
        unknown, right = [], []
        for trial in trials:
            known = self.tools.journal.get(trial.key)
            if known is None:
                unknown.append(trial)
            else:
                yield self._finished(trial, known)
        for trial, answer in self.checked(unknown, deadline):
            if "why" in answer:
                yield self._finished(trial, self._keep(trial, answer))
            else:
                right.append(trial)
        for trial in right:
            if monotonic() < deadline:
                yield self._finished(trial, self._keep(trial, self.clocked(trial)))

    def checked(self, trials: Iterable[Trial], deadline: float) -> Iterator[tuple[Trial, Answer]]:
        """Each trial with what a worker says of its module, unless the deadline came first."""
        tasks = [(trial, self.task(trial, "check")) for trial in trials]
        self.tools.check([task for _, task in tasks], deadline)
        for trial, task in tasks:
            answer = self.tools.checked.get(_checked_as(task))
            if answer is not None:
                yield trial, answer

    def clocked(self, trial: Trial) -> Answer:
        """The time of a trial, now."""
        return self.tools.timer.ask(self.task(trial, "clock"), CLOCK_SECONDS)

    def task(self, trial: Trial, do: str) -> Task:
        """What a worker needs to check or time a trial."""
        job, build = self.job, artifacts.hashed(trial.text)
        plans = {plan.name: trial.schedules[plan.name].settings.get(job.dtype) for plan in self.plans}
        name = f"{job.spec.name}_{build}"
        files = {
            f"{name}/{job.backend}.py": trial.text,
            f"{name}/__init__.py": registry.variant(job.spec, build),
            "__init__.py": registry.package([name]),
        }
        return {
            "do": do,
            "name": name,
            "directory": str(self.tools.directory / name),
            "files": files,
            "backend": job.backend,
            "device": job.device,
            "dtype": job.dtype,
            "pass": job.which,
            "passes": self.concerned,
            "plans": {name: setting.constants for name, setting in plans.items() if setting},
            "shape": trial.shape,
        }

    def outcome(self, schedules: Schedules, ms: float, size: float) -> Outcome:
        """What was found by now, which is told."""
        assert self.progress.policy_ms is not None
        self.progress.best_ms = ms
        self.report(self.progress)
        chosen = {name: schedules[name] for name in self.tuned}
        return Outcome(self.job, self.progress, chosen, ms, self.progress.policy_ms, size)

    def _finished(self, trial: Trial, result: Result) -> tuple[Trial, Result]:
        self.seen.add(trial.key)
        self.progress.tried += 1
        self.progress.failed += "why" in result
        self.report(self.progress)
        return trial, result

    def _keep(self, trial: Trial, result: Result) -> Result:
        settings = {name: str(trial.schedules[name].settings[self.job.dtype]) for name in self.tuned}
        self.tools.journal.add(trial.key, result, {"job": str(self.job), "settings": settings})
        return result


def _checked_as(task: Task) -> str:
    """What a check depends on; the module's name has its hash."""
    return json.dumps([task[what] for what in ("name", "dtype", "passes", "plans")])


def _present(job: Job, subject: Sized) -> Schedule:
    """What `generate` would choose, or the policy's choice where a stale record stands in the way."""
    try:
        return choose(job.spec, subject, job.backend)
    except RecordError:
        return policy(job.spec, subject, job.backend)
