"""What is on its way: products that nobody has waited for, and shared tiles that products do not see yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence


class Flight:
    """Products in the order in which they were issued, by the tiles that they make.

    One is waited for where its result is first read, with as many younger ones left in flight as there are.
    """

    def __init__(self) -> None:
        self._issued = 0
        self._last: dict[str, int] = {}

    def issue(self, tile: str) -> None:
        """One more product, of which a tile is the result."""
        self._issued += 1
        self._last.pop(tile, None)
        self._last[tile] = self._issued

    def wait(self, tiles: Collection[str]) -> str | None:
        """The wait after which these tiles can be read, if there has to be one."""
        latest = max((self._last.get(tile, 0) for tile in tiles), default=0)
        if not latest:
            return None
        done = [tile for tile, number in self._last.items() if number <= latest]
        for tile in done:
            del self._last[tile]
        names = ", ".join(done)
        return f"{names} = warpgroup_mma_wait({self._issued - latest}, [{names}])"

    def wait_for_all(self) -> str | None:
        """The same for all that are in flight."""
        return self.wait(tuple(self._last))


Touched = tuple[Collection[str], Collection[str]]
"""The shared tiles that a step stores, and those that its product reads."""


def shown_after(steps: Sequence[Touched], arrived: Collection[str]) -> set[int]:
    """The steps after which a fence and a barrier show products what lies in shared memory; -1: before all.

    `arrived` is what lies there at first.  A fence comes after the last tile that is stored before the first
    product that reads one it has not seen.
    """
    hidden, stored, found = set(arrived), -1, set()
    for place, (stores, reads) in enumerate(steps):
        if hidden & set(reads):
            found.add(stored)
            hidden = set()
        if stores:
            hidden |= set(stores)
            stored = place
    return found
