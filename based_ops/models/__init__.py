"""Language models over the compiled layers, as plain PyTorch modules."""

from __future__ import annotations

from .checkpoint import convert, load, save
from .language_model import LanguageModel, ModelState
from .spec import ModelSpec, load_spec, shipped

__all__ = ["LanguageModel", "ModelSpec", "ModelState", "convert", "load", "load_spec", "save", "shipped"]
