"""What a run found, as data: `Report` and its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..ops.measure import Ceilings
from ..ops.results import _json, machine
from .points import Point

PACKAGES = ("transformers", "flash-linear-attention")
METHOD = (
    "Weights are drawn, of the dtype of the ceilings. A step ends in the likeliest token, which the next "
    "one reads; graph: the whole of it is one CUDA graph; blocks: torch.compile makes each block, whole: "
    "all as one. Attention is PyTorch's flash kernel; cudnn: cuDNN's. ms is that of one call among many in "
    "a row. Of a model whose states are constant a step is timed after a prompt; of others at three "
    "lengths, the first, the middle and the last of the new tokens, with caches exactly that long, so that "
    "nothing is masked; ms is Simpson's mean of them. The largest batch is what memory holds at the last "
    "token. Prompts end in the logits of the last token. limit_ms: weights and states over the copy "
    "bandwidth, or products over the rate of products, whichever is longer (benchmarks/models/cost.py)."
)


@dataclass(frozen=True)
class Line:
    """The time of one point: of a step for the whole batch, or of its prompts."""

    point: Point
    batch: int
    """The number, where the point asks for the largest."""
    parameters: int
    ms: float
    tokens_per_second: float
    """Generated, or read."""
    bytes: float
    flops: float
    limit_ms: float
    state_mb: float
    """Of the batch, at the end."""
    at: dict[str, float]
    """Milliseconds by the number of tokens that a sequence has."""
    constant: bool = False
    """Whether it is the same after every prompt."""

    @property
    def percent(self) -> float:
        """Of the limit."""
        return 100 * self.limit_ms / self.ms


@dataclass(frozen=True)
class Missing:
    """A point without a time, and why."""

    point: Point
    reason: str
    final: bool
    """Whether measuring again would be in vain: it does not fit, or what it needs is not installed."""


@dataclass(frozen=True)
class Report:
    """A run: where, with what, the ceilings, the lines, what failed, and what it did not come to."""

    task: str
    machine: dict[str, Any]
    ceilings: Ceilings
    lines: list[Line]
    missing: list[Missing]
    not_measured: list[str]
    seconds: float

    def write(self, path: Path) -> None:
        """Writes JSON; a reader finds the old file or the new one."""
        lines = [{**asdict(x), "percent": x.percent} for x in self.lines]
        document = {"method": METHOD, **asdict(self), "lines": lines}
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(_json(document), encoding="utf-8")
        temporary.replace(path)

    def best(self, model: str, prompt: int, batch: int | None = None) -> Line | None:
        """The line of most tokens a second of a model, at a batch if one is named.

        A model of constant states generates alike after all prompts: those of its lines count for each.
        """
        found = [
            line
            for line in self.lines
            if line.point.model == model
            and (line.constant or line.point.prompt == prompt)
            and batch in (None, line.batch)
        ]
        return max(found, key=lambda line: line.tokens_per_second, default=None)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(line.point.model for line in self.lines))

    @property
    def prompts(self) -> list[int]:
        return sorted({line.point.prompt for line in self.lines})


def is_one(path: Path) -> bool:
    """Whether a file holds such a report, and not one of operators."""
    return '\n"task": ' in path.read_text(encoding="utf-8")


def read(path: Path) -> Report:
    """The report in a JSON file; `ValueError` if the file holds none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Report(
            document["task"],
            document["machine"],
            Ceilings(**document["ceilings"]),
            [_line(x) for x in document["lines"]],
            [Missing(**{**x, "point": Point(**x["point"])}) for x in document["missing"]],
            document["not_measured"],
            document["seconds"],
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of `bench generate` or `bench prefill`: {error!r}") from error


def _line(data: dict[str, Any]) -> Line:
    fields = {key: value for key, value in data.items() if key != "percent"}
    return Line(**{**fields, "point": Point(**data["point"])})


def here(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    about = machine(device)
    for package in PACKAGES:
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = None
    return about


COLUMNS = ("model", "batch", "prompt", "way", "ms", "limit ms", "% of limit", "tokens/s", "state MB")
WIDTHS = (16, 6, 6, 13, 8, 8, 10, 9, 9)


def cells(line: Line) -> list[str]:
    """A line as a row of a table."""
    numbers = f"{line.ms:.3f}", f"{line.limit_ms:.3f}", f"{line.percent:.0f}", f"{line.tokens_per_second:.0f}"
    point = line.point
    return [point.model, str(line.batch), str(point.prompt), point.way, *numbers, f"{line.state_mb:.2f}"]


def summary(report: Report) -> Iterable[str]:
    """Best against best, and the same batch, for each length of prompts."""
    for prompt in report.prompts:
        best = {x: line for x in report.models if (line := report.best(x, prompt))}
        if len(best) < 2:
            continue
        first, *others = sorted(best.values(), key=lambda line: -line.tokens_per_second)
        text = [
            f"{line.point.model} {line.tokens_per_second:.0f} (B{line.batch})" for line in (first, *others)
        ]
        yield f"prompt {prompt}, tokens/s, each at its best batch: {', '.join(text)}"
        yield from _equal(report, prompt, list(best))


def _equal(report: Report, prompt: int, models: Sequence[str]) -> Iterable[str]:
    one, *others = models
    for other in others:
        for batch in sorted({line.batch for line in report.lines}):
            a, b = report.best(one, prompt, batch), report.best(other, prompt, batch)
            if a and b:
                ratio = a.tokens_per_second / b.tokens_per_second
                yield f"prompt {prompt}, batch {batch}: {one} is {ratio:.2f} times as fast as {other}"
