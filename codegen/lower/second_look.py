"""A second look at what a product with zeros may have spoilt.

A tile of weights is 0 for the pairs that do not meet: later keys, keys outside a window.  A matrix unit
multiplies by those zeros all the same, and 0 · NaN is NaN: so one value that is not finite would reach every
row of its tile, earlier tokens among them.  Nothing is done about that beforehand, since it would cost time
in every tile.  Instead a program sums up what it has whether anything is not finite, and only then does its
rows again, with selects in place of products: `memory/sums_singles.py`, `sums_walk.py` and `window_rows.py`.

What they find is stored where the first look has left something that is not finite.  What is finite has met
nothing else, and keeps its bits: sums by selects add up in another order than products do.

Their loops are not nested, and their bodies short.  Registers are shared out by how deep a loop lies, as if
it ran: a loop inside of a loop, though it hardly ever runs, would take them from the program's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..ir.build import Builder
from ..ir.nodes import ACC, IO, Cast, Doubt, Expr, Full, Load, Sum, Unary, Var, Where


def doubt_of(b: Builder, *tiles: Var, onto: Var | None = None) -> Var:
    """Something that is not 0 if an element of the matrices `tiles` is not finite, or if `onto` is not 0.

    It is worth asking as soon as a tile is done: one that is asked about later is kept until then.
    """
    doubt = b.let("doubt", Full((), 0.0)) if onto is None else onto
    for tile in tiles:
        nothing = b.let(f"nothing_{tile.name}", Unary("nothing", tile))
        b.add(doubt, Sum(b.let(f"nothing_of_rows_{tile.name}", Sum(nothing, 1)), 0))
    return doubt


@contextmanager
def second_look(b: Builder, doubt: Var) -> Iterator[None]:
    """Statements that run if there is doubt."""
    with b.when(Doubt(doubt)):
        yield


def mended(b: Builder, tensor: str, index: tuple[Expr, ...], value: Expr) -> Expr:
    """What a second look stores: `value` where what the first has stored there is not finite."""
    first = b.let(f"{tensor}_at_first", Load(tensor, index, ACC))
    return Cast(Where(Unary("nothing", first).equals(0.0), first, value), IO)


def mend(b: Builder, tensor: str, index: tuple[Expr, ...], value: Expr) -> None:
    """Store that."""
    b.store(tensor, index, mended(b, tensor, index, value))
