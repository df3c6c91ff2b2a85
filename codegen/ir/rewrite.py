"""Named rewrites: steps that change how a program computes, never what.  A schedule lists those it wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .nodes import (
    OPERAND,
    Add,
    Cast,
    Columns,
    Dot,
    For,
    Let,
    Program,
    Span,
    Stmt,
    Var,
    When,
    Where,
    column,
    row,
    wrap,
)


def gather_by_product(program: Program) -> Program:
    """Gather columns on the matrix units: ``columns(x, index)`` becomes ``x @ E`` with E[d, f] = (index[f] ==
    d).

    A product with zeros and ones is exact in every dtype.  Columns past the extent get their fill afterwards.
    """

    def gather(stmt: Stmt) -> tuple[Stmt, ...]:
        if not (isinstance(stmt, Let) and isinstance(stmt.value, Columns)):
            return (stmt,)
        source, index = stmt.value.x, stmt.value.index
        pick = f"from_{index.name}"
        past = Where(index >= stmt.value.extent, wrap(stmt.value.fill), wrap(0.0))
        return (
            Let(pick, Cast(column(Span(wrap(0), "QK")).equals(row(index)), OPERAND)),
            Let(stmt.name, Dot(source, Var(pick))),
            Add(stmt.name, row(past)),
        )

    return replace(program, body=_rewrite(program.body, gather))


REWRITES: dict[str, Callable[[Program], Program]] = {"gather_by_product": gather_by_product}


def _rewrite(body: tuple[Stmt, ...], change: Callable[[Stmt], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """Apply `change` to every statement, inside loops and switches too."""
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For | When):
            stmt = replace(stmt, body=_rewrite(stmt.body, change))
        result += change(stmt)
    return tuple(result)
