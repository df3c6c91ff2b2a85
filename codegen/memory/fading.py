"""What the tokens of a memory that fades need: logarithms of what is left, and tiles by what is left of them.

Everything is None, and nothing happens, where the memory does not fade.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import Expr, Full, Var, Where, column, wrap
from ..lower.sequence import Sequence
from .fade import Fade
from .states import left


class Fading:
    """The decay of one program's memory, as far as its tiles of tokens go."""

    def __init__(self, b: Builder, sequence: Sequence, fade: Fade | None) -> None:
        self.b, self.sequence, self.fade = b, sequence, fade

    def moment(self, name: str, t: Expr) -> Expr | None:
        """The moment before a token."""
        return self.fade.moment(name, t) if self.fade else None

    def since(self, name: str, t: Var, moment: Expr | None) -> Var | None:
        """The logarithms of what is left, after each token of a tile, of what was there at a moment."""
        return self.fade.since(name, t, moment) if self.fade and moment else None

    def between(self, name: str, earlier: Expr | None, later: Expr | None) -> Var | None:
        """The logarithm of what is left from one moment to another."""
        return self.fade.between(name, earlier, later) if self.fade and earlier and later else None

    def of_tile(self, name: str, t: Var, first: Expr, stop: Expr) -> tuple[Var | None, Var | None]:
        """The logarithms of what is left of what was before a tile: after each token, and at its `stop`."""
        return self.fade.of_tile(name, t, first, stop) if self.fade else (None, None)

    def of_token(self, name: str, t: Expr, stop: Expr) -> Var | None:
        """The logarithm of what one token leaves; at the `stop` of the sequence there is none."""
        return self.fade.of_token(name, t, stop) if self.fade else None

    def until(self, name: str, t: Var, log: Var | None, end: Var | None) -> Var | None:
        """What is left of the tokens of a tile at its end; nothing of those past the sequence.

        `log` and `end` are as seen from one moment.
        """
        return self._there(name, t, end - log) if log and end else None

    def left_of_tile(self, name: str, t: Var, log: Var | None, later: bool) -> Var | None:
        """What is left of the tokens of a tile at a `later` moment, from which they are seen; or at them."""
        return self._there(name, t, log if later else -log) if log else None

    def _there(self, name: str, t: Var, log: Expr) -> Var:
        return self.b.let(name, Where(self.sequence.holds(t), left(log), wrap(0.0)))

    def fade_rows(self, tile: Var, log: Var | None) -> None:
        """What is left of what the tokens of a matrix's rows have got from a state."""
        if log:
            self.b.set(tile, tile * column(left(log)))

    def owed(self) -> Var | None:
        """What a tile of tokens owes to G, as it grows."""
        return self.b.let("owed", Full(("CHUNK",), 0.0)) if self.fade else None

    def fade_got(self, tiles: tuple[Var, ...], numbers: Var | None, log: Var | None) -> None:
        """The same of several matrices, and of a vector, if there is one."""
        if numbers and log:
            self.b.set(numbers, numbers * left(log))
        for tile in tiles:
            self.fade_rows(tile, log)
