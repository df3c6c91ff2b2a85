"""Distillation of long convolutions to state spaces (Laughing Hyena, arXiv 2310.18780)."""

from __future__ import annotations

from .filters import Fitted, fitted
from .judge import Pace, Words, paces, silenced, words
from .model import Layer, distil

__all__ = ["Fitted", "Layer", "Pace", "Words", "distil", "fitted", "paces", "silenced", "words"]
