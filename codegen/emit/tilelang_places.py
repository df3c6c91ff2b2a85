"""Which loop variable of an elementwise loop goes with which axis of every part of an expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.flags import Chosen
from ..ir.nodes import Binary, Cast, Columns, Dithered, Expand, Expr, Load, Unary, Var, Where

Places = tuple[str, ...]
"""The loop variables of the axes of a tile."""
Rank = Callable[[Expr], int]


def children(expr: Expr, places: Places, rank: Rank) -> list[tuple[Expr, Places]]:
    """Subexpressions with the loop variables of their axes."""
    match expr:
        case Expand(x, axis):
            return [(x, (places[1 - axis],))]
        case Columns(_, index, transposed=transposed, weight=weight):
            place = places[:1] if transposed else places[1:]
            return [(part, place) for part in (index, weight) if part is not None]
        case Load(_, index):
            result, tiles = [], 0
            for entry in index:
                result.append((entry, places[tiles : tiles + rank(entry)]))
                tiles += rank(entry)
            return result
        case Unary(_, x) | Cast(x, _):
            return [(x, places)]
        case Binary(_, x, y) | Chosen(_, x, y):
            return [(x, places), (y, places)]
        case Where(condition, x, y):
            return [(condition, places), (x, places), (y, places)]
        case Dithered(x, _, token, value, place):
            return [(part, places) for part in (x, token, value, place)]
        case _:
            return []


def used_indices(
    exprs: tuple[Expr, ...], places: Places, indices: Mapping[str, Expr], rank: Rank
) -> dict[str, str]:
    """Those of the index tiles `indices` that expressions use, in their order, and the loop variable of each.

    The last expression is a value of all axes; those before it are the indices of an access.
    """
    found: dict[str, str] = {}

    def visit(expr: Expr, places: Places) -> None:
        match expr:
            case Var(name) if name in indices:
                visit(indices[name], places)
                found[name] = places[-1]
            case _:
                for child, inner in children(expr, places, rank):
                    visit(child, inner)

    tiles = 0
    for expr in exprs[:-1]:
        visit(expr, places[tiles : tiles + rank(expr)])
        tiles += rank(expr)
    visit(exprs[-1], places)
    return {name: found[name] for name in indices if name in found}
