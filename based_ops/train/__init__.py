"""Training language models on text: a recipe, its checkpoints, and how many processes share it."""

from __future__ import annotations

from .distribute import Share, distribute
from .settings import Settings
from .text import Bytes, Pairs, Text, read
from .trainer import Progress, Trainer

__all__ = ["Bytes", "Pairs", "Progress", "Settings", "Share", "Text", "Trainer", "distribute", "read"]
