"""Features that a program gathers and multiplies, made by an exchange instead: see `exchange.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeGuard

from .exchange import EXCHANGES, NOTHING, WIDTH, Exchange, Exchanged
from .fuse import each, statements
from .nodes import ACC, OPERAND, Binary, Cast, Columns, Const, Expr, Let, Span, Store, Var
from .program import Program
from .rewrite import drop_unused
from .static import Known


class NoExchange(Exception):
    """Features that exchanges do not make."""


def by_exchange(program: Program, size: Callable[[str], int]) -> Program:
    """The program with products of gathered columns as what an exchange makes that pairs the same columns.

    XT_first = columns(X, first).T
    XT_second = columns(X, second).T            becomes
    F = acc(XT_first) * acc(XT_second)
    F_operand = operand(F)                          F_operand = exchanged(X, wide_features).T

    and so does what is gathered without turning it.
    A column of which an exchange makes nothing may be anything in the program, which stores it nowhere.
    Raises `NoExchange` unless all rows of a tensor are stored by the tiles that come of it, each once.
    """
    lets = [stmt for stmt in statements(program.body) if isinstance(stmt, Let)]
    known, made = Known(program, lets, size), {let.name: let.value for let in lets}
    found: list[Exchange] = []

    def changed(stmt: Let) -> Let:
        match stmt.value:
            case Cast(Var(product), dtype) if dtype == OPERAND and (pair := _gathers(made, product)):
                exchange = _exchange(known, *pair)
                if exchange is not None:
                    found.append(exchange)
                    return replace(stmt, value=Exchanged(pair[0].x, exchange, pair[0].transposed))
        return stmt

    body = each(program.body, lambda stmt: (changed(stmt) if isinstance(stmt, Let) else stmt,))
    program = replace(program, body=body)
    if found:
        _require_cover(program, known, {exchange.columns: exchange for exchange in found})
    return drop_unused(program)


def _gathers(made: dict[str, Expr], product: str) -> tuple[Columns, Columns] | None:
    match made.get(product):
        case Binary("mul", Cast(Var(a), dtype), Cast(Var(c), other)) if dtype == other == ACC:
            x, y = made.get(a), made.get(c)
            if _gathers_coordinates(x) and _gathers_coordinates(y):
                if (x.x, x.transposed) == (y.x, y.transposed):
                    return x, y
    return None


def _gathers_coordinates(x: Expr | None) -> TypeGuard[Columns]:
    return isinstance(x, Columns) and x.weight is None and (x.extent, x.fill) == (WIDTH, 1.0)


def _exchange(known: Known, first: Columns, second: Columns) -> Exchange | None:
    """The exchange that makes the products of two gathers."""
    a, c = known.elements(first.index), known.elements(second.index)
    if a is None or c is None:
        return None
    wanted = [sorted(pair) for pair in zip(a, c, strict=True)]
    return next((exchange for exchange in EXCHANGES if pairs(exchange) == wanted), None)


def _require_cover(program: Program, known: Known, used: dict[int, Exchange]) -> None:
    """Raise unless tiles with the columns of these exchanges are stored to each row of a tensor once."""
    rows: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for tensor, place, elements in _stored(program, known):
        if exchange := used.get(len(elements)):
            extent = program.tensor(tensor).dims[place]
            assert isinstance(extent, int)
            inside = [row for row in elements if row < extent]
            empty = [row for row, pair in zip(elements, pairs(exchange), strict=True) if NOTHING in pair]
            if any(row < extent for row in empty):
                raise NoExchange(f"{program.name}: {tensor} has a row for what {exchange.name} does not make")
            rows[tensor, place] += inside
    if not rows:
        raise NoExchange(f"{program.name}: nobody knows which rows of a state these features have")
    for (tensor, place), found in rows.items():
        if sorted(found) != list(range(program.tensor(tensor).dims[place])):  # type: ignore[arg-type]
            raise NoExchange(f"{program.name}: not every row of {tensor} is stored once")


def _stored(program: Program, known: Known) -> Iterator[tuple[str, int, list[int]]]:
    """Tensors, dimensions and the indices to which a program stores, where these are always the same."""
    for stmt in statements(program.body):
        if isinstance(stmt, Store):
            for place, entry in enumerate(stmt.index):
                elements = known.elements(entry)
                if elements is not None and isinstance(program.tensor(stmt.tensor).dims[place], int):
                    yield stmt.tensor, place, [int(x) for x in elements]


def pairs(exchange: Exchange) -> list[list[int]]:
    """What an exchange pairs in each column, as numbers."""
    nowhere = Program("", "", (), (), (), (), (), (), ())
    known = Known(nowhere, [Let("j", Span(Const(0), exchange.columns))], lambda name: 0)
    first, second = (known.elements(side) or [] for side in exchange.pair(Var("j")))
    length = range(exchange.columns)
    return [sorted(int(side[j % len(side)]) for side in (first, second)) for j in length]
