"""One module a mixer: its state and its public object, which the module calls VARIANT."""

from __future__ import annotations

import importlib

from ..variant import Variant


def variant_class(mixer: str) -> type[Variant]:
    """The class of variants of a mixer."""
    module = importlib.import_module(f".{mixer}", __name__)
    found: type[Variant] = module.VARIANT
    return found
