"""A ring of keys: a window that takes one token at a time, the newest in the place of the oldest."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.build import Builder
from ..ir.heads import MEMBER
from ..ir.nodes import (
    ACC,
    INDEX,
    IO,
    Cast,
    Expr,
    Load,
    Span,
    Var,
    Where,
    column,
    row,
    wrap,
)
from .window import B, H
from .window_rows import RowSums


class Ring:
    """The last `window` keys and values, of which slot p mod `window` has those of place p.

    The token `t` enters: from then on it is read with them, and `store` puts it into its slot when everything
    has been read.  The program's index tiles `d` and `u` are the columns of keys and of values.
    """

    d, u = Var("d"), Var("u")

    def __init__(self, b: Builder, window: int, t: Expr) -> None:
        self.b, self.window = b, window
        self.key = b.let("key", Load("k", (B, t, H, self.d), ACC))
        self.value = b.let("value", Load("v", (B, t, H, self.u), ACC))
        tokens = b.let("tokens", Load("position", (B, H), INDEX))
        # Of a group of queries the first has counted the token.
        self.position = b.let("place", tokens - Where(Var(MEMBER) > 0, wrap(1), wrap(0)))
        self.slot = b.let("slot", self.position % self.window)

    def read(self, query: Var) -> Expr:
        """o of the token's query."""
        sums = RowSums.start(self.b)
        for keys, values, seen in self._tiles():
            sums.attend(self.b, query, keys, values, self.b.let("seen", seen))
        return sums.divided()

    def _tiles(self) -> Iterator[tuple[Var, Var, Expr]]:
        """In a loop over the slots, the keys of a tile, their values, and which of them there are."""
        b = self.b
        with b.loop("j0", 0, self.window, "KEYS") as j0:
            j = b.let("j", Span(j0, "KEYS"))
            old_keys = b.let("old_K", Load("ring_k", (B, H, j, self.d), ACC))
            old_values = b.let("old_Y", Load("ring_v", (B, H, j, self.u), ACC))
            b.comment(
                "The new token's slot is read from registers, not from the memory that is about to change."
            )
            is_new = column(j.equals(self.slot))
            keys = b.let("K", Where(is_new, row(self.key), old_keys))
            values = b.let("Y", Where(is_new, row(self.value), old_values))
            yield keys, values, (j <= self.position) & (j < self.window)

    def store(self) -> None:
        """Put the token into its slot."""
        b = self.b
        b.store("ring_k", (B, H, self.slot, self.d), Cast(self.key, IO))
        b.store("ring_v", (B, H, self.slot, self.u), Cast(self.value, IO))
        b.store("position", (B, H), self.position + 1)
