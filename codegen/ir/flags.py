"""What flags choose: nodes of a program by which a kernel is compiled one way or the other.

Statements under a flag are a `When`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .nodes import Const, Expr, Stmt, When


@dataclass(frozen=True)
class Chosen(Expr):
    """x where a flag is on, else y: a kernel is compiled with one, and has nothing of the other."""

    flag: str
    x: Expr
    y: Expr


@dataclass(frozen=True)
class Only(Stmt):
    """Under a flag, what follows is only for programs of which a condition is true."""

    flag: str
    condition: Expr


def nested(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Statements with what follows an `Only` inside of it, for kernels that return at their end alone."""
    for place, stmt in enumerate(body):
        if isinstance(stmt, Only):
            condition = Chosen(stmt.flag, stmt.condition, Const(True))
            return *body[:place], When(condition, nested(body[place + 1 :]))
    return body
