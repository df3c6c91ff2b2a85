"""Parts that take all features of a token together: norms and softmax."""

from __future__ import annotations

import functools

from ..ir.nodes import (
    Binary,
    Const,
    Expr,
    Max,
    Unary,
    Var,
    Where,
    column,
    maximum,
    wrap,
)
from ..spec.parts import (
    L2Norm,
    LayerNorm,
    Softmax,
)
from .pieces import Notes, NoTile, Piece, Pieces, added, padded, placed
from .through import Made, each, through

LOWEST = -3e38
"""Below every number that a maximum is taken of."""
MOST_GROUPS = 16
"""Groups of a softmax, of which each is summed by itself."""


@through.register
def _(part: L2Norm, notes: Notes, x: Pieces) -> Made:
    length = notes.let("length", Unary("sqrt", notes.row_sum("squares", [p.tile * p.tile for p in x])))
    inverse = notes.let("inverse", Const(1.0) / Binary("max_or_nan", length, Const(part.eps)))
    y = each(notes, "normed", x, lambda i, piece: piece.tile * column(inverse))

    def back(d: Pieces) -> Pieces:
        along = notes.row_sum("along", [dy.tile * piece.tile for dy, piece in zip(d, y, strict=True)])
        owed = notes.let("owed", Where(length < part.eps, wrap(0.0), along))
        return each(
            notes, "d_x", y, lambda i, piece: (d[i].tile - piece.tile * column(owed)) * column(inverse)
        )

    return y, back


@through.register
def _(part: LayerNorm, notes: Notes, x: Pieces) -> Made:
    share = 1.0 / sum(piece.width for piece in x)
    mean = column(notes.let("mean", notes.row_sum("sum", [piece.tile for piece in x]) * share))
    apart = each(notes, "apart", x, lambda i, piece: notes.inside(piece.tile - mean, piece.width))
    variance = notes.row_sum("squares", [piece.tile * piece.tile for piece in apart]) * share
    inverse = column(notes.let("inverse", Const(1.0) / Unary("sqrt", variance + part.eps)))
    y = each(notes, "normed", apart, lambda i, piece: piece.tile * inverse)

    def back(d: Pieces) -> Pieces:
        pairs = [*zip(d, y, strict=True)]
        along = column(notes.let("along", notes.row_sum("sum", [a.tile * c.tile for a, c in pairs]) * share))
        even = column(notes.let("even", notes.row_sum("sum", [a.tile for a in d]) * share))

        def gradient(i: int, piece: Piece) -> Expr:
            return notes.inside((d[i].tile - even - piece.tile * along) * inverse, piece.width)

        return each(notes, "d_x", y, gradient)

    return y, back


@through.register
def _(part: Softmax, notes: Notes, x: Pieces) -> Made:
    if part.groups > MOST_GROUPS:
        raise NoTile(f"softmax in more than {MOST_GROUPS} groups")
    size = sum(piece.width for piece in x) // part.groups
    groups = [_Group(notes, x, g * size, (g + 1) * size) for g in range(part.groups)]
    shares: dict[int, list[Expr]] = {}
    for group in groups:
        raised = group.raised()
        whole = notes.row_sum("whole", [e for _, e in raised])
        share = column(notes.let("share", Const(1.0) / whole))
        for i, e in raised:
            shares.setdefault(i, []).append(e * share)
    y = each(notes, "softmax", x, lambda i, piece: added(shares[i]))

    def back(d: Pieces) -> Pieces:
        owed: dict[int, list[Expr]] = {}
        for group in groups:
            values = [group.cut(i, d[i].tile * y[i].tile, 0.0, padding=False) for i in group.of]
            of_group = column(notes.row_sum("owed", values))
            for i in group.of:
                owed.setdefault(i, []).append(group.cut(i, of_group, 0.0, padding=False))
        return each(notes, "d_x", y, lambda i, piece: piece.tile * (d[i].tile - added(owed[i])))

    return y, back


class _Group:
    """Neighbouring features with a softmax of their own, from `first` up to `last`."""

    def __init__(self, notes: Notes, x: Pieces, first: int, last: int) -> None:
        self.notes, self.x = notes, x
        self.of: dict[int, tuple[int, int]] = {}
        """Which columns of which pieces they are."""
        for i, (piece, start) in enumerate(placed(x)):
            begin, end = max(first - start, 0), min(last - start, piece.width)
            if begin < end:
                self.of[i] = begin, end

    def cut(self, i: int, value: Expr, other: float, padding: bool = True) -> Expr:
        """What it has of a tile like a piece; elsewhere `other`, and where that is padding only if asked."""
        begin, end = self.of[i]
        width = self.x[i].width
        if (begin, end) == (0, padded(width) if padding else width):
            return value
        return Where(self.notes.columns(width, begin, end), value, wrap(other))

    def raised(self) -> list[tuple[int, Var]]:
        """exp(x − m), m the largest, of each of its pieces; 0 elsewhere."""
        notes = self.notes
        tiles = {i: notes.let("logits", self.cut(i, self.x[i].tile, LOWEST)) for i in self.of}
        tops: list[Expr] = [notes.let("top", Max(tile, 1)) for tile in tiles.values()]
        top = column(notes.let("top", functools.reduce(maximum, tops)))
        return [(i, notes.let("raised", Unary("exp", tile - top))) for i, tile in tiles.items()]
