"""What training found, as data, and its tables."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..ops.results import _json

METHOD = (
    "Quality: each model is trained on the same sequences of bytes in the same order for a seed, and "
    "asked for held out text; bits a byte. Hits end a run of six bytes that stood earlier in the same "
    "sequence and that the training text has at most 1250 times. Fields: the part of questions about "
    "packages and manual pages that are answered, greedily. Of learning rates the best on average counts."
    " Speed: random tokens, whole steps of the optimiser, after warm-up; utilisation counts products that"
    " the model takes at least (based_ops/train/flops.py) over the rate that the device is stated to "
    "have."
)


@dataclass(frozen=True)
class Quality:
    """A model to be trained."""

    model: str
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.model} lr {self.lr:g} seed {self.seed}"


@dataclass(frozen=True)
class Speed:
    """A model whose steps are to be timed."""

    model: str
    batch: int
    length: int
    compiled: bool

    def __str__(self) -> str:
        way = "each block compiled" if self.compiled else "as PyTorch runs it"
        return f"{self.model} B{self.batch} T{self.length}, {way}"


Point = Quality | Speed


@dataclass(frozen=True)
class Line:
    """What was found of a point; what it has none of is None."""

    point: Point
    weights: int
    tokens: int
    """Trained on, or of the steps that were timed."""
    seconds: float
    tokens_per_second: float
    utilisation: float | None
    bits: float | None = None
    """A byte of held out text."""
    hits: float | None = None
    """The same of recall hits alone, and of all other bytes."""
    others: float | None = None
    hit_share: float | None = None
    fields: float | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Report:
    """A run: where, on which text and by which recipe, the lines, and what failed."""

    machine: dict[str, Any]
    recipe: dict[str, Any]
    lines: list[Line]
    missing: dict[str, str]

    def write(self, path: Path) -> None:
        """Writes JSON; a reader finds the old file or the new one."""
        lines = [{**asdict(x), "kind": type(x.point).__name__} for x in self.lines]
        document = {"task": "train", "method": METHOD, **asdict(self), "lines": lines}
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(_json(document), encoding="utf-8")
        temporary.replace(path)


def read(path: Path) -> Report:
    """The report in a JSON file; `ValueError` if the file holds none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["task"] != "train":
            raise KeyError("train")
        lines = [_line(dict(x)) for x in document["lines"]]
        return Report(document["machine"], document["recipe"], lines, document["missing"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of `bench train`: {error!r}") from error


def is_one(path: Path) -> bool:
    """Whether a file holds such a report."""
    return '\n"task": "train"' in path.read_text(encoding="utf-8")


def _line(data: dict[str, Any]) -> Line:
    kind = {"Quality": Quality, "Speed": Speed}[data.pop("kind")]
    return Line(**{**data, "point": kind(**data["point"])})


QUALITY = (
    "model",
    "weights",
    "bits a byte",
    "hits",
    "others",
    "fields",
    "tokens/s",
    "learning rate",
    "seeds",
)
SPEED = ("model", "weights", "batch", "tokens", "way", "tokens/s", "utilisation", "GB")


def quality_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """A row for each model, best first: means over seeds, and how far these spread."""
    found: dict[str, dict[float, list[Line]]] = {}
    for line in report.lines:
        if isinstance(line.point, Quality):
            found.setdefault(line.point.model, {}).setdefault(line.point.lr, []).append(line)
    best = {
        model: min(rates.values(), key=lambda x: _mean(y.bits for y in x)) for model, rates in found.items()
    }
    for model, lines in sorted(best.items(), key=lambda x: _mean(y.bits for y in x[1])):
        yield (
            model,
            f"{lines[0].weights:,}",
            *(_spread([getattr(x, part) for x in lines]) for part in ("bits", "hits", "others", "fields")),
            f"{_mean(x.tokens_per_second for x in lines):,.0f}",
            f"{lines[0].point.lr:g}",  # type: ignore[union-attr]
            str(len(lines)),
        )


def speed_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """A row for each model and way, fastest first."""
    lines = [x for x in report.lines if isinstance(x.point, Speed)]
    for line in sorted(lines, key=lambda x: -x.tokens_per_second):
        point: Any = line.point
        yield (
            point.model,
            f"{line.weights:,}",
            str(point.batch),
            str(point.length),
            "blocks compiled" if point.compiled else "eager",
            f"{line.tokens_per_second:,.0f}",
            "-" if line.utilisation is None else f"{100 * line.utilisation:.1f} %",
            "-" if line.memory_gb is None else f"{line.memory_gb:.1f}",
        )


def report_table(report: Report) -> str:
    """Both tables as Markdown, with what was measured where."""
    recipe = ", ".join(f"{key} {value}" for key, value in report.recipe.items())
    known = report.machine
    where = [
        known.get("device", ""),
        known.get("date", ""),
        *(f"{x} {known.get(x)}" for x in ("torch", "triton")),
    ]
    head = f"{', '.join(where)}; {recipe}."
    parts = [head]
    for columns, rows in ((QUALITY, list(quality_rows(report))), (SPEED, list(speed_rows(report)))):
        if rows:
            parts += ["", _row(columns), _row(["---"] * len(columns)), *map(_row, rows)]
    return "\n".join(parts) + "\n"


def _mean(values: Iterable[float | None]) -> float:
    known = [x for x in values if x is not None]
    return statistics.fmean(known) if known else math.inf


def _bits(lines: Iterable[Line]) -> float:
    return _mean(x.bits for x in lines)


def _spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; of one seed there is none."""
    known = [x for x in values if x is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{spread}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
