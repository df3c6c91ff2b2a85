"""Which layers can learn by the delta rule: those whose keys all weigh the same for themselves.

S_t = S_{t-1} + β φ(k) (v − φ(k)ᵀ S_{t-1})ᵀ takes back β κ(k, k) of what S answers to k.  That is a part of it
only where κ(k, k) is known: of keys of length 1, where κ is a function of q·k.  There κ is divided by its
value for them, so that β is the part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .model import Conflict, Elementwise, FeatureMap
from .parts import L2Norm, Positions


def conflicts(values: Mapping[str, Any], feature_map: FeatureMap) -> Iterable[Conflict]:
    """What is wrong with a layer whose `update` is delta, and with what only such a layer has."""
    unit = values.get("unit_keys", False) is True
    if values.get("update", "add") != "delta":
        if unit:
            message = "is for `update: delta`; elsewhere `parts` may end in `{kind: l2_norm}`"
            yield Conflict(("unit_keys",), message, True)
        return
    if values.get("normalize", True) is True:
        message = "the delta rule has no sum of weights to divide by: `normalize: false`"
        yield Conflict(("normalize" if "normalize" in values else "update",), message, True)
    if values.get("state_dtype", "float32") != "float32":
        message = "the delta rule needs float32: corrections are smaller than the last digit of others"
        yield Conflict(("state_dtype",), message, True)
    if isinstance(feature_map, Elementwise) and feature_map.expression != "x":
        message = (
            "φ(k)·φ(k) differs between keys of one length, but the delta rule needs it to be constant: "
            "`expression: x`, after the map as a part, `{kind: elementwise}`, and `unit_keys: true`"
        )
        yield Conflict(("feature_map", "expression"), message, True)
    parts, keys = values.get("parts", ()), values.get("key_parts")
    lists = {"parts": parts} | ({} if keys is None else {"key_parts": keys})
    if any(not isinstance(found, tuple) for found in lists.values()):
        return
    for name, found in lists.items():
        if any(isinstance(part, Positions) for part in found):
            yield Conflict((name,), "positions turn the state, which the delta rule cannot follow", True)
    name, of_keys = [*lists.items()][-1]
    if not unit and not (of_keys and isinstance(of_keys[-1], L2Norm)):
        message = (
            "needs keys of one length: `unit_keys: true`, or parts of keys that end in `{kind: l2_norm}`"
        )
        yield Conflict(("update",), message, True)
