"""Language models over the compiled layers, as plain PyTorch modules."""

from __future__ import annotations

from based_ops.codegen.spec.language_model import ModelSpec

from .checkpoint import convert, load, save
from .inference import merge_projections
from .language_model import LanguageModel, ModelState
from .products import merge_norms
from .spec import load_spec, shipped

__all__ = [
    "LanguageModel",
    "ModelSpec",
    "ModelState",
    "convert",
    "load",
    "load_spec",
    "merge_norms",
    "merge_projections",
    "save",
    "shipped",
]
