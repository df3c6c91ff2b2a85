"""How long the demonstration takes on this machine, from a few training steps at its start."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from .model import BYTES, ByteModel
from .settings import Settings

TIMED = 3
"""Training steps of which the fastest counts."""
STANDARD = Settings()


@dataclass(frozen=True)
class Forecast:
    """Seconds that the parts are expected to take."""

    verify: float
    train: float
    write: float

    @property
    def total(self) -> float:
        return self.verify + self.train + self.write


def foresee(settings: Settings, device: str) -> Forecast:
    """The forecast for a device; on a GPU the processor still verifies and compiles."""
    unit = _step_seconds(STANDARD, "cpu")
    step = unit if device == "cpu" else _step_seconds(STANDARD, device)
    size = settings.batch * settings.length / (STANDARD.batch * STANDARD.length)
    train = settings.compiling * unit + settings.steps * size * step
    return Forecast(settings.verifying * unit, train, settings.writing * unit)


def _step_seconds(settings: Settings, device: str) -> float:
    """The fastest of some training steps, without the optimiser."""
    model = ByteModel(settings.width, settings.heads, settings.linear or "", settings.window).to(device)
    piece = torch.randint(BYTES, (settings.batch, settings.length + 1), device=device)
    seconds = []
    for _ in range(1 + TIMED):  # the first imports
        start = time.perf_counter()
        model.loss(piece).backward()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
