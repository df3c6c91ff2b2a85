"""How models of recall are trained and judged: Zoology's settings, and shorter ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import factorial

from .examples import Task
from .long_range import TOKENS, Copying, Delay, Digits, ListOps
from .mqar import Segment
from .pathfinder import Pathfinder
from .words import GROUPS, Words

LENGTH = 1024
"""The longest sequence: what long filters reach over, and at which states are counted."""
DEVIATION = 0.02
"""Of embeddings and linear maps as training begins; of those into the residual stream over √(2 · layers)."""


@dataclass(frozen=True)
class Recipe:
    """AdamW on one segment after the other, in this order every epoch; a cosine to 0, a step an epoch."""

    vocabulary: int
    train: tuple[Task, ...]
    tests: tuple[Task, ...]
    epochs: int
    rates: tuple[float, ...]
    """Learning rates, of which a result has the best."""
    batch: int = 256
    weight_decay: float = 0.1
    """Of all parameters."""
    dropout: float = 0.1
    """Of embeddings."""
    enough: float = 0.99
    """No further epoch for models of which the best has this mean accuracy over the tests."""
    data_seed: int = 0
    """Of the examples, which all models share."""
    betas: tuple[float, float] = field(default=(0.9, 0.999))
    eps: float = 1e-8


ZOOLOGY = Recipe(
    vocabulary=8192,
    train=(
        Segment(64, 4, 100_000),
        Segment(128, 8, 20_000),
        Segment(256, 16, 20_000),
        Segment(256, 32, 20_000),
        Segment(256, 64, 20_000),
    ),
    tests=tuple(
        Segment(length, pairs, 1000)
        for length, pairs in ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (LENGTH, 256))
    ),
    epochs=32,
    rates=(1e-3, 10**-2.5, 1e-2, 10**-1.5),
)
"""Figure 2 of Based (arXiv 2402.18668) as HazyResearch/zoology has it, but for the kinds of numbers."""

SMALL = Recipe(
    vocabulary=64,
    train=(Segment(32, 4, 4096), Segment(64, 8, 4096)),
    tests=(Segment(32, 4, 256), Segment(64, 8, 256), Segment(64, 16, 256)),
    epochs=6,
    rates=(1e-2,),
    batch=64,
)
"""A minute on a CPU."""

WORDS = {
    group: Recipe(
        vocabulary=factorial(GROUPS[group]),
        train=tuple(Words(length, group, 10_000) for length in (4, 8, 16, 32)),
        tests=tuple(Words(length, group, 500) for length in (32, 64, 128, 256)),
        epochs=16,
        rates=(1e-3, 10**-2.5, 1e-2),
        weight_decay=0.01,
        dropout=0.0,
    )
    for group in GROUPS
}
"""Word problems; all tests but the first are longer than anything trained on."""


def _task(vocabulary: int, train: Task, test: Task, epochs: int = 16, batch: int = 64) -> Recipe:
    rates = (1e-3, 10**-2.5, 1e-2)
    return Recipe(vocabulary, (train,), (test,), epochs, rates, batch, weight_decay=0.01, dropout=0.0)


WIDTHS = {
    f"zoology-{length}": Recipe(
        vocabulary=8192,
        train=(Segment(length, pairs, 100_000, quiet=True),),
        tests=(Segment(length, pairs, 3000, quiet=True),),
        epochs=64,
        rates=tuple(10 ** (-4 + 2 * n / 3) for n in range(4)),
        dropout=0.0,
    )
    for length, pairs in ((64, 4), (128, 8), (256, 16))
}
"""Figure 2 of Zoology (arXiv 2312.04927): accuracy against the width of models, a recipe for each length."""

LONG_RANGE = {
    "delay": _task(16, Delay(256, 64, 20_000), Delay(256, 64, 500)),
    "copying": _task(10, Copying(128, 10, 20_000), Copying(128, 10, 500)),
    "selective-copying": _task(10, Copying(256, 10, 20_000, True), Copying(256, 10, 500, True)),
    "listops": _task(len(TOKENS), ListOps(256, 20_000), ListOps(256, 1000)),
    "digits": _task(17, Digits(1437), Digits(360, test=True), epochs=64, batch=32),
    "pathfinder": _task(3, Pathfinder(16, 1, 20_000), Pathfinder(16, 1, 1000)),
}
"""Tasks of long range (`long_range.py`, `pathfinder.py`), each with one test of examples of its own."""

SYNTHETIC = {**WORDS, **LONG_RANGE}
"""Tasks besides recall."""


def _brief(name: str, epochs: int, train: tuple[Task, ...], *tests: Task, batch: int = 64) -> Recipe:
    return replace(SYNTHETIC[name], epochs=epochs, train=train, tests=tests, batch=batch, rates=(1e-2,))


BRIEF = {
    **{
        group: _brief(
            group,
            4,
            tuple(Words(length, group, 1000) for length in (8, 16)),
            *(Words(length, group, 100) for length in (16, 32, 64, 128)),
            batch=32,
        )
        for group in WORDS
    },
    "delay": _brief("delay", 4, (Delay(128, 64, 2000),), Delay(128, 64, 200)),
    "copying": _brief("copying", 4, (Copying(64, 10, 2000),), Copying(64, 10, 200)),
    "selective-copying": _brief(
        "selective-copying", 4, (Copying(64, 10, 2000, True),), Copying(64, 10, 200, True)
    ),
    "listops": _brief("listops", 4, (ListOps(64, 2000),), ListOps(64, 500)),
    "digits": _brief("digits", 8, (Digits(1437),), Digits(360, test=True)),
    "pathfinder": _brief("pathfinder", 4, (Pathfinder(12, 0, 2000),), Pathfinder(12, 0, 500)),
}
"""The same tasks, shorter and with fewer examples: half a minute or so a model on one core of a CPU."""
RECIPES = {
    "zoology": ZOOLOGY,
    "small": SMALL,
    **WIDTHS,
    **SYNTHETIC,
    **{f"{name}-quick": recipe for name, recipe in BRIEF.items()},
}
"""By name."""

QUICK = ("based d=32 features=8", "attention d=32", "window d=32 window=8", "mamba2 d=32 state=8 head=32")
"""Points of `SMALL`."""
