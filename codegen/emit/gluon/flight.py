"""What is on its way: products that nobody has waited for, and shared tiles that products do not see yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

Issued = tuple[Collection[str], str | None]
"""The tiles that a step has to have, and the one of which it begins a product."""


@dataclass(frozen=True)
class Wait:
    """A wait for products, in the order in which they were issued."""

    tiles: tuple[str, ...]
    """Their results, all of which are there after it."""
    last: int
    """The step of the youngest of them."""
    younger: int
    """How many were issued after that, and may stay in flight."""


def waits(steps: Sequence[Issued]) -> dict[int, Wait]:
    """The waits of a round, by the steps before which they stand; before the one past the last for the rest.

    A product is waited for where its result is first read, with as many younger ones left in flight as there
    are.
    """
    issued: list[int] = []
    flying: dict[str, int] = {}
    found: dict[int, Wait] = {}

    def wait(place: int, tiles: Collection[str]) -> None:
        latest = max((flying[tile] for tile in tiles if tile in flying), default=None)
        if latest is None:
            return
        there = tuple(tile for tile, number in flying.items() if number <= latest)
        for tile in there:
            del flying[tile]
        found[place] = Wait(there, issued[latest], len(issued) - 1 - latest)

    for place, (read, product) in enumerate(steps):
        wait(place, read)
        if product is not None:
            flying.pop(product, None)
            flying[product] = len(issued)
            issued.append(place)
    wait(len(steps), tuple(flying))
    return found


Touched = tuple[Collection[str], Collection[str]]
"""The tiles that a step stores, and those that its product reads."""


def shown_after(steps: Sequence[Touched], arrived: Collection[str]) -> dict[int, set[str]]:
    """The steps after which a barrier shows products what lies in memory, and which tiles; -1: before all.

    `arrived` is what lies there at first.  A barrier comes after the last tile that is stored before the
    first product that reads one it has not seen.
    """
    hidden, stored = set(arrived), -1
    found: dict[int, set[str]] = {}
    for place, (stores, reads) in enumerate(steps):
        if hidden & set(reads):
            found[stored] = hidden
            hidden = set()
        if stores:
            hidden |= set(stores)
            stored = place
    return found
