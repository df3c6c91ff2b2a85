"""The highest score in the window of a query, and which key has it."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.nodes import ACC, OPERAND, Cast, Dot, Expr, Full, Load, Max, Var, Where, column, row, wrap
from .states import B, H
from .window import LEAST, Window, score


@dataclass(frozen=True)
class Highest:
    """The highest score of each of a tile of queries so far, and how many tokens before it that key is.

    Ages are numbers like scores: they are less than a window, and so exact.
    """

    window: Window
    top: Var
    age: Var

    @staticmethod
    def start(window: Window) -> Highest:
        """Before any key."""
        b = window.b
        top, age = b.let("top", Full(("CHUNK",), LEAST)), b.let("age", Full(("CHUNK",), 0.0))
        return Highest(window, top, age)

    def look(self, products: Var, visible: Var, t: Var, j: Var) -> None:
        """Go on with a tile of younger keys; of several that are the highest it is the oldest."""
        b = self.window.b
        scores = b.let("scores_near", score(self.window.logits.of(products), visible))
        tile_top = b.let("tile_top", Max(scores, 1))
        at_top = visible & scores.equals(column(tile_top))
        tile_age = b.let("tile_age", Max(b.let("ages", Where(at_top, self._ages(t, j), wrap(0.0))), 1))
        higher = b.let("higher", tile_top > self.top)
        b.set(self.age, Where(higher, tile_age, self.age))
        b.set(self.top, Where(higher, tile_top, self.top))

    def take(self, shift: Var, dq: Var, t: Var, j: Var) -> None:
        """Take from dq what the highest of a tile of keys make of a `shift` of their dS."""
        b, memory = self.window.b, self.window
        keys = b.let("K_highest", Load(memory.k, (B, j, H, memory.d), OPERAND))
        at_top = b.let("at_top", self._ages(t, j).equals(column(self.age)))
        by_product = b.let("dR_highest", Cast(Where(at_top, -column(shift), wrap(0.0)), OPERAND))
        b.add(dq, Dot(by_product, keys, among=at_top))

    def _ages(self, t: Var, j: Var) -> Expr:
        """How many tokens before the place of a query each key is, with a row a query."""
        return Cast(column(self.window.place(t)) - row(j), ACC)
