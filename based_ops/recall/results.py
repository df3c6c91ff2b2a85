"""What was found, as a CSV that grows: a line for each model that was trained."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from ..errors import BasedOpsError, ResultsError
from .designs import Design


@dataclass(frozen=True)
class Line:
    """A model, trained once."""

    design: str
    seed: int
    rate: float
    recipe: str
    epochs: int
    """For which the learning rate was planned."""
    trained: int
    """Those that there were: fewer where the accuracy was enough."""
    state_bytes: int
    """Of one sequence of 1024 tokens, float32, all layers."""
    parameters: int
    loss: float
    """The mean of the last epoch."""
    accuracy: float
    """The mean over the tests."""
    tests: str
    """Each test as `length/asked=accuracy`, separated by spaces; MQAR asks once a pair."""
    seconds: float
    """Of the last epoch, for all models that were trained side by side."""
    beside: int
    """How many models those were."""
    dtype: str
    device: str
    versions: str
    date: str

    @cached_property
    def accuracies(self) -> dict[tuple[int, int], float]:
        """By length and positions at which is asked."""
        found = {}
        for part in self.tests.split():
            test, _, value = part.partition("=")
            length, _, asked = test.partition("/")
            found[int(length), int(asked)] = float(value)
        return found

    @cached_property
    def parsed(self) -> Design:
        """The design."""
        return Design.read(self.design)


COLUMNS = tuple(x.name for x in fields(Line))
_TYPES = {"int": int, "float": float, "str": str}


def read(path: Path) -> list[Line]:
    """The lines of a file; raises `ResultsError` that names the place of what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    header = next(rows, [])
    if tuple(header) != COLUMNS:
        wrong = [x for x in header if x not in COLUMNS] or [x for x in COLUMNS if x not in header]
        what = f"{wrong[0]!r} is none of its columns or missing" if wrong else "in another order"
        raise ResultsError(f"{path}:1: not a file of `based-ops recall`: {what}; name another file")
    found = []
    for row in rows:
        place = f"{path}:{rows.line_num}"
        if len(row) != len(COLUMNS):
            raise ResultsError(
                f"{place}: has {len(row)} of {len(COLUMNS)} columns: cut off or edited; delete this line"
            )
        found.append(_line(place, row))
    return found


def _line(place: str, row: Sequence[str]) -> Line:
    values = {}
    for kind, text in zip(fields(Line), row, strict=True):
        try:
            values[kind.name] = _TYPES[str(kind.type)](text)
        except ValueError:
            raise ResultsError(f"{place}: {kind.name}: got {text!r}, must be of type {kind.type}") from None
    line = Line(**values)
    try:
        good = line.accuracies and all(0 <= x <= 1 for x in (line.accuracy, *line.accuracies.values()))
    except ValueError:
        good = False
    if not good:
        raise ResultsError(f"{place}: tests: got {line.tests!r}, must be accuracies such as 64/4=0.98")
    try:
        line.parsed  # noqa: B018
    except BasedOpsError as error:
        raise ResultsError(f"{place}: design: {error}") from error
    return line


def write(path: Path, lines: Iterable[Line]) -> None:
    """Writes a file so that a reader, or an interruption, finds it whole: the old one or the new."""
    out = io.StringIO(newline="")
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([getattr(line, name) for name in COLUMNS] for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(out.getvalue(), encoding="utf-8")
    temporary.replace(path)


@dataclass(frozen=True)
class Point:
    """A design with the best learning rate of each seed, of the most epochs that there are."""

    design: Design
    state_bytes: int
    parameters: int
    lines: tuple[Line, ...]
    """One a seed."""

    def of(self, test: tuple[int, int] | None) -> list[float]:
        """The accuracies of the seeds, sorted: in a test, by length and positions, or the mean over all."""
        return sorted(x.accuracy if test is None else x.accuracies[test] for x in self.lines)

    def mean(self, test: tuple[int, int] | None = None) -> float:
        """Over the seeds."""
        found = self.of(test)
        return sum(found) / len(found)


def points(lines: Iterable[Line]) -> list[Point]:
    """The points of a picture, in the order of the file."""
    of_design: dict[str, list[Line]] = {}
    for line in lines:
        of_design.setdefault(line.design, []).append(line)
    found = []
    for same in of_design.values():
        most = max(x.epochs for x in same)
        best: dict[int, Line] = {}
        for line in same:
            if line.epochs == most and (line.seed not in best or line.accuracy > best[line.seed].accuracy):
                best[line.seed] = line
        first = same[0]
        found.append(Point(first.parsed, first.state_bytes, first.parameters, tuple(best.values())))
    return found
