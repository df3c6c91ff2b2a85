"""What the papers say of the picture, judged by the points that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from based_ops.recall.mqar import Segment, draw
from based_ops.recall.recipe import ZOOLOGY
from based_ops.recall.results import Point

LARGEST = (1024, 256)
"""The test of figure 3, by length and pairs."""
SOLVED, GOAL = 0.98, 0.98
WIDEST = 256
"""The width of the figure's largest models."""
LUCK = 0.05
"""How far above what it sees a window may come, by guessing among what it saw of other examples."""
EQUAL = 1.03
"""How many times as many bytes count as equal: a normaliser more or less."""
CONVOLVED = 3
"""Tokens before a key's value that a convolution of three taps brings into reach of a window."""


@dataclass(frozen=True)
class Claim:
    """A sentence, whether it holds (None: no points to judge it by), and by what that was seen."""

    says: str
    holds: bool | None
    because: str


def claims(points: Sequence[Point]) -> list[Claim]:
    """All of them."""
    return [
        _attention(points),
        _windows(points),
        *(_above(points, name) for name in ("window", "sinks", "mamba2", "mamba", "gla", "hyena", "h3")),
        _large_end(points),
        *(_frontier(points, name) for name in ("pos_elu", "relu")),
    ]


def winners(points: Sequence[Point]) -> list[str]:
    """Where another model is above every Based of as many bytes or fewer."""
    found = []
    for point in points:
        if point.design.model in ("based", "attention"):
            continue
        best = _best(points, "based", point.state_bytes)
        if best is not None and point.mean() > best.mean():
            found.append(f"{_named(point)} is above {_named(best)}")
    return found


def visible(test: tuple[int, int], window: int, examples: int = 500) -> float:
    """Of a test's queries, the part whose key and value lie in the window, or a convolution before it."""
    length, pairs = test
    places = draw(Segment(length, pairs, examples), ZOOLOGY.vocabulary, 0).places
    keys = 2 * (places * 0 + 1).cumsum(1) - 1  # where the values stand
    return float((places - keys < window + CONVOLVED).double().mean())


def _named(point: Point) -> str:
    return f"{point.design} ({point.state_bytes / 1000:.1f} kB: {point.mean():.3f})"


def _of(points: Sequence[Point], model: str) -> list[Point]:
    return [x for x in points if x.design.model == model]


def _best(points: Sequence[Point], model: str, most: int) -> Point | None:
    """The best of a kind with so many bytes or fewer."""
    found = [x for x in _of(points, model) if x.state_bytes <= EQUAL * most]
    return max(found, key=lambda x: x.mean(), default=None)


def _attention(points: Sequence[Point]) -> Claim:
    found = _of(points, "attention")
    worst = min(found, key=lambda x: x.mean(), default=None)
    holds = None if worst is None else worst.mean() >= SOLVED
    return Claim("attention solves everything", holds, "" if worst is None else _named(worst))


def _windows(points: Sequence[Point]) -> Claim:
    over = []
    found = _of(points, "window")
    for point in found:
        width = int(dict(point.design.dials)["window"])
        for test in point.lines[0].accuracies:
            most = visible(test, width)
            if point.mean(test) > most + LUCK:
                over.append(f"{point.design} at {test}: {point.mean(test):.2f}, sees {most:.2f}")
    holds = not over if found else None
    return Claim("windows fail beyond their width", holds, "; ".join(over) or f"{len(found)} windows")


def _above(points: Sequence[Point], other: str) -> Claim:
    """Whether each of the others is below the best Based of no more bytes."""
    judged = [(x, best) for x in _of(points, other) if (best := _best(points, "based", x.state_bytes))]
    lost = [f"{_named(x)} against {_named(best)}" for x, best in judged if x.mean() >= best.mean()]
    because = "; ".join(lost) or f"{len(judged)} compared"
    return Claim(f"Based is above {other} at equal bytes", not lost if judged else None, because)


def _large_end(points: Sequence[Point]) -> Claim:
    wide = [x for x in _of(points, "based") if x.design.d_model >= WIDEST]
    found = [x for x in wide if LARGEST in x.lines[0].accuracies]
    best = max(found, key=lambda x: x.mean(LARGEST), default=None)
    holds = None if best is None else best.mean(LARGEST) >= GOAL
    because = "" if best is None else f"{best.design}: {best.mean(LARGEST):.3f}"
    return Claim(f"Based reaches {GOAL} at 256 pairs, {WIDEST} wide", holds, because)


def _frontier(points: Sequence[Point], name: str) -> Claim:
    """Whether at some size no other elementwise map of no more bytes is above it by more than `LUCK`."""
    maps = _of(points, "map")
    own = [x for x in maps if dict(x.design.dials)["map"] == name]
    near = [
        x
        for x in own
        if not any(y.state_bytes <= x.state_bytes and y.mean(LARGEST) > x.mean(LARGEST) + LUCK for y in maps)
    ]
    holds = bool(near) if own and len(own) < len(maps) else None
    return Claim(f"{name} is at or near the frontier of the maps", holds, "; ".join(map(_named, near or own)))
