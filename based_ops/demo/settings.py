"""How large the demonstration is, and what its parts cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the model, of its training and of what is measured afterwards; a token is a byte.

    `linear` None is the layer that the demonstration itself declares.  `thorough`: every backend is verified,
    and the step of training is compiled.  `verifying`, `compiling` and `writing` are what these parts cost,
    in training steps of the standard size on a CPU, not compiled.
    """

    linear: str | None = "taylor2_qk16_v64"
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
    thorough: bool = True
    verifying: int = 300
    compiling: int = 200
    writing: int = 60


QUICK = Settings(
    linear=None,
    steps=60,
    length=128,
    held_out=8,
    written=120,
    context=256,
    long_context=10_000,
    timed=20,
    thorough=False,
    verifying=60,
    compiling=0,
    writing=12,
)
"""A minute, on busy cores too: nothing but the new layer itself is compiled or interpreted."""
