"""Some of all combinations, in which every two values of any two parameters still meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairs(*parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """A covering array of strength 2, always the same: each row has what meets most that is new.

    What fails in a grid mostly fails for one value or for two that meet, whatever the others are.
    """
    rows = list(itertools.product(*map(range, map(len, parameters))))
    met = {row: set(itertools.combinations(enumerate(row), 2)) for row in rows}
    missing = set().union(*met.values())
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(met[row] & missing))
        missing -= met[best]
        chosen.append(best)
    return [tuple(map(lambda values, i: values[i], parameters, row)) for row in sorted(chosen)]
