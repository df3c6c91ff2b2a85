"""The points of a picture, one after the other, resumable: what there is already is not trained again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentValueError, BackendUnavailable, BasedOpsError, ResultsError, fail_text
from ..extras import require
from . import results
from .ahead import Ahead
from .designs import Design
from .machine import machine
from .model import state_bytes
from .recipe import RECIPES, Recipe
from .results import Line
from .train import Data, Epoch, Training, train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A design, and the seeds with which to train it."""

    design: Design
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """How all jobs of a run are trained."""

    recipe: str
    epochs: int
    rates: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype
    graphs: bool

    @property
    def trained(self) -> Recipe:
        return replace(RECIPES[self.recipe], epochs=self.epochs, rates=self.rates)

    def training(self, job: Job) -> Training:
        """The models of a job, ready to be trained."""
        more = self.rates, job.seeds, self.device, self.dtype, self.graphs
        return Training(job.design, self.trained, *more)


def read(path: Path) -> list[Job]:
    """The jobs of a sweep file, in its order: a list of stages, each with `points` and `seeds`.

    Raises `ArgumentValueError` that names the entry that is wrong.
    """
    require("compile", "reading a sweep")
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArgumentValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, list):
        fail_text(ArgumentValueError, f"{path}: must be a list of stages, each with `points` and `seeds`")
    found = []
    for number, stage in enumerate(document):
        place = f"{path}: stage {number + 1}"
        if not isinstance(stage, dict) or set(stage) != {"stage", "points", "seeds"}:
            fail_text(ArgumentValueError, f"{place}: must have `stage`, `points` and `seeds` alone")
        seeds = stage["seeds"]
        if not isinstance(seeds, list) or not seeds or not all(type(x) is int and x >= 0 for x in seeds):
            fail_text(ArgumentValueError, f"{place}: seeds: got {seeds!r}, must be a list of ints from 0")
        for text in stage["points"]:
            try:
                found.append(Job(Design.read(str(text)), tuple(seeds)))
            except BasedOpsError as error:
                raise type(error)(f"{place}: {text}: {error}") from error
    return found


def chosen(jobs: Sequence[Job], models: Sequence[str], dials: Sequence[str]) -> list[Job]:
    """Jobs of these kinds of models, or of all, that have all these dials, such as features=16 or d=64."""
    return [
        job
        for job in jobs
        if (not models or job.design.model in models) and set(dials) <= set(str(job.design).split()[1:])
    ]


def _missing(job: Job, settings: Settings, lines: Sequence[Line]) -> Job | None:
    """What of a job no line has: the seeds of which a learning rate lacks."""
    there = {
        (x.seed, x.rate)
        for x in lines
        if x.design == str(job.design) and x.epochs == settings.epochs and x.recipe == settings.recipe
    }
    seeds = [seed for seed in job.seeds if any((seed, rate) not in there for rate in settings.rates)]
    return Job(job.design, tuple(seeds)) if seeds else None


@dataclass(frozen=True)
class Outcome:
    """All lines that there are after a run, and the points that failed in it, each with the reason."""

    lines: list[Line]
    failed: list[str]


def run(jobs: Sequence[Job], settings: Settings, path: Path, minutes: float, say: Say) -> Outcome:
    """Trains what `path` does not have yet, and writes it there after each point.

    No point begins that would take longer than the `minutes` that are left, judged by the one before it.  A
    point that cannot run here, or fails, is named, and the others go on.  Raises `ResultsError` for a file of
    another recipe.
    """
    lines = results.read(path) if path.exists() else []
    if other := next((x.recipe for x in lines if x.recipe != settings.recipe), None):
        what = f"holds results of the recipe {other}, not {settings.recipe}: name another file"
        fail_text(ResultsError, f"{path}: {what}")
    left = [x for job in jobs if (x := _missing(job, settings, lines)) is not None]
    say(f"{len(left)} of {len(jobs)} points to train, {settings.epochs} epochs, on {settings.device}")
    if not left:
        return Outcome(lines, [])
    failed: list[str] = []
    begun = time.monotonic()
    data = Data.of(settings.trained, settings.device)
    last = 0.0
    with Ahead(left[1:], settings) as ahead:
        for number, planned in enumerate(left):
            job = _missing(planned, settings, lines)
            if job is None:
                continue
            spent = time.monotonic() - begun
            if spent + last > 60 * minutes:
                say(f"out of time after {spent / 60:.1f} minutes: {len(left) - number} points are left")
                break
            ahead.go_on()
            try:
                found = _point(job, settings, data, _teller(job, settings, number, len(left), say))
            except BackendUnavailable as error:
                say(f"left out: {error}")
                continue
            except Exception as error:  # a kernel that does not compile, or memory: other points may do
                failed.append(f"{job.design}: {type(error).__name__}: {error}")
                say(f"failed: {failed[-1]}")
                continue
            fresh = {(x.design, x.seed, x.rate, x.epochs) for x in found}
            kept = [x for x in lines if (x.design, x.seed, x.rate, x.epochs) not in fresh]
            lines = [*kept, *found]
            results.write(path, lines)
            last = time.monotonic() - begun - spent
    return Outcome(lines, failed)


def _teller(job: Job, settings: Settings, number: int, count: int, say: Say) -> Callable[[Epoch], None]:
    """Says after each epoch how far it is, and when the point and all points will be done."""
    begun = time.monotonic()

    def tell(epoch: Epoch) -> None:
        each = (time.monotonic() - begun) / epoch.number
        left = each * (settings.epochs - epoch.number)
        rest = left + each * settings.epochs * (count - number - 1)
        say(
            f"[{number + 1}/{count}] {job.design}: epoch {epoch.number} of {settings.epochs}, "
            f"loss {min(epoch.losses):.3f}, accuracy {max(epoch.means):.3f}, {epoch.seconds:.1f} s; "
            f"left: {left / 60:.1f} min, all {rest / 60:.0f} min"
        )

    return tell


def _point(job: Job, settings: Settings, data: Data, tell: Callable[[Epoch], None]) -> list[Line]:
    """Trains a design with all seeds and learning rates side by side."""
    training = settings.training(job)
    last = train(training, data, tell)
    where: dict[str, Any] = machine(settings.device)
    count = sum(x.numel() for x in training.model.parameters()) // len(training.pairs)
    found = []
    for number, (seed, rate) in enumerate(training.pairs):
        accuracies = zip(data.recipe.tests, last.accuracies[number], strict=True)
        found.append(
            Line(
                design=str(job.design),
                seed=seed,
                rate=rate,
                recipe=settings.recipe,
                epochs=settings.epochs,
                trained=last.number,
                state_bytes=state_bytes(job.design),
                parameters=count,
                loss=round(last.losses[number], 5),
                accuracy=round(last.means[number], 5),
                tests=" ".join(f"{test.length}/{test.asked}={x:.5f}" for test, x in accuracies),
                seconds=round(last.seconds, 3),
                beside=len(training.pairs),
                dtype=str(settings.dtype).removeprefix("torch."),
                **where,
            )
        )
    return found
