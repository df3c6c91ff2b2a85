"""Named rewrites: steps that change how a program computes, never what.  A schedule lists those it wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .check import walk
from .fuse import expressions, statements
from .nodes import (
    OPERAND,
    Add,
    Cast,
    Columns,
    Dot,
    For,
    Let,
    Program,
    Set,
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


def drop_unused(program: Program) -> Program:
    """Leave out what nothing reads.

    Lowerings are written for every feature map; of a linear kernel, say, they use neither the products nor
    what those are made of.
    """
    while True:
        read = {
            node.name
            for stmt in statements(program.body)
            for expr in expressions(stmt)
            for node in walk(expr)
            if isinstance(node, Var) and not (isinstance(stmt, Set | Add) and node.name == stmt.name)
        }

        def keep(stmt: Stmt, read: set[str] = read) -> tuple[Stmt, ...]:
            return () if isinstance(stmt, Let | Set | Add) and stmt.name not in read else (stmt,)

        body = _rewrite(program.body, keep)
        if body == program.body:
            return program
        program = replace(program, body=body)


REWRITES: dict[str, Callable[[Program], Program]] = {"gather_by_product": gather_by_product}


def _rewrite(body: tuple[Stmt, ...], change: Callable[[Stmt], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """Apply `change` to every statement, inside loops and switches too."""
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For | When):
            stmt = replace(stmt, body=_rewrite(stmt.body, change))
        result += change(stmt)
    return tuple(result)
