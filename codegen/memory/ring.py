"""A ring of keys: a window that takes one token at a time, the newest in the place of the oldest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

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
    row,
    wrap,
)
from .sums_token import Entering
from .window import B, H
from .window_rows import RowSums


class Sums(Protocol):
    """Sums over the keys that a query attends to."""

    def attend(self, b: Builder, query: Var, keys: Var, values: Var, seen: Var) -> None:
        """Add the keys of a tile that are seen; the values of others are finite."""

    def attend_one(self, b: Builder, query: Var, key: Var, value: Var) -> None:
        """Add a key that is seen."""

    def divided(self) -> Expr:
        """o."""


class Ring:
    """The last `window` keys and values, of which slot p mod `window` has those of place p.

    The token `t` enters: from then on it is read with them, and `store` puts it into its slot when everything
    has been read.  Keys are those of the tensor `k`; the program's index tiles `d` and `u` are their columns
    and those of values.
    """

    u = Var("u")
    tile = "KEYS"
    """The constant that says how many keys are read at once."""

    def __init__(self, b: Builder, window: int, t: Expr, k: str = "k", d: Var | None = None) -> None:
        self.b, self.window, self.k, self.d, self.hands_on = b, window, k, d or Var("d"), False
        self.key, self.meets = self.load("key", k, (B, t, H, self.d), self.d)
        self.value = b.let("value", Load("v", (B, t, H, self.u), ACC))
        tokens = b.let("tokens", Load("position", (B, H), INDEX))
        # Of a group of queries the first has counted the token.
        self.position = b.let("place", tokens - Where(Var(MEMBER) > 0, wrap(1), wrap(0)))
        self.slot = b.let("slot", self.position % self.window)
        self.held: Expr = self.position
        """How many keys before the token's are read, if the ring has room for them."""

    def load(self, name: str, tensor: str, index: tuple[Expr, ...], columns: Expr) -> tuple[Var, Var]:
        """Keys as they are, and as they meet queries; `columns` are the indices of their columns."""
        keys = self.b.let(name, Load(tensor, index, ACC))
        return keys, keys

    def read(self, query: Var, onto: Sums | None = None) -> Expr:
        """o of the token's query; its sums may have begun with other keys."""
        sums: Sums = onto or RowSums.start(self.b)
        sums.attend_one(self.b, query, self.meets, self.value)
        if self.window > 1:
            for keys, values, seen in self._others():
                sums.attend(self.b, query, keys, values, seen)
        return sums.divided()

    def _others(self) -> Iterator[tuple[Var, Var, Var]]:
        """In a loop over all keys but the token's, the oldest first: a tile, its values, and which there are.

        They lie behind the slot into which the token will go.  Windows are mostly powers of two, or these and
        the query's own key: so they are whole tiles, and no slot is read that is about to change.
        """
        b, others = self.b, self.window - 1
        with b.loop("j0", 0, others, self.tile) as j0:
            age = b.let("j", Span(j0, self.tile))
            seen = b.let("seen", (age < others) & (age >= others - self.held))
            behind = b.let("behind", self.slot + 1 + age)
            around = Where(behind < self.window, behind, behind - self.window)
            # Of slots outside of the ring nothing is read.
            slots = b.let("slots_of_tile", Where(seen, around, wrap(self.window)))
            _, keys = self.load("K", f"ring_{self.k}", (B, H, slots, self.d), row(self.d))
            values = b.let("Y", Load("ring_v", (B, H, slots, self.u), ACC))
            yield keys, values, seen

    def leaving(self) -> Entering:
        """What has been in the token's slot until now, and enters another memory."""
        self.hands_on = True
        return Entering("ring_k", "ring_v", (B, H, self.slot), self.position >= self.window)

    def store(self) -> None:
        """Put the token into its slot."""
        b = self.b
        stores = [(f"ring_{self.k}", self.d, self.key), ("ring_v", self.u, self.value)]
        if self.hands_on:  # the values first: before these are overwritten, all that leaves has been read
            stores.reverse()
        for tensor, columns, token in stores:
            b.store(tensor, (B, H, self.slot, columns), Cast(token, IO))
        b.store("position", (B, H), self.position + 1)
