"""How a pass should tell shapes apart: the search for the constants of its launch plan.

The constants reach the device only through the plan's function (`based_ops.support.host`), which makes of
them and of a shape the numbers to launch by, such as one of segments.  So those are what is timed, once at
each shape; then every legal choice of constants is known, however many there are, by the times of what it
would launch.  All plans share one module, so no kernel is compiled for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from math import inf, prod
from statistics import geometric_mean
from time import monotonic
from typing import Any

from based_ops.codegen import pipeline
from based_ops.codegen.ir.kernels import LaunchPlan
from based_ops.codegen.schedule import space
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.schedule.policy import policy
from based_ops.codegen.spec.model import LayerSpec

from ..inputs import units
from ..support import host
from .journal import Result
from .measure import Shape
from .trials import GAIN, Outcome, Run, Schedules, Trial

SLOWER = 1.03
"""How much longer than with the policy's plan a pass may take at any one shape, to be faster at others."""

Launched = tuple[Shape, Any]
"""A shape, and what a plan's function says to launch there."""
Launches = tuple[Launched, ...]
"""The same at all shapes, which is what tells plans apart here."""


def has_plan(spec: LayerSpec, which: str, backend: str, dtype: str) -> bool:
    """Whether a pass is launched by a plan."""
    plans = _searched(spec, pipeline.plans_of(pipeline.lower(spec), backend))
    return any(plan.part == which and dtype in policy(spec, plan, backend).settings for plan in plans)


def _extents(spec: LayerSpec, shape: Shape) -> dict[str, int]:
    """Of a call of a shape."""
    signature = spec.signature()
    return {"B": shape.batch, "T": shape.length, **signature.alike(units(signature, shape.heads))}


def _searched(spec: LayerSpec, plans: Iterable[LaunchPlan]) -> list[LaunchPlan]:
    """The plans that follow from a shape alone, and not from where sequences lie in it."""
    known = _extents(spec, Shape(1, 1, 1)).keys()
    return [plan for plan in plans if all(known >= set(size) for size in plan.sizes)]


