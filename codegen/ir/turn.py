"""Hold a program's columns of values turned: as rows.

S[f, u] += F[f, t] @ U[t, u]    becomes    S[u, f] += U[u, t] @ F[f, t].T

What a warp has summed it gives to its next product from its own registers, as the left operand; and as the
right one, if that is turned.  With columns of values along the rows of all sums, a walk that holds a state
has every operand so, and its warps need not meet.

Each element is summed over the same terms in the same order as before.  Tensors are as they were: a tile is
turned after it is loaded, and turned back before it is stored.
"""

from __future__ import annotations

from dataclasses import replace

from .check import check, infer, walk
from .fuse import each, expressions, rebuilt, statements
from .nodes import (
    ACC,
    IO,
    OPERAND,
    STATE,
    Add,
    Cast,
    Columns,
    Dim,
    Dot,
    Expand,
    Expr,
    Full,
    Let,
    Load,
    Max,
    Set,
    Stmt,
    Store,
    Sum,
    Transpose,
    Var,
)
from .program import Program
from .resized import Resized

ALONG = "VALUES"
"""The constant whose axis, the last of a matrix, becomes the first."""


class CannotTurn(Exception):
    """A matrix that has no turned form: a schedule asks for what its program does not admit."""


def turn(program: Program) -> Program:
    """The program with every matrix ``[n, VALUES]`` held as ``[VALUES, n]``, and operands as that wants them.

    Raises `CannotTurn` if columns are gathered of such a matrix.
    """
    turner = _Turner(program)
    return _turned_before_rounded(replace(program, body=each(program.body, turner.statement)))


class _Turner:
    def __init__(self, program: Program) -> None:
        self.program, self.types = program, check(program)
        of_values = {name for name, kind in self.types.items() if _is_of_values(kind.shape)}
        self.names = of_values - _on_the_way(program)

    def statement(self, stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case Let(name, Load()) | Set(name, Load()) | Add(name, Load()) if name in self.names:
                lying = f"{name}_lying"
                return Let(lying, stmt.value), replace(stmt, value=Transpose(Var(lying)))
            case Let(name, value) | Set(name, value) | Add(name, value):
                new = self._swapped(value) if name in self.names else self._read(value)
                return (replace(stmt, value=new),)
            case Store(_, _, value) if self._is_turned(value):
                return self._stored(stmt, value)
        return (stmt,)

    def _stored(self, store: Store, value: Expr) -> tuple[Stmt, ...]:
        """The steps that turn a value back and store it; a store's own cast stays its own."""
        role = value.dtype if isinstance(value, Cast) and value.dtype in (IO, STATE) else None
        if isinstance(value, Cast) and role:
            value = value.x
        name = value.name if isinstance(value, Var) else f"{store.tensor}_stored"
        made = () if isinstance(value, Var) else (Let(name, self._swapped(value)),)
        lying = Var(f"{name}_lying")
        back = Let(lying.name, Transpose(Var(name)))
        return *made, back, replace(store, value=Cast(lying, role) if role else lying)

    def _swapped(self, value: Expr) -> Expr:
        """A value with its axes swapped, for what is held turned."""
        match value:
            case Dot(x, y, among, right) if among is None or not self._is_turned(among):
                return Dot(self._side(y, True), self._side(x, True), among, not right and among is not None)
            case Dot() | Columns() | Transpose():
                raise self._cannot(f"a {type(value).__name__} of values")
            case Expand(x, axis):
                return Expand(x, 1 - axis)
            case Full(shape) | Resized(_, shape):
                return replace(rebuilt(value, self._swapped), shape=shape[::-1])
            case Var(name) if name not in self.names and len(self.types[name].shape) == 2:
                raise self._cannot(f"{name}, beside values,")
            case _:
                return rebuilt(value, self._swapped)

    def _read(self, value: Expr) -> Expr:
        """A value that is no matrix of values, and may read some."""
        match value:
            case Sum(x, axis) | Max(x, axis) if x.name in self.names:
                return replace(value, axis=1 - axis)
            case Dot(x, y, among) if among is None or not self._is_turned(among):
                return replace(value, x=self._side(x), y=self._side(y))
            case _ if self._is_turned(value) and not isinstance(value, Transpose):
                raise self._cannot(f"a {type(value).__name__} of values")
            case _:
                return value

    def _side(self, side: Var | Transpose, swapped: bool = False) -> Var | Transpose:
        """One side of a product, as it was or with its axes swapped."""
        tile, across = (side.x, True) if isinstance(side, Transpose) else (side, False)
        return Transpose(tile) if across ^ swapped ^ (tile.name in self.names) else tile

    def _is_turned(self, value: Expr) -> bool:
        return any(isinstance(node, Var) and node.name in self.names for node in walk(value))

    def _cannot(self, what: str) -> CannotTurn:
        return CannotTurn(f"{self.program.name}: {what} cannot be turned along {ALONG}")


def _is_of_values(shape: tuple[Dim, ...]) -> bool:
    return len(shape) == 2 and shape[1] == ALONG


def _on_the_way(program: Program) -> set[str]:
    """Tiles that lie as their tensor does: loaded to be turned, or turned back to be stored."""
    every = list(statements(program.body))
    values = [stmt.value for stmt in every if isinstance(stmt, Let | Set | Add)]
    turned = {value.x.name for value in values if isinstance(value, Transpose)}
    lets = [stmt for stmt in every if isinstance(stmt, Let)]
    loaded = {let.name for let in lets if isinstance(let.value, Load)}
    back = {let.name for let in lets if isinstance(let.value, Transpose)}
    return loaded & turned | back


def _turned_before_rounded(program: Program) -> Program:
    """Sums that become right operands across, turned while they are sums: so they stay in their registers.

    P_operand = operand(P)                  P_across = P.T
    O += S_operand @ P_operand.T   becomes  P_operand = operand(P_across)
                                            O += S_operand @ P_operand
    """
    types = check(program)
    every = list(statements(program.body))
    nodes = [node for stmt in every for expr in expressions(stmt) for node in walk(expr)]
    across = [node.y.x for node in nodes if isinstance(node, Dot) and isinstance(node.y, Transpose)]
    rounded = {
        stmt.name
        for stmt in every
        if isinstance(stmt, Let)
        and isinstance(stmt.value, Cast)
        and stmt.value.dtype == OPERAND
        and infer(stmt.value.x, types, program).dtype == ACC
        and 0 < nodes.count(Var(stmt.name)) == across.count(Var(stmt.name))
    }

    def new(stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case Let(name, Cast(Var(sums), _)) if name in rounded:
                turned = Var(f"{sums}_across")
                return Let(turned.name, Transpose(Var(sums))), Let(name, Cast(turned, OPERAND))
            case Let(name, Cast(sums, _)) if name in rounded:
                made, turned = Var(f"{name}_sums"), Var(f"{name}_across")
                return (
                    Let(made.name, sums),
                    Let(turned.name, Transpose(made)),
                    Let(name, Cast(turned, OPERAND)),
                )
            case Let(_, Dot() as dot) | Set(_, Dot() as dot) | Add(_, Dot() as dot):
                if isinstance(dot.y, Transpose) and dot.y.x.name in rounded:
                    return (replace(stmt, value=replace(dot, y=dot.y.x)),)
        return (stmt,)

    return replace(program, body=each(program.body, new))
