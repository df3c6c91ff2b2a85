"""Sums of features whose values are corrected before they enter: the memory of the delta rule.

`lower/delta.py` has the mathematics and the names.
"""

from __future__ import annotations

from ..ir.nodes import ACC, OPERAND, Cast, Dot, Expr, Full, Load, Span, Transpose, Var, column, row, wrap
from .fade import pairs
from .states import B, Block, H, State
from .sums import Answer, Sums


class Corrected(Sums):
    """The memory of one program; tiles of tokens have CHUNK rows."""

    def rate(self, t: Var) -> Var:
        """β over what a key of length 1 weighs for itself; 0 past the end of the sequence."""
        given = self.b.let("beta_given", Load("beta", (B, t, H), ACC))
        return self.b.let("rate", given / self.features.kernel(wrap(1.0)))

    def pulls(self, keys: Var, log: Var | None) -> Var:
        """W of a tile of keys."""
        b = self.b
        products = b.let("R", Dot(keys, Transpose(keys)))
        place = b.let("place", Span(wrap(0), "CHUNK"))
        earlier = b.let("earlier", column(place) > row(place))
        logs = (log, log)
        return b.let("W", self._weights(products, earlier, kept=pairs(logs)))

    def scaled_keys(self, t: Var) -> Var:
        """A tile of keys that have the scale in them, as queries do."""
        return self.features.load_scaled(self.b, "K_scaled", "k", (B, t, H, self.d), self.sequence)

    def inverse(self, t: Var) -> Var:
        """The rows of an inverse that was kept, ``[tokens, tokens]``."""
        place = self.b.let("place", Span(wrap(0), "CHUNK"))
        return self.b.let("inverse_rows", Load("inverse", (B, t, H, place), OPERAND))

    def read_scaled(
        self, answer: Answer, scaled: Var, block: Block, weight: Var | None, state: State
    ) -> None:
        """Add what a state gives to keys or queries that have the scale in them."""
        plain = self.features.features(self.b, "P", scaled, block.selection, weight)
        self.read(answer, plain, state)

    def give(self, onto: Var, keys: Var, queries: Var, gradients: Var, log: Var | None) -> None:
        """Add what later queries of a tile owe to the values of its keys: Σ_{i ≥ j} A_ij g_i."""
        b = self.b
        products = b.let("R", Dot(keys, Transpose(queries)))
        place = b.let("place", Span(wrap(0), "CHUNK"))
        seen = b.let("seen", column(place) <= row(place))
        kept = pairs((log, log), by_key=True)
        weights = b.let("A", Cast(self._weights(products, seen, kept=kept), OPERAND))
        b.add(onto, Dot(weights, gradients, among=seen))

    def minus(self, name: str, value: Expr) -> Var:
        """The negative of a tile, as an operand."""
        return self.b.let(name, Cast(-value, OPERAND))

    def load_values(self, t: Var) -> Load:
        """Corrected values of a tile of tokens."""
        return Load("v", (B, t, H, self.u), OPERAND)

    def owed_too(self) -> Var | None:
        """What a tile of tokens owes to G besides `owed`, as it grows."""
        return self.b.let("owed_too", Full(("CHUNK",), 0.0)) if self.fade else None
