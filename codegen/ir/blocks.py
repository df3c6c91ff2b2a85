"""Write out `Blocks`: the step after which a program has loops and single variables only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TypeVar

from .fuse import mapped, rebuilt
from .nodes import Add, Blocks, Const, Dim, Expr, For, Full, Let, Set, Span, Stmt, Var, When
from .program import Program

E = TypeVar("E", Expr, Stmt)


@dataclass(frozen=True)
class Unequal(Blocks):
    """Blocks of different `sizes`: in each, `step` is another number, and all variables are its own."""

    sizes: tuple[int, ...] = ()


def write_out(program: Program, size: Callable[[str], int]) -> Program:
    """The program with every block written out; `size` gives the value of the constant that they step by.

    The tiles of block i carry the suffix ``_i``, unless there is but one block.
    """
    return replace(program, body=_statements(program.body, size))


def _statements(body: tuple[Stmt, ...], size: Callable[[str], int]) -> tuple[Stmt, ...]:
    result: list[Stmt] = []
    for stmt in body:
        match stmt:
            case Blocks(var, extent, step, inner, tiles):
                inner = _statements(inner, size)
                if isinstance(stmt, Unequal):
                    starts = list(accumulate(stmt.sizes, initial=0))[:-1]
                    bodies = [_sized(inner, step, number) for number in stmt.sizes]
                    tiles = (*tiles, *(part.name for part in inner if isinstance(part, Let)))
                else:
                    starts = list(range(0, extent, size(step)))
                    bodies = [inner] * len(starts)
                for block, (start, body) in enumerate(zip(starts, bodies, strict=True)):
                    suffix = f"_{block}" if len(starts) > 1 else ""
                    names = {tile: f"{tile}{suffix}" for tile in tiles}
                    result += (renamed(part, names, {var: Const(start)}) for part in body)
            case For() | When():
                result.append(replace(stmt, body=_statements(stmt.body, size)))
            case _:
                result.append(stmt)
    return tuple(result)


def _sized(body: tuple[Stmt, ...], constant: str, number: int) -> tuple[Stmt, ...]:
    """Statements with a number for a constant, as an extent too."""

    def dim(x: Dim) -> Dim:
        return number if x == constant else x

    def part(expr: Expr) -> Expr:
        match expr:
            case Var(name) if name == constant:
                return Const(number)
            case Span(_, size):
                expr = replace(expr, size=dim(size))
            case Full(shape):
                expr = replace(expr, shape=tuple(map(dim, shape)))
        return rebuilt(expr, part)

    return mapped(body, part)


def renamed(node: E, names: dict[str, str], values: dict[str, Expr]) -> E:
    """A statement or expression with variables renamed, and others replaced by values."""
    if isinstance(node, Var):
        return values.get(node.name) or Var(names.get(node.name, node.name))  # type: ignore[return-value]
    changes: dict[str, object] = {}
    for entry in fields(node):  # type: ignore[arg-type]
        value = getattr(node, entry.name)
        if isinstance(value, Expr):
            changes[entry.name] = renamed(value, names, values)
        elif isinstance(value, tuple) and any(isinstance(part, Expr | Stmt) for part in value):
            changes[entry.name] = tuple(renamed(part, names, values) for part in value)
    if isinstance(node, Let | Set | Add):
        changes["name"] = names.get(node.name, node.name)
    return replace(node, **changes) if changes else node  # type: ignore[type-var]
