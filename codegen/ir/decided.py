"""Choices that are known before anything runs: of an index tile all of whose elements choose alike.

weight = where(f < 16, 0.5, 1.0)             S = S * weight[:, None]
S = S * weight[:, None]            becomes   (nothing, where f is 16 or more in every element)

and of one that chooses otherwise from some element on, by which that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .fuse import each, rebuilt, statements
from .nodes import Binary, Const, Expand, Expr, Let, Set, Stmt, Var
from .program import Program
from .static import Known


def decided(program: Program, size: Callable[[str], int]) -> Program:
    """The program in which such choices are made, and what is 1 multiplies nothing."""
    known = Known(program, [s for s in statements(program.body) if isinstance(s, Let)], size)
    numbers: dict[str, Const] = {}

    def new(expr: Expr) -> Expr:
        expr = rebuilt(expr, new)
        match expr:
            case Expand(Var(name), _) if name in numbers:
                return numbers[name]
            case Binary("mul", x, Const(1.0)):
                return x
        return expr

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, Let):
            value = known.stepped(known.decided(stmt.value))
            if isinstance(value, Const) and value != stmt.value:
                numbers[stmt.name] = value
                return ()
            return (replace(stmt, value=new(value)),)
        if isinstance(stmt, Set):
            value = new(stmt.value)
            return () if value == Var(stmt.name) else (replace(stmt, value=value),)
        return (stmt,)

    return replace(program, body=each(program.body, change))
