"""How a memory fades: what entered with token j is exp(G_i − G_j) of itself after token i.

G is the running sum of the decays g ≤ 0, logarithms of what one token leaves; here to the base 2, of which a
GPU has exponentials.  A *moment* is what G is before a token.  Only differences of G become exponents: G
itself may be so large, and so small its inverse, that neither has digits left.  So it is WIDE, and
differences are rounded.  A program that goes through a sequence token by token, or tile by tile, needs no G:
it sums the decays of its own tile.
"""

from __future__ import annotations

from ..dtypes import ACC, WIDE
from ..ir.build import Builder
from ..ir.nodes import (
    Binary,
    Cast,
    Const,
    Expr,
    Full,
    Load,
    RunningSum,
    Sum,
    Var,
    Where,
    column,
    maximum,
    minimum,
    row,
    wrap,
)
from ..ir.program import Tensor
from .states import LOG2_E, B, H, left

LEAST = -1000.0
"""A decay that leaves nothing, in float64 either; differences of -inf would be NaN."""
NEVER = -1e30
"""G past the end of a sequence: of what is there, nothing is left."""

START = Const(0)
"""Where a sequence begins that has a tensor's tokens to itself."""


def decay(b: Builder, name: str, place: tuple[Expr, ...]) -> Var:
    """g to the base 2, one number or a tile; not below `LEAST`."""
    given = b.let(f"{name}_given", Load("log_decay", place, ACC))
    return b.let(name, Binary("max_or_nan", given, wrap(LEAST)) * LOG2_E)


class OfHeads:
    """One decay a head: G is a multiple of it, and a moment the index of a token."""

    tensors = (Tensor("log_decay", ("H",), ACC),)
    """What a program over a sequence reads of it."""

    def __init__(self, b: Builder, begin: Expr = START) -> None:
        self.b = b
        self.g = decay(b, "decay", (H,))

    @staticmethod
    def place(t: Expr) -> tuple[Expr, ...]:
        """Where the decay of one token is in what a call gives."""
        return (H,)

    def moment(self, name: str, t: Expr) -> Expr:
        """The moment before a token."""
        return t

    def since(self, name: str, t: Var, moment: Expr) -> Var:
        """For each token of a tile, G after it as seen from a moment."""
        return self.b.let(name, Cast(t - moment + 1, ACC) * self.g)

    def between(self, name: str, earlier: Expr, later: Expr) -> Var:
        """How G changes from one moment to another."""
        return self.b.let(name, Cast(later - earlier, ACC) * self.g)

    def of_tile(self, name: str, t: Var, first: Expr, stop: Expr) -> tuple[Var, Var]:
        """G after each token of a tile, and at its `stop`, as seen from before the tile, which is `first`."""
        return self.since(name, t, first), self.between(f"{name}_end", first, stop)

    def of_token(self, name: str, t: Expr, stop: Expr) -> Var:
        """How G changes with a token; at the `stop` of a sequence it does not."""
        return self.between(name, minimum(t, stop), minimum(t + 1, stop))


class OfTokens:
    """A decay for each token of each head: G is kept in a tensor."""

    tensors = (Tensor("running_decay", ("B", "H", "T"), WIDE),)

    def __init__(self, b: Builder, begin: Expr = START) -> None:
        self.b, self.begin = b, begin

    @staticmethod
    def place(t: Expr) -> tuple[Expr, ...]:
        return (B, t, H)

    def moment(self, name: str, t: Expr) -> Expr:
        before = self.b.let(f"{name}_before", Load("running_decay", (B, H, maximum(t - 1, 0)), WIDE))
        return self.b.let(name, Where(t > self.begin, before, Full((), 0.0, WIDE)))

    def since(self, name: str, t: Var, moment: Expr) -> Var:
        after = self.b.let(f"{name}_wide", Load("running_decay", (B, H, t), WIDE, fill=NEVER))
        return self.b.let(name, Cast(after - moment, ACC))

    def between(self, name: str, earlier: Expr, later: Expr) -> Var:
        return self.b.let(name, Cast(later - earlier, ACC))

    def of_tile(self, name: str, t: Var, first: Expr, stop: Expr) -> tuple[Var, Var]:
        b = self.b
        own = decay(b, f"{name}_own", (B, t, H))
        return b.let(name, RunningSum(own)), b.let(f"{name}_end", Sum(own, 0))

    def of_token(self, name: str, t: Expr, stop: Expr) -> Var:
        own = decay(self.b, f"{name}_own", (B, minimum(t, stop - 1), H))
        return self.b.let(name, Where(t < stop, own, wrap(0.0)))


Fade = OfHeads | OfTokens
FADES: dict[str, type[Fade]] = {"head": OfHeads, "token": OfTokens}


Logs = tuple[Var | None, Var | None] | None
"""G after the queries and after the keys of a tile of pairs, as seen from one moment."""


def pairs(logs: Logs, by_key: bool = False) -> Expr | None:
    """What is left of each key at each query, [queries, keys], or swapped; None where nothing fades."""
    later, earlier = logs or (None, None)
    if later is None or earlier is None:
        return None
    return left(row(later) - column(earlier)) if by_key else left(column(later) - row(earlier))