@dataclass(eq=False)
class PlanRun(Run):
    """The search for the launch plan of a pass, at several shapes.

    The best plan has the least geometric mean of times among those with which no shape takes much longer than
    with the policy's: somebody who calls only that shape gains nothing by the others.
    """

    _times: dict[Launched, Result] = field(default_factory=dict, init=False)

    def subject(self) -> tuple[tuple[str, ...], set[str]]:
        return (self._plan.name,) if self._plan else (), {self.job.which}

    def first(self) -> list[Trial]:
        return list(self._trials(self._policy, self._policy)) if self.tuned else []

    def outcomes(self) -> Iterator[Outcome]:
        if not self.tuned:
            return
        best = self._policy
        # The policy's plan is measured whatever the budget: everything is compared with it.
        self._time(self.first(), inf)
        if failed := [result["why"] for result in self._times.values() if "why" in result]:
            yield Outcome(self.job, self.progress, why=failed[0])
            return
        yield self._outcome(best)
        queue = self._unmeasured()
        while monotonic() < self.deadline and (batch := list(islice(queue, 2 * self.tools.workers.jobs))):
            self._time(batch, self.deadline)
            if (now := self._best()) != best:
                best = now
                yield self._outcome(best)
        if best != self._policy:
            yield self._confirmed(best)

    @cached_property
    def _plan(self) -> LaunchPlan | None:
        """The plan by which the pass is launched: that for warpgroups, where their programs are used."""
        job = self.job
        for plan in reversed(_searched(job.spec, self.plans)):  # those for warpgroups come last
            names = (plan.name, plan.kernel.name) if plan.kernel else (plan.name,)
            settings = [self.base[name].settings.get(job.dtype) for name in names]
            if plan.part == job.which and all(setting and setting.used for setting in settings):
                return plan
        return None

    @cached_property
    def _candidates(self) -> dict[Launches, Schedule]:
        """Every legal plan that differs from those before it in what it launches, the policy's first."""
        plan = self._plan
        assert plan is not None, "candidates are asked for where there is a plan"
        start = self.base[plan.name].only(self.job.dtype)
        keep = space.fixed_in_plan(plan, self.kernels, start)
        found: dict[Launches, Schedule] = {}
        for schedule in space.candidates(plan, start, keep, most_changes=len(plan.constants)):
            found.setdefault(tuple(self._launched(schedule, shape) for shape in self.job.shapes), schedule)
        return found

    @cached_property
    def _policy(self) -> Launches:
        return next(iter(self._candidates))

    def _launched(self, schedule: Schedule, shape: Shape) -> Launched:
        sizes = _extents(self.job.spec, shape)
        plan = next(plan for plan in self.plans if plan.name == schedule.program)
        constants = schedule.settings[self.job.dtype].constants
        return shape, getattr(host, plan.function)(
            *(prod(sizes[name] for name in size) for size in plan.sizes), **constants
        )

    def _unmeasured(self) -> Iterator[Trial]:
        """A trial for everything that some candidate launches, once."""
        asked = set(self._times)
        for plan in self._candidates:
            yield from self._trials(plan, [launched for launched in plan if launched not in asked])
            asked.update(plan)

    def _trials(self, plan: Launches, at: Iterable[Launched]) -> Iterator[Trial]:
        schedules = self._schedules(plan)
        for shape, numbers in at:
            yield self.trial(schedules, shape, self._text, self.tuned, numbers)

    @cached_property
    def _text(self) -> str:
        """The module whose kernels all trials share; which plans are printed in it makes no difference."""
        job = self.job
        return self.text(self.base | {plan.name: policy(job.spec, plan, job.backend) for plan in self.plans})

    def _schedules(self, plan: Launches) -> Schedules:
        """All schedules with this plan, which is for one dtype."""
        chosen = self._candidates[plan]
        whole = self.base[chosen.program]
        return self.base | {chosen.program: replace(whole, settings=whole.settings | chosen.settings)}

    def _time(self, trials: Iterable[Trial], deadline: float) -> None:
        for trial, result in self.measured(trials, deadline):
            self._times[self._of(trial)] = result

    def _of(self, trial: Trial) -> Launched:
        (name,) = self.tuned
        return self._launched(trial.schedules[name], trial.shape)

    def _best(self) -> Launches:
        """The nearest to the policy's among the plans that are as good as the best.

        So constants stay where no shape, or only chance, asks for others.
        """
        scores = {plan: self._score(plan) for plan in self._candidates}
        least = min(scores.values())
        return next(plan for plan, score in scores.items() if GAIN * score <= least)

    def _score(self, plan: Launches) -> float:
        """Time relative to the policy's plan; infinite if it is not known, or much longer at some shape."""
        ratios = [
            self._times.get(now, {}).get("ms", inf) / self._times[before]["ms"]
            for now, before in zip(plan, self._policy, strict=True)
        ]
        return geometric_mean(ratios) if max(ratios) <= SLOWER else inf

    def _confirmed(self, best: Launches) -> Outcome:
        """The best and the policy's plan, timed again where they differ: one of many is fast by chance."""
        for plan, other in ((self._policy, best), (best, self._policy)):
            differs = [launched for launched, instead in zip(plan, other, strict=True) if launched != instead]
            for trial, wrong in self.checked(self._trials(plan, differs), inf):
                again = wrong or self.clocked(trial)
                if "why" in again:
                    return Outcome(self.job, self.progress, why=again["why"])
                launched = self._of(trial)
                self._times[launched] = min(self._times[launched], again, key=lambda result: result["ms"])
        return self._outcome(best if self._score(best) < 1 else self._policy)

    def _outcome(self, plan: Launches) -> Outcome:
        def mean(of: Launches, what: str) -> float:
            return geometric_mean([self._times[launched][what] for launched in of])

        self.progress.policy_ms = mean(self._policy, "ms")
        return self.outcome(self._schedules(plan), mean(plan, "ms"), mean(plan, "bytes"))
