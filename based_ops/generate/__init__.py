"""Generation with the language models: an engine for many requests, and how tokens are chosen."""

from __future__ import annotations

from .engine import Engine, Request
from .runner import Progress, Runner
from .sampling import Sampling

__all__ = ["Engine", "Progress", "Request", "Runner", "Sampling"]
