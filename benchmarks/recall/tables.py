"""Tables of a document of what models recall, or make of other tasks, from their CSVs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from based_ops.recall.catalogue import MODELS
from based_ops.recall.designs import Design
from based_ops.recall.results import Line, Point, points

from .claims import LARGEST
from .plots import series


def recall_table(lines: Sequence[Line]) -> str:
    """Every point with its best learning rate, those of a kind together by bytes; of seeds the range.

    Beside the mean of the tests stands the largest of MQAR; of other tasks each, if there are several.
    """
    found = points(lines)
    every = sorted({test for x in lines for test in x.accuracies})
    tests = [LARGEST] if LARGEST in every else every if len(every) > 1 else []
    names = [f"{LARGEST[1]} pairs" if x == LARGEST else f"{x[0]} tokens" for x in tests]
    columns = ("layer", "dials", "kB of state", "mean of the tests", *names, "epochs", "seeds")
    best: dict[str, float] = {}
    for point in found:
        best[series(point)] = max(best.get(series(point), 0.0), point.mean())
    found.sort(key=lambda x: (-best[series(x)], series(x), x.state_bytes, str(x.design)))
    return _table(lines, columns, [_cells(x, tests) for x in found])


def tasks_table(of_tasks: Sequence[Sequence[Line]]) -> str:
    """Every design of several files, each of a recipe, with its mean over the tests of each."""
    found = [{str(x.design): x for x in points(lines)} for lines in of_tasks]
    designs = {name: x.design for of_task in found for name, x in of_task.items()}
    rows = [
        (f"`{shortest(design)}`", *(_range(x[name].of(None)) if name in x else "" for x in found))
        for name, design in designs.items()
    ]
    together = [line for lines in of_tasks for line in lines]
    return _table(together, ("layer", *(lines[0].recipe for lines in of_tasks)), rows)


def _table(lines: Sequence[Line], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    versions = _each(version for x in lines for version in x.versions.split(", "))
    head = f"{_each(x.device for x in lines)}; {versions}; {_dates(lines)}."
    every = (columns, ["---"] * len(columns), *rows)
    return "\n".join([head, "", *("| " + " | ".join(row) + " |" for row in every)]) + "\n"


def _cells(point: Point, tests: Sequence[tuple[int, int]]) -> Sequence[str]:
    trained = sorted({x.trained for x in point.lines})
    return (
        series(point),
        f"`{shortest(point.design)}`",
        f"{point.state_bytes / 1000:.1f}",
        _range(point.of(None)),
        *(_range(point.of(x)) if all(x in of.accuracies for of in point.lines) else "" for x in tests),
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
