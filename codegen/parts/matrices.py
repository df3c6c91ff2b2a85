"""Parts that are products with matrices: learned and random ones, and those that pick components."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

from ..dtypes import ACC, OPERAND
from ..ir.nodes import (
    Cast,
    Const,
    Dot,
    Expr,
    Load,
    Transpose,
    Var,
    Where,
    column,
    row,
    wrap,
)
from ..spec.parts import (
    Parameter,
    Products,
    Projection,
    RandomProjection,
    RolledProducts,
)
from .pieces import Notes, Piece, Pieces, padded, placed
from .through import Made, summed, through


@through.register
def _(part: Projection, notes: Notes, x: Pieces) -> Made:
    weight = notes.read()
    (y,), of_product = _multiplied(notes, x, weight, part.features)
    if not part.bias:
        return (y,), of_product
    of_bias = _shifted(notes, y)

    def back(d: Pieces) -> Pieces:
        of_bias(d)
        return of_product(d)

    return (y,), back


@through.register
def _(part: RandomProjection, notes: Notes, x: Pieces) -> Made:
    (y,), of_product = _multiplied(notes, x, notes.read(), part.features)
    if not part.half_squares:
        return (y,), of_product
    squares = notes.row_sum("squares", [piece.tile * piece.tile for piece in x])
    shifted = notes.inside(y.tile - column(squares * 0.5), y.width)

    def back(d: Pieces) -> Pieces:
        owed = column(notes.row_sum("owed", [d[0].tile]))
        pairs = zip(of_product(d), x, strict=True)
        return tuple(notes.piece("d_x", dx.tile - piece.tile * owed, dx.width) for dx, piece in pairs)

    return (notes.piece("shifted", shifted, y.width),), back


def _multiplied(notes: Notes, x: Pieces, parameter: Parameter, features: int) -> Made:
    """x W."""
    f = notes.span(features)
    matrices = []
    for piece, start in placed(x):
        index = notes.index(parameter, notes.span(piece.width, start, "d"), f)
        loaded = Load(parameter.name, index, OPERAND)
        matrices.append(notes.matrix("W", loaded, piece.width, features))
    operands = [notes.operand(piece) for piece in x]
    y = notes.product("product", [*zip(operands, matrices, strict=True)])

    def back(d: Pieces) -> Pieces:
        dy = notes.operand(d[0], summed=True)
        if parameter.learned:
            for piece, start in placed(x):
                total = notes.of_matrix(parameter, (piece.width, start), features)
                notes.b.add(total, Dot(Transpose(notes.operand(piece, summed=True)), dy))
        return tuple(
            Piece(notes.product("d_x", [(dy, Transpose(w))]), piece.width)
            for piece, w in zip(x, matrices, strict=True)
        )

    return (Piece(y, features),), back


def _shifted(notes: Notes, y: Piece) -> Callable[[Pieces], None]:
    """Adds the bias of each component to a tile that has no other reader yet."""
    bias = notes.read()
    index = notes.index(bias, notes.span(y.width))
    notes.b.add(y.tile, row(notes.before("shift", Load(bias.name, index, ACC))))

    def back(d: Pieces) -> None:
        total = notes.total(bias, index, ("CHUNK", padded(y.width)))
        notes.b.add(total, notes.there(d[0].tile))

    return back


@through.register
def _(part: Products, notes: Notes, x: Pieces) -> Made:
    before = sum(piece.width for piece in x)
    chosen = [*itertools.combinations_with_replacement(range(before), part.order)]
    width = len(chosen)
    f = notes.span(width)
    places = [notes.before("place", _places(f, [c[k] for c in chosen])) for k in range(part.order)]
    same = [Where(a.equals(c), wrap(1.0), wrap(0.0)) for a, c in itertools.pairwise(places)]
    alike = [notes.before("alike", value) for value in same]
    often = _root_of_orders(alike, part.order)
    factor = notes.before("often", often)
    picked = [_picked(notes, x, place, width) for place in places]
    tiles = [tile for tile, _ in picked]
    y = notes.piece("products", functools.reduce(lambda a, c: a * c, tiles, row(factor)), width)

    def back(d: Pieces) -> Pieces:
        found: list[Pieces] = []
        for k, (_, adjoint) in enumerate(picked):
            others = [tile for j, tile in enumerate(tiles) if j != k]
            value = functools.reduce(lambda a, c: a * c, others, d[0].tile * row(factor))
            found.append(adjoint(notes.piece("d_picked", value, width)))
        return summed(notes, found)

    return (y,), back


def _places(f: Var, values: Sequence[int]) -> Expr:
    """values[f] as an expression: runs of numbers that each go up by 1, or stay."""
    steps = [values[0], *(c - a for a, c in itertools.pairwise(values))]
    slope = 1 if steps.count(1) > len(steps) // 2 else 0
    found: Expr = f * slope + values[0] if slope else wrap(values[0]) + f * 0
    for place, step in enumerate(steps[1:], 1):
        if step != slope:
            found = found + Where(f >= place, wrap(step - slope), wrap(0))
    return found


def _root_of_orders(alike: Sequence[Expr], order: int) -> Expr:
    """The root of in how many orders the components of a product can stand."""
    if order == 2:
        return Const(math.sqrt(2)) - alike[0] * (math.sqrt(2) - 1.0)
    both, one = alike[0] * alike[1], alike[0] + alike[1]
    some = math.sqrt(6) - math.sqrt(3)
    return Const(math.sqrt(6)) - one * some + both * (2 * some - math.sqrt(6) + 1.0)


@through.register
def _(part: RolledProducts, notes: Notes, x: Pieces) -> Made:
    whole = sum(piece.width for piece in x)
    made: list[tuple[Piece, Piece, Callable[[Piece], Pieces]]] = []
    for far in range(1, part.rolls + 1):
        for piece, start in placed(x):
            place = notes.before("place", (notes.span(piece.width) + (start + far)) % whole)
            tile, adjoint = _picked(notes, x, place, piece.width)
            made.append((piece, Piece(tile, piece.width), adjoint))
    y = tuple(notes.piece("rolled", one.tile * other.tile, one.width) for one, other, _ in made)

    def back(d: Pieces) -> Pieces:
        pairs = [*zip(d, made, strict=True)]
        straight = [notes.piece("d_x", dy.tile * other.tile, dy.width) for dy, (_, other, _) in pairs]
        found = [tuple(straight[i : i + len(x)]) for i in range(0, len(straight), len(x))]
        for dy, (one, _, adjoint) in pairs:
            found.append(adjoint(notes.piece("d_picked", dy.tile * one.tile, dy.width)))
        return summed(notes, found)

    return y, back


def _picked(notes: Notes, x: Pieces, place: Var, width: int) -> tuple[Var, Callable[[Piece], Pieces]]:
    """The features that stand at the places [f], as a product with a matrix of ones and zeros."""
    matrices = []
    for piece, start in placed(x):
        d = notes.span(piece.width, stem="d")
        there = notes.inside(Where(column(d + start).equals(row(place)), wrap(1.0), wrap(0.0)), width)
        if padded(piece.width) != piece.width:  # what is past it is of the next piece
            there = Where(column(d) < piece.width, there, wrap(0.0))
        matrices.append(notes.matrix("E", Cast(there, OPERAND), piece.width, width))
    operands = [notes.operand(piece) for piece in x]
    tile = notes.product("picked", [*zip(operands, matrices, strict=True)])

    def back(d: Piece) -> Pieces:
        operand = notes.operand(d)
        return tuple(
            Piece(notes.product("d_x", [(operand, Transpose(matrix))]), piece.width)
            for piece, matrix in zip(x, matrices, strict=True)
        )

    return tile, back
