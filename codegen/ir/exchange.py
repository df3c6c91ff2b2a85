"""Exchange as an instruction: features made by moving columns among the lanes of a warp.

A warpgroup's product reads its left operand from registers, where four neighbouring lanes hold the sixteen
columns of a row.  Moves among those lanes pair columns up, and what an instruction pairs is said here, by the
coordinates of x̂ = (x, 1): `based_ops/support/exchange.py` has how.  Nothing is lost in it: a product of two
operands, rounded once, is what the program rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .nodes import Binary, Expr, Var, Where, wrap

LANES, EACH = 4, 4
"""Lanes among which columns move, and columns of a row that each of them has."""
WIDTH = LANES * EACH
"""Columns of x that an exchange pairs; those past the layer's own are 0."""
ONE, NOTHING = WIDTH, WIDTH + 1
"""The coordinates of x̂ that are 1 and, in place of a pair, 0."""
Pair = tuple[Expr, Expr]


@dataclass(frozen=True)
class Exchange:
    """An instruction: the columns of x̂ whose product each column of its result is."""

    name: str
    """The function of `based_ops.support.exchange` that does it."""
    columns: int
    pair: Callable[[Expr], Pair]
    """Of a column."""


def _in_lanes(j: Expr) -> Pair:
    """x_c and x_{c ^ r}; r is 0, then 2, 4, ... every 16 columns, one more where c has its highest bit."""
    c, tile = j % WIDTH, j // WIDTH
    bit = Where(tile < 2, c // 2, Where(tile < 4, c // 4, c // 8)) % 2
    return c, Where(tile.equals(0), c, Binary("xor", c, 2 * tile + bit))


def _beside_each_other(j: Expr) -> Pair:
    """x_c x_{c + 1} of even c; then 1, and 0 in the other odd columns; then x itself."""
    c, odd = j % WIDTH, Where(j.equals(1), wrap(ONE), wrap(NOTHING))
    even = (c % 2).equals(0)
    first = Where(even, c, odd)
    return Where(j < WIDTH, first, c), Where(j < WIDTH, Where(even, c + 1, odd), wrap(ONE))


EXCHANGES = (
    Exchange("wide_features", 8 * WIDTH, _in_lanes),
    Exchange("narrow_features", 2 * WIDTH, _beside_each_other),
)
"""Those that there are.  Together they pair every coordinate with every other once."""


def pair_of(place: Expr) -> Pair:
    """The coordinates of the columns of all exchanges, one after the other."""
    first: Expr = wrap(NOTHING)
    second: Expr = wrap(NOTHING)
    start = sum(exchange.columns for exchange in EXCHANGES)
    for exchange in reversed(EXCHANGES):
        stop, start = start, start - exchange.columns
        a, c = exchange.pair(place - start)
        first, second = Where(place < stop, a, first), Where(place < stop, c, second)
    return first, second


@dataclass(frozen=True)
class Exchanged(Expr):
    """The features that an exchange makes of the rows of x; `transposed` makes them ``out[f, i]``."""

    x: Var
    exchange: Exchange
    transposed: bool
