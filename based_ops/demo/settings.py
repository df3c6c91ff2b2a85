"""How large the demonstration is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the model, of its training and of what is measured afterwards; a token is a byte."""

    linear: str = "taylor2_qk16_v64"
    window: str = "window64_d64"
    width: int = 128
    heads: int = 2
    steps: int = 400
    batch: int = 4
    length: int = 256
    rate: float = 5e-3
    matrix_rate: float = 0.02
    seed: int = 0
    held_out: int = 32
    written: int = 400
    context: int = 1_000
    long_context: int = 100_000
    timed: int = 100


QUICK = Settings(steps=3, batch=2, length=48, held_out=2, written=12, context=64, long_context=256, timed=4)
"""The smallest settings that run every part."""
