"""The table of a document of what models recall, from their CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from based_ops.recall.catalogue import MODELS
from based_ops.recall.designs import Design
from based_ops.recall.results import Line, Point, points

from .claims import LARGEST
from .plots import series

COLUMNS = ("layer", "dials", "kB of state", "mean of the tests", f"{LARGEST[1]} pairs", "epochs", "seeds")


def recall_table(lines: Sequence[Line]) -> str:
    """Every point with its best learning rate, those of a kind together by bytes; of seeds the range."""
    found = points(lines)
    versions = _each(version for x in lines for version in x.versions.split(", "))
    head = f"{_each(x.device for x in lines)}; {versions}; {_dates(lines)}."
    best: dict[str, float] = {}
    for point in found:
        best[series(point)] = max(best.get(series(point), 0.0), point.mean())
    found.sort(key=lambda x: (-best[series(x)], series(x), x.state_bytes, str(x.design)))
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, found)]
    return "\n".join([head, "", *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _cells(point: Point) -> Sequence[str]:
    of_largest = LARGEST if all(LARGEST in x.accuracies for x in point.lines) else None
    trained = sorted({x.trained for x in point.lines})
    return (
        series(point),
        f"`{shortest(point.design)}`",
        f"{point.state_bytes / 1000:.1f}",
        _range(point.of(None)),
        _range(point.of(of_largest)) if of_largest else "",
        "–".join(map(str, {trained[0]: 0, trained[-1]: 0})) + f" of {point.lines[0].epochs}",
        str(len(point.lines)),
    )


def shortest(design: Design) -> str:
    """The design without the dials that are as they are by default."""
    known = MODELS[design.model].dials
    dials = (f"{name}={value}" for name, value in design.dials if value != known[name])
    return " ".join([design.model, f"d={design.d_model}", *dials])


def _range(found: Sequence[float]) -> str:
    low, high = f"{found[0]:.3f}", f"{found[-1]:.3f}"
    return low if low == high else f"{low} – {high}"


def _each(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))


def _dates(lines: Sequence[Line]) -> str:
    dates = sorted({x.date for x in lines})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
