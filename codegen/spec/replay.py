"""Which layers can write their states seldom: those of which a token's inputs alone say what it adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .model import Conflict
from .parts import Positions


def conflicts(values: Mapping[str, Any]) -> Iterable[Conflict]:
    """What is wrong with a layer that has `replay`."""
    if values.get("replay", 0) in (0, None):
        return
    if values.get("update", "add") == "delta":
        yield Conflict(("replay",), "the delta rule reads the state for each token that enters it", True)
    if values.get("decay", "none") != "none":
        yield Conflict(("replay",), "a state that fades changes with every token: `decay: none`", True)
    for name in ("parts", "key_parts"):
        found = values.get(name)
        if isinstance(found, tuple) and any(isinstance(part, Positions) for part in found):
            yield Conflict(("replay",), "positions turn the state with every token", True)
