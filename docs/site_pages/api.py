"""Pages of the interface: what each package names in `__all__`, for mkdocstrings to write out."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

PAGES = {
    "api_operators": "based_ops",
    "api_layers": "based_ops.layers",
    "api_models": "based_ops.models",
    "api_generate": "based_ops.generate",
    "api_train": "based_ops.train",
    "api_hippo": "based_ops.hippo",
    "api_distill": "based_ops.distill",
}
MORE = {
    "based_ops": """
::: based_ops.attention.AttentionVariant
    options:
      inherited_members: false
      filters: ["!^_(?!_call__)"]
"""
}
"""What users hold in hand, though no package names it."""


def pages() -> dict[str, Callable[[], str]]:
    """A function for each page."""
    return {page: functools.partial(_page, package) for page, package in PAGES.items()}


def _page(package: str) -> str:
    found = importlib.import_module(package)
    names = [x for x in found.__all__ if not isinstance(getattr(found, x), ModuleType)]
    options = "    options:\n      inherited_members: false\n"
    return "\n".join(f"::: {package}.{name}\n{options}" for name in names) + MORE.get(package, "")
