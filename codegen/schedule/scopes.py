"""Where the tiles of a program live: the memory scopes of a backend that names them.

On a GPU a tile that a matrix product or a gather reads is *shared* by the block; an accumulator, or a matrix
that is only worked on elementwise, is a *fragment*, spread over the registers of its threads.  Vectors
are shared as soon as they meet a matrix: one vector goes with matrices of different layouts.  On the host
every tile is *local*.
"""

from __future__ import annotations

from ..ir.check import Types, walk
from ..ir.fuse import expressions, statements
from ..ir.nodes import (
    INDEX,
    Add,
    Columns,
    Dot,
    Expand,
    Let,
    Max,
    RunningSum,
    Set,
    Stmt,
    Sum,
    Transpose,
    Var,
)
from .model import HOST_C

SHARED, FRAGMENT, LOCAL, SCALAR, EXPRESSION = "shared", "fragment", "local", "scalar", "expression"
"""`SCALAR` is a plain variable; `EXPRESSION` an index tile, computed wherever it is used."""


def scopes(body: tuple[Stmt, ...], types: Types, backend: str) -> dict[str, str]:
    """The scope of every variable that `body` introduces, in order."""
    crossing = _crossing(body)
    return {
        stmt.name: _scope(stmt.name, types, crossing, backend)
        for stmt in statements(body)
        if isinstance(stmt, Let)
    }


def _scope(name: str, types: Types, crossing: set[str], backend: str) -> str:
    kind = types[name]
    if kind.dtype == INDEX:
        return EXPRESSION if kind.shape else SCALAR
    if not kind.shape and name not in crossing:
        return SCALAR
    if backend == HOST_C:
        return LOCAL
    return SHARED if name in crossing else FRAGMENT


def _crossing(body: tuple[Stmt, ...]) -> set[str]:
    """Variables of which a thread reads elements that another thread wrote."""
    found: set[str] = set()
    for stmt in statements(body):
        if isinstance(stmt, Let | Set | Add) and isinstance(stmt.value, Sum | Max | RunningSum):
            found.add(stmt.name)
        for expr in expressions(stmt):
            for node in walk(expr):
                match node:
                    case Dot(x, y):
                        found |= {
                            part.x.name if isinstance(part, Transpose) else part.name for part in (x, y)
                        }
                    case Columns(x, _) | RunningSum(x):
                        found.add(x.name)
                    case Expand(x):
                        found |= {inner.name for inner in walk(x) if isinstance(inner, Var)}
    return found
