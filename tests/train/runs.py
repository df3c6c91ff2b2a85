"""Runs of seconds, in float64 so that what is equal is seen to be."""

from __future__ import annotations

from typing import Any

import torch

from based_ops.models import LanguageModel, ModelSpec, shipped
from based_ops.train import Bytes, Settings, Text, Trainer

TINY = [name for name in shipped() if name.endswith("tiny")]


def text(tokens: int = 4000) -> Text:
    """Bytes that can be learned: words drawn from a few."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 128, (16, 5), generator=generator)
    drawn = words[torch.randint(16, (tokens // 5,), generator=generator)].flatten().to(torch.int32)
    return Text(drawn[: -tokens // 4], drawn[-tokens // 4 :], Bytes(), 1.0)


def settings(**more: Any) -> Settings:
    return Settings(
        **{"steps": 6, "batch": 4, "length": 32, "warmup": 2, "lr": 3e-3, "dtype": "float64", **more}
    )


def model(name: str | ModelSpec, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """One whose mixers matter."""
    torch.manual_seed(0)
    net = LanguageModel(name, dtype=dtype)
    for x in net.parameters():
        if x.dim() > 1:
            x.data.mul_(4.0)
    return net


def made(name: str | ModelSpec, words: Text | None = None, **more: Any) -> Trainer:
    """A run of one process."""
    recipe = settings(**more)
    dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
    return Trainer(model(name, dtype), words or text(), recipe)
