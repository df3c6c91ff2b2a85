"""Write out `Blocks`: the step after which a program has loops and single variables only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeVar

from .nodes import Add, Blocks, Const, Expr, For, Let, Set, Stmt, Var, When
from .program import Program

E = TypeVar("E", Expr, Stmt)


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
                starts = range(0, extent, size(step))
                for block, start in enumerate(starts):
                    suffix = f"_{block}" if len(starts) > 1 else ""
                    names = {tile: f"{tile}{suffix}" for tile in tiles}
                    result += (renamed(part, names, {var: Const(start)}) for part in _statements(inner, size))
            case For() | When():
                result.append(replace(stmt, body=_statements(stmt.body, size)))
            case _:
                result.append(stmt)
    return tuple(result)


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
