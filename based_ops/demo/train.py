"""Training of the byte model, compiled."""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Text, batch
from .model import ByteModel
from .settings import Settings

REPORTS = 10
"""How often training says how far it is."""


@dataclass(frozen=True)
class Training:
    """What training did: bits a byte on held-out files before and after, and how long it took in seconds."""

    before: float
    after: float
    first_step: float
    seconds: float
    tokens: int
    compiled_with: str | None


def compiler(device: str) -> str:
    """The backend of `torch.compile` that works here: Inductor needs a C++ compiler for a CPU."""
    if device == "cuda" or shutil.which("g++") or shutil.which("clang++"):
        return "inductor"
    return "aot_eager"


def train(
    model: ByteModel, text: Text, settings: Settings, device: str, report: Callable[[int, float, float], None]
) -> Training:
    """Trains in place; `report` gets the step, its bits a byte and the seconds left, now and then."""
    generator = torch.Generator().manual_seed(settings.seed)
    judge = torch.Generator().manual_seed(settings.seed + 1)
    held_out = batch(text.held_out, settings.held_out, settings.length, judge).to(device)
    with_backend = compiler(device) if settings.thorough else None
    loss_of = torch.compile(model.loss, fullgraph=True, backend=with_backend) if with_backend else model.loss
    optimizers = _optimizers(model, settings)
    factor = functools.partial(_factor, steps=settings.steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]

    before = _judge(model, held_out)
    start = time.perf_counter()
    first_step = 0.0
    for step in range(settings.steps):
        piece = batch(text.train, settings.batch, settings.length, generator).to(device)
        loss = loss_of(piece)
        model.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step == 0:
            loss.item()
            first_step = time.perf_counter() - start
        if (step + 1) % max(1, settings.steps // REPORTS) == 0:
            bits = loss.item() / math.log(2)
            pace = (time.perf_counter() - start - first_step) / max(1, step)
            report(step + 1, bits, pace * (settings.steps - step - 1))
    seconds = time.perf_counter() - start
    tokens = settings.steps * settings.batch * settings.length
    return Training(before, _judge(model, held_out), first_step, seconds, tokens, with_backend)


def _optimizers(model: ByteModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which learns from far fewer bytes; AdamW for the rest."""
    inner = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]
    known = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(inner, lr=settings.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _factor(step: int, steps: int) -> float:
    """The learning rate's factor: up over a twentieth of the steps, then down along a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def _judge(model: ByteModel, piece: Tensor) -> float:
    return float(model.loss(piece)) / math.log(2)
