"""The mixers, one module each: what a layer of this mixer is, and its programs.

They are found by looking into this directory, so a new mixer is a new file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ..spec.model import LayerSpec


@functools.cache
def mixer(name: str) -> type[LayerSpec]:
    """The mixer of that name, which its module calls MIXER."""
    module = importlib.import_module(f".{name}", __name__)
    found: type[LayerSpec] = module.MIXER
    return found


@functools.cache
def mixers() -> dict[str, type[LayerSpec]]:
    """Every mixer by its name, sorted."""
    return {name: mixer(name) for name in sorted(entry.name for entry in pkgutil.iter_modules(__path__))}
