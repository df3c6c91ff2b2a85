"""Compiling what the next points need while the present one trains, in a process beside."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sweep import Job, Settings

LEAD = 1
"""So many points ahead of the one that comes next."""


class Ahead:
    """Takes one step of each job after the first, on a GPU: kernels then lie in the caches on disk.

    It is a convenience: what it fails at, the training meets and tells.
    """

    def __init__(self, jobs: Sequence[Job], settings: Settings) -> None:
        self._process: Any = None
        if settings.device.type != "cuda" or not jobs:
            return
        spawn = multiprocessing.get_context("spawn")
        self._reached = spawn.Semaphore(LEAD)
        unlike = list({job.design: job for job in jobs}.values())
        given = unlike, settings, self._reached
        self._process = spawn.Process(target=_prepare, args=given, daemon=True)

    def __enter__(self) -> Ahead:
        if self._process is not None:
            self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()

    def go_on(self) -> None:
        """Says that another job is being trained."""
        if self._process is not None:
            self._reached.release()


def _prepare(jobs: Sequence[Job], settings: Settings, reached: Any) -> None:
    """The work of the process."""
    from dataclasses import replace

    from ..errors import BackendUnavailable
    from .train import Data

    recipe = settings.trained
    train = tuple(task.of(recipe.batch) for task in recipe.train)
    data = Data.of(replace(recipe, train=train), settings.device)
    for job in jobs:
        reached.acquire()
        try:
            replace(settings, graphs=False).training(job).epoch(data, 1)
        except BackendUnavailable:
            continue
