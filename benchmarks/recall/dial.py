"""Which specs fit a budget of state, what a step of them costs, and what recall they had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from based_ops.codegen.spec.model import LayerSpec, dump_yaml
from based_ops.errors import SpecErrors
from based_ops.recall.catalogue import bytes_of
from based_ops.recall.designs import Design
from based_ops.recall.maps import MAPS
from based_ops.recall.results import Point

from ..ops import results as records

FEATURES = (8, 16, 24)
WINDOWS = tuple(2**i for i in range(3, 13))
READ_ONLY = ("sliding_window",)
"""Mixers of which a step reads the state and writes one token of it; others write what they read."""


@dataclass(frozen=True)
class Cost:
    """What a step takes, in milliseconds, and the record from which that follows."""

    ms: float
    measured: bool
    """Whether the record is of this very call; else it lies between others, by bytes."""
    record: str


@dataclass(frozen=True)
class Choice:
    """A layer that fits: the design whose layer under test it is, and its spec."""

    design: Design
    spec: LayerSpec
    state_bytes: int
    """Of one sequence in all heads."""
    recall: Point | None
    cost: Cost | None


def choices(
    most: int,
    width: int,
    heads: int,
    batch: int,
    points: Sequence[Point] = (),
    measured: records.Report | None = None,
) -> list[Choice]:
    """Every spec with values `width` wide whose state is at most so many bytes.

    Those with the best recall, in one head of that width, come first; then others, by bytes.
    """
    known = {x.design: x for x in points}
    found = []
    for design in _designs(width):
        try:
            spec = design.layers()[-1].spec
        except SpecErrors:
            continue  # a width that this mixer does not have
        if spec is None or (size := bytes_of(spec, heads)) > most:
            continue
        found.append(Choice(design, spec, size, known.get(design), cost(spec, heads, batch, measured)))
    return sorted(found, key=_order)


def _order(choice: Choice) -> tuple[float, int, str]:
    recall = -1.0 if choice.recall is None else choice.recall.mean()
    return -recall, -choice.state_bytes, str(choice.design)


def _designs(width: int) -> Iterator[Design]:
    """What there is to choose from."""
    for order, widths in ((2, FEATURES), (1, (8, 16, 32, 64)), (3, (8, 16))):
        yield from (Design.of("based", width, features=n, order=order) for n in widths)
    yield from (Design.of("window", width, window=n) for n in WINDOWS)
    yield from (Design.of("fading", width, features=n) for n in FEATURES)
    yield from (Design.of("delta", width, features=n) for n in FEATURES)
    yield from (Design.of("hybrid", width, features=n, window=w) for n in FEATURES for w in (16, 32, 64))
    yield from (Design.of("map", width, map=name) for name in MAPS if name not in ("power2", "rebased"))
    yield from (
        Design.of("map", width, map=name, features=n) for name in ("power2", "rebased") for n in FEATURES
    )


def cost(spec: LayerSpec, heads: int, batch: int, measured: records.Report | None) -> Cost | None:
    """A step of so many sequences: as it was recorded, or interpolated by bytes between records of its kind.

    Below the smallest of these a step takes as long as it, and above the largest as much longer as it moves
    more.  None without a record of that kind.
    """
    if measured is None:
        return None
    rows, moved = batch * heads, _moved(spec, batch * heads)
    meaning: Any = spec
    near = []
    for line in measured.lines:
        work, own = line.work, line.own
        if work.task != "step" or work.clock == "host" or own is None or _kind(work.spec) != _kind(spec):
            continue
        if work.rows == rows and replace(meaning, name=work.spec.name) == work.spec:
            return Cost(own.ms, True, _named(measured, line))
        near.append((line.bytes, own.ms, line))
    near.sort(key=lambda x: x[:2])
    below = [x for x in near if x[0] <= moved]
    above = [x for x in near if x[0] > moved]
    if not near:
        return None
    if not below:
        return Cost(above[0][1], False, _named(measured, above[0][2]))
    if not above:
        size, ms, line = below[-1]
        return Cost(ms * moved / size, False, _named(measured, line))
    (less, short, one), (more, long, other) = below[-1], above[0]
    ms = short + (long - short) * (moved - less) / (more - less)
    return Cost(ms, False, _named(measured, one, other))


def _kind(spec: LayerSpec) -> tuple[str, str | None]:
    """What two steps must share to cost alike by bytes: the mixer, and how tokens enter its state."""
    return spec.mixer, getattr(spec, "update", None)


def _named(measured: records.Report, *lines: records.Line) -> str:
    rows = " and ".join(str(x.work.rows) for x in lines)
    return f"{lines[0].work.variant}, {rows} rows, {measured.machine['device']}"


def _moved(spec: LayerSpec, rows: int) -> int:
    """Bytes that a step of so many sequences and heads in bfloat16 reads and writes of states at least."""
    state = rows * bytes_of(spec)
    return state // 2 if spec.mixer in READ_ONLY else 2 * state  # a window's ring has two bytes a number


def write(choice: Choice, path: Path) -> None:
    """Writes the spec under the name that the file gives it; raises `SpecErrors` if that is none."""
    from based_ops.codegen.spec.load import parse_spec

    spec: Any = choice.spec
    text = dump_yaml(replace(spec, name=path.stem))
    parse_spec(text, str(path), path.stem)
    path.write_text(text, encoding="utf-8")
