"""What to try: coordinate descent over the programs of one pass, from the policy's choice outwards.

A round changes one choice of one program at a time and then takes the best change of every program together;
rounds go on until no change helps, then with two choices at a time, for as long as the budget lasts.
`plans.py` is the search for the launch plan of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice, zip_longest
from time import monotonic

from based_ops.codegen import pipeline
from based_ops.codegen.ir.kernels import ForeignKernel
from based_ops.codegen.names import PASSES, packed
from based_ops.codegen.schedule import space
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.schedule.policy import policy

from .journal import Result
from .plans import PlanRun
from .trials import GAIN, Job, Outcome, Progress, Run, Schedules, Tools, Trial

MOST_CHANGES = 2


class Search(Tools):
    """Runs jobs, one after the other."""

    def prepare(self, jobs: Collection[Job], deadline: float) -> None:
        """Check the policy's choices of all jobs at once: one by one, each would wait for its own kernels.

        A launch plan is left out where programs are tuned first: it starts from what is found for them.
        """
        programs = {(job.spec, job.dtype) for job in jobs if not job.plan}
        first = [job for job in jobs if not job.plan or (job.spec, job.dtype) not in programs]
        runs = [self._run(job, deadline, lambda progress: None, {}) for job in first]
        trials = [(run, trial) for run in runs for trial in run.first()]
        unknown = [(run, trial) for run, trial in trials if self.journal.get(trial.key) is None]
        self.check([run.task(trial, "check") for run, trial in unknown], deadline)

    def run(
        self,
        job: Job,
        deadline: float,
        report: Callable[[Progress], None],
        found: Mapping[str, Schedule] = {},
    ) -> Iterator[Outcome]:
        """Yield the policy's outcome and then every better one; the last is confirmed by measuring again.

        `found` are schedules of this layer from jobs before this one.
        """
        return self._run(job, deadline, report, found).outcomes()

    def _run(
        self, job: Job, deadline: float, report: Callable[[Progress], None], found: Mapping[str, Schedule]
    ) -> Run:
        kind = PlanRun if job.plan else ProgramRun
        return kind(self, job, deadline, report, found)


class ProgramRun(Run):
    """The search for the schedules of the programs of a pass, at one shape."""

    def subject(self) -> tuple[tuple[str, ...], set[str]]:
        tuned = tuned_programs(self.lowered, self.job.which, self.job.backend, self.job.dtype)
        return tuned, {part.part for part in self.passes if {*part.launches} & {*tuned}}

    def outcomes(self) -> Iterator[Outcome]:
        # The policy's choice is measured whatever the budget: everything is compared with it.
        ((_, result),) = self.measured(self.first(), float("inf"))
        if "why" in result:
            yield Outcome(self.job, self.progress, why=result["why"])
            return
        self.progress.policy_ms = result["ms"]
        yield self._outcome(self.base, result)
        best = self.base
        for best, faster in self._improvements(self.base, result):
            yield self._outcome(best, faster)
        if best is not self.base:
            yield self._confirmed(best)

    def first(self) -> list[Trial]:
        return [self._trial(self.base)]

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
                    for _, found in self.measured([together], float("inf")):
                        if found.get("ms", float("inf")) < result["ms"]:
                            best, result = together.schedules, found
                            yield best, result

    def _neighbours(self, center: Schedules, changes: int) -> Iterator[tuple[str, Trial, Result]]:
        """Trials in which one program has another schedule, with its name and the result.

        The programs take turns, each with its nearest candidates first.
        """
        turns = [self._near(center, name, changes) for name in self.tuned]
        queue = (entry for turn in zip_longest(*turns) for entry in turn if entry is not None)
        while batch := list(islice(queue, 2 * self.tools.workers.jobs)):
            names = {trial.key: name for name, trial in batch}
            trials = {trial.key: trial for _, trial in batch if trial.key not in self.seen}
            for trial, result in self.measured(trials.values(), self.deadline):
                if "ms" in result:
                    yield names[trial.key], trial, result
            if monotonic() > self.deadline:
                return

    def _near(self, center: Schedules, name: str, changes: int) -> Iterator[tuple[str, Trial]]:
        kernel = next(kernel for kernel in self.kernels if kernel.name == name)
        whole = center[name]
        keep = space.fixed(self.kernels)
        near = space.candidates(kernel, whole.only(self.job.dtype), keep, changes)
        for schedule in islice(near, 1, None):
            every = replace(schedule, settings=whole.settings | schedule.settings)
            yield name, self._trial(center | {name: every})

    def _confirmed(self, best: Schedules) -> Outcome:
        """The best and the policy's choice, measured again: of many times one is low by chance."""
        times = {}
        for which, schedules in (("policy", self.base), ("best", best)):
            answer = self.clocked(self._trial(schedules))
            if "why" in answer:
                return Outcome(self.job, self.progress, why=answer["why"])
            times[which] = answer
        self.progress.policy_ms = times["policy"]["ms"]
        better = times["best"]["ms"] < times["policy"]["ms"]
        return self._outcome(best, times["best"]) if better else self._outcome(self.base, times["policy"])

    def _outcome(self, schedules: Schedules, result: Result) -> Outcome:
        return self.outcome(schedules, result["ms"], result["bytes"])

    def _trial(self, schedules: Schedules) -> Trial:
        (shape,) = self.job.shapes
        return self.trial(schedules, shape, self.text(schedules))


def tuned_programs(lowered: pipeline.Lowered, which: str, backend: str, dtype: str) -> tuple[str, ...]:
    """The programs that are tuned with a pass: those that it launches and no pass before it, in order.

    Launch plans are not among them (`plans.py`): one shape cannot judge by what a pass should tell shapes
    apart.  Nor are programs that do not run in this dtype, or in whose place another runs.
    """
    kernels = pipeline.kernels(lowered, backend)
    present = {k.name: k for k in kernels if dtype in policy(lowered.spec, k, backend).settings}
    passes = pipeline.passes_of(lowered, backend)
    taken: set[str] = set()
    names: tuple[str, ...] = ()
    for name in PASSES:
        # A pass stands after those that it may call in its place; of these packed sequences are not timed.
        timed = (part for part in passes if part.part == name and part.name != packed(name))
        *others, own = (part.launches for part in timed)
        launched = next((programs for programs in others if present.keys() >= {*programs}), own)
        names = tuple(program for program in launched if program not in taken)
        if name == which:
            break
        taken |= {*names}
    replaced = {kernel.instead_of for kernel in present.values() if isinstance(kernel, ForeignKernel)}
    return tuple(name for name in names if name in present.keys() - replaced)
