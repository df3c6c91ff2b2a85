"""What a training run is besides its model and its text."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..errors import ArgumentTypeError, ArgumentValueError, fail

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Settings:
    """A recipe: AdamW on float32 masters, a linear warm-up and a cosine, gradients clipped by their norm.

    Raises `ArgumentTypeError` and `ArgumentValueError`.

    Args:
        steps: How many steps the cosine falls in.
        batch: Sequences a step, over all ranks.
        length: Tokens of a sequence that are predicted.
        calls: In how many calls of the model a rank reads its sequences of a step.
        lr: The learning rate at the end of the warm-up.
        lowest: What the cosine ends with, as a part of `lr`.
        warmup: Steps in which the learning rate rises.
        weight_decay: Of matrices alone.
        betas: Of AdamW.
        eps: Of AdamW.
        clip: The largest norm that gradients keep.
        dtype: In which the model computes.
        seed: Of the order of sequences.

    Raises:
        ArgumentTypeError: a value is of another type.
        ArgumentValueError: a value is outside of what it may be.

    Examples:
        >>> from based_ops.train import Settings
        >>> settings = Settings(steps=100, warmup=10, lr=1e-3)
        >>> settings.learning_rate(9)
        0.001
    """

    steps: int
    batch: int = 32
    """Sequences a step, over all ranks."""
    length: int = 1024
    """Tokens of a sequence that are predicted."""
    calls: int = 1
    """In how many calls of the model a rank reads its sequences of a step; gradients add up in float32."""
    lr: float = 1e-3
    """At the end of the warm-up."""
    lowest: float = 0.1
    """What the cosine ends with, as a part of `lr`."""
    warmup: int = 100
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.1
    """Of matrices; norms, biases and all else of one dimension have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    """The largest norm that gradients keep."""
    dtype: str = "bfloat16"
    """In which the model computes."""
    seed: int = 0
    """Of the order of sequences."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            wanted: Any = {"int": int, "float": (int, float), "str": str}.get(str(item.type))
            if wanted and (not isinstance(value, wanted) or isinstance(value, bool)):
                fail(ArgumentTypeError, item.name, type(value).__name__, f"of type {item.type}")
        for name in ("steps", "batch", "length", "calls"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("warmup", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr", "clip", "eps"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0 and finite")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more and finite")
        self._require("lowest", 0 <= self.lowest <= 1, "from 0 to 1")
        betas = tuple(self.betas)
        self._require("betas", len(betas) == 2 and all(0 <= x < 1 for x in betas), "two numbers in [0, 1)")
        object.__setattr__(self, "betas", betas)  # a file has a list
        self._require("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")

    def _require(self, name: str, fine: bool, must: str) -> None:
        if not fine:
            fail(ArgumentValueError, name, repr(getattr(self, name)), must)

    def learning_rate(self, step: int) -> float:
        """That of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.lr * (self.lowest + (1 - self.lowest) * cosine)
