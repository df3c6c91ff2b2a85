"""The demonstration: a new layer from spec to kernels, and a small language model that trains and writes."""

from __future__ import annotations

from .run import run
from .settings import QUICK, Settings

__all__ = ["QUICK", "Settings", "run"]
