"""Each part on a tile of tokens: what it makes, and the adjoint of that.

`through` is a function of a part; a new one is registered with it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ..dtypes import ACC
from ..ir.nodes import (
    INDEX,
    Cast,
    Expr,
    Load,
    Unary,
    column,
    row,
)
from ..lower.expression import Function
from ..spec.parts import (
    Affine,
    Branches,
    Mapped,
    Part,
    Positions,
    Signs,
)
from .pieces import BATCH, TOKENS, Adjoint, Notes, NoTile, Piece, Pieces, added, padded, placed

NUMBERED = "NUMBERED"
"""The flag under which tokens have other numbers than their places."""

Made = tuple[Pieces, Adjoint]


def pipeline(parts: Sequence[Part], notes: Notes, x: Pieces) -> Made:
    """Parts one after the other."""
    adjoints: list[Adjoint] = []
    for part in parts:
        x, adjoint = through(part, notes, x)
        adjoints.append(adjoint)

    def back(d: Pieces) -> Pieces:
        for adjoint in reversed(adjoints):
            d = adjoint(d)
        return d

    return x, back


@functools.singledispatch
def through(part: Any, notes: Notes, x: Pieces) -> Made:
    """What a part makes of pieces, and its adjoint; raises `NoTile` where it cannot."""
    raise NoTile(f"{part.kind} is no tile program")


def each(notes: Notes, stem: str, x: Pieces, value: Callable[..., Expr]) -> Pieces:
    """A piece for each: value(i, piece)."""
    return tuple(notes.piece(stem, value(i, piece), piece.width) for i, piece in enumerate(x))


def summed(notes: Notes, found: Sequence[Pieces]) -> Pieces:
    """Pieces added, of which there are several of each."""
    if len(found) == 1:
        return found[0]
    return each(notes, "d_sum", found[0], lambda i, _: added([pieces[i].tile for pieces in found]))


# Every component by itself


@through.register
def _(part: Affine, notes: Notes, x: Pieces) -> Made:
    gain, shift = notes.read(), notes.read() if part.bias else None
    y, gains = [], []
    for piece, start in placed(x):
        f = notes.span(piece.width, start)
        gains.append(row(notes.before("gain", Load(gain.name, notes.index(gain, f), ACC))))
        value = piece.tile * gains[-1]
        if shift:
            value = value + row(notes.before("shift", Load(shift.name, notes.index(shift, f), ACC)))
        y.append(notes.piece("scaled", value, piece.width))

    def back(d: Pieces) -> Pieces:
        for (piece, start), dy in zip(placed(x), d, strict=True):
            shape, f = ("CHUNK", padded(piece.width)), notes.span(piece.width, start)
            total = notes.total(gain, notes.index(gain, f), shape)
            notes.b.add(total, notes.there(dy.tile * piece.tile))
            if shift:
                notes.b.add(notes.total(shift, notes.index(shift, f), shape), notes.there(dy.tile))
        return each(notes, "d_x", x, lambda i, piece: d[i].tile * gains[i])

    return tuple(y), back


@through.register
def _(part: Mapped, notes: Notes, x: Pieces) -> Made:
    function = Function(part.expression)

    def value(i: int, piece: Piece) -> Expr:
        found = function.of(piece.tile)
        return found if function.keeps_zero else notes.inside(found, piece.width)

    def back(d: Pieces) -> Pieces:
        def gradient(i: int, piece: Piece) -> Expr:
            return notes.inside(function.gradient(piece.tile, d[i].tile), piece.width)

        return each(notes, "d_x", x, gradient)

    return each(notes, "mapped", x, value), back


@through.register
def _(part: Signs, notes: Notes, x: Pieces) -> Made:
    def back(d: Pieces) -> Pieces:
        return each(notes, "d_x", x, lambda i, piece: d[i].tile - d[len(x) + i].tile)

    return (*x, *each(notes, "negative", x, lambda i, piece: -piece.tile)), back


@through.register
def _(part: Positions, notes: Notes, x: Pieces) -> Made:
    def angle_of(number: Expr) -> Expr:
        """A whole turn is four periods."""
        return Cast(number % (4 * part.period), ACC) * (math.pi / 2 / part.period)

    angle = notes.let("angle", angle_of(TOKENS))
    with notes.b.when(NUMBERED):
        number = notes.let("number", Load("tokens", (BATCH, TOKENS), INDEX))
        notes.b.set(angle, angle_of(number))
    turns = [column(notes.let(name, Unary(name, angle))) for name in ("cos", "sin")]

    def back(d: Pieces) -> Pieces:
        def gradient(i: int, piece: Piece) -> Expr:
            return d[i].tile * turns[0] + d[len(x) + i].tile * turns[1]

        return each(notes, "d_x", x, gradient)

    turned = [each(notes, "turned", x, lambda i, piece, turn=turn: piece.tile * turn) for turn in turns]
    return (*turned[0], *turned[1]), back


# Several pipelines


@through.register
def _(part: Branches, notes: Notes, x: Pieces) -> Made:
    made = [pipeline(parts, notes, x) for parts in part.of]
    results = [y for y, _ in made]
    if part.join == "concatenate":
        counts = [0, *itertools.accumulate(len(y) for y in results)]

        def apart(d: Pieces) -> list[Pieces]:
            return [d[a:c] for a, c in itertools.pairwise(counts)]

        return tuple(itertools.chain(*results)), _back_through(notes, made, apart)
    if len({tuple(piece.width for piece in y) for y in results}) > 1:
        raise NoTile("branches that are joined consist of other pieces")
    if part.join == "add":
        total = each(notes, "added", results[0], lambda i, _: added([y[i].tile for y in results]))
        return total, _back_through(notes, made, lambda d: [d] * len(made))

    def product(i: int, others: Sequence[Pieces], first: Expr) -> Expr:
        return functools.reduce(lambda a, y: a * y[i].tile, others, first)

    def apart_factors(d: Pieces) -> list[Pieces]:
        found = []
        for k in range(len(results)):
            others = [y for j, y in enumerate(results) if j != k]
            found.append(each(notes, "d_x", d, lambda i, dy, others=others: product(i, others, dy.tile)))
        return found

    whole = each(notes, "multiplied", results[0], lambda i, y: product(i, results[1:], y.tile))
    return whole, _back_through(notes, made, apart_factors)


def _back_through(notes: Notes, made: Sequence[Made], apart: Callable[[Pieces], list[Pieces]]) -> Adjoint:
    """The adjoint of branches, given what each of them gets."""

    def back(d: Pieces) -> Pieces:
        pairs = zip(made, apart(d), strict=True)
        return summed(notes, [adjoint(of_branch) for (_, adjoint), of_branch in pairs])

    return back
