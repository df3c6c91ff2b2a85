"""Fold tiles that are used once into the expression that uses them.

A backend that writes elementwise work as loops over single elements needs no buffer between two elementwise
steps.  The statements that come out of `fuse` are like a program's, but `Load` and `Columns` may stand inside
larger expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import TypeVar

from .check import Types, infer, walk
from .flags import Only
from .nodes import (
    BOOL,
    INDEX,
    Add,
    Blocks,
    Columns,
    Dot,
    Expr,
    For,
    Let,
    Load,
    Max,
    RunningSum,
    Set,
    Span,
    Stmt,
    Store,
    Sum,
    Transpose,
    Var,
    When,
)
from .program import Program

Bindings = dict[str, Expr]
E = TypeVar("E", bound=Expr)


def fuse(program: Program, types: Types) -> tuple[Stmt, ...]:
    """The body of `program` without the tiles that need no buffer."""
    assigned = {stmt.name for stmt in statements(program.body) if isinstance(stmt, Set | Add)}
    return _Fuser(program, types, assigned).block(program.body, {})


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """All statements of a block, those of loops and switches included, in order."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, For | Blocks | When):
            yield from statements(stmt.body)


def handed_on(loop: For) -> set[str]:
    """Tensors by which one round of a loop hands on to the next what it has stored."""
    if loop.several is None:
        return set()
    inner = list(statements(loop.body))
    stored = {stmt.tensor for stmt in inner if isinstance(stmt, Store)}
    nodes = (node for stmt in inner for expr in expressions(stmt) for node in walk(expr))
    return stored & {node.tensor for node in nodes if isinstance(node, Load)}


def expressions(stmt: Stmt) -> tuple[Expr, ...]:
    """What one statement evaluates, apart from the statements inside it."""
    match stmt:
        case Let(_, value) | Set(_, value) | Add(_, value):
            return (value,)
        case Store(_, index, value):
            return (*index, value)
        case For(_, start, stop, step, _):
            return (start, stop, step)
        case When(condition, _) | Only(_, condition):
            return (condition,)
        case _:
            return ()


def substitute(expr: E, bindings: Bindings) -> E:
    """The expression with variables replaced."""
    if isinstance(expr, Var):
        return bindings.get(expr.name, expr)  # type: ignore[return-value]
    return rebuilt(expr, lambda part: substitute(part, bindings))


def rebuilt(expr: E, new: Callable[[Expr], Expr]) -> E:
    """The expression made of what `new` makes of its operands."""
    changes: dict[str, object] = {}
    for entry in fields(expr):  # type: ignore[arg-type]
        value = getattr(expr, entry.name)
        if isinstance(value, Expr):
            changes[entry.name] = new(value)
        elif isinstance(value, tuple) and any(isinstance(part, Expr) for part in value):
            changes[entry.name] = tuple(map(new, value))
    return replace(expr, **changes) if changes else expr  # type: ignore[type-var]


def mapped(body: tuple[Stmt, ...], new: Callable[[Expr], Expr]) -> tuple[Stmt, ...]:
    """The statements with what `new` makes of every expression that they evaluate."""

    def one(stmt: Stmt) -> Stmt:
        match stmt:
            case Let(_, value) | Set(_, value) | Add(_, value):
                return replace(stmt, value=new(value))
            case Store(_, index, value):
                return replace(stmt, index=tuple(map(new, index)), value=new(value))
            case For(_, start, stop, step, inner):
                return replace(
                    stmt, start=new(start), stop=new(stop), step=new(step), body=mapped(inner, new)
                )
            case When(condition, inner):
                return replace(stmt, condition=new(condition), body=mapped(inner, new))
            case Blocks():
                return replace(stmt, body=mapped(stmt.body, new))
            case Only(_, condition):
                return replace(stmt, condition=new(condition))
        return stmt

    return tuple(map(one, body))


def each(body: tuple[Stmt, ...], change: Callable[[Stmt], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """Apply `change` to every statement, inside loops and switches too."""
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For | Blocks | When):
            stmt = replace(stmt, body=each(stmt.body, change))
        result += change(stmt)
    return tuple(result)


class _Fuser:
    def __init__(self, program: Program, types: Types, assigned: set[str]) -> None:
        self.program, self.types, self.assigned = program, types, assigned

    def block(self, body: tuple[Stmt, ...], outer: Bindings) -> tuple[Stmt, ...]:
        bindings = dict(outer)
        result: list[Stmt] = []
        for place, stmt in enumerate(body):
            if isinstance(stmt, Let):
                value = substitute(stmt.value, bindings)
                if self._folds(stmt.name, value, body[place + 1 :]):
                    bindings[stmt.name] = value
                    continue
                bindings.pop(stmt.name, None)
                result.append(Let(stmt.name, value))
            else:
                result.append(self._rewritten(stmt, bindings))
        return tuple(result)

    def _rewritten(self, stmt: Stmt, bindings: Bindings) -> Stmt:
        match stmt:
            case Set(_, value) | Add(_, value):
                return replace(stmt, value=substitute(value, bindings))
            case Store(tensor, index, value):
                return Store(
                    tensor, tuple(substitute(entry, bindings) for entry in index), substitute(value, bindings)
                )
            case For(_, start, stop, step, body):
                start, stop, step = (substitute(bound, bindings) for bound in (start, stop, step))
                return replace(stmt, start=start, stop=stop, step=step, body=self.block(body, bindings))
            case When(condition, body):
                condition = substitute(condition, bindings)
                return replace(stmt, condition=condition, body=self.block(body, bindings))
            case _:
                return stmt

    def _folds(self, name: str, value: Expr, rest: tuple[Stmt, ...]) -> bool:
        kind = self.types[name]
        if not kind.shape or name in self.assigned:
            return False
        if isinstance(value, Dot | Sum | Max | RunningSum | Transpose):
            return False
        if isinstance(value, Span) or kind.dtype == BOOL:
            return True
        if kind.dtype == INDEX:
            return False
        if not any(
            isinstance(node, Var | Span | Load | Columns) and self._rank(node) for node in walk(value)
        ):
            return not _multiplied(name, rest)  # the same for every element
        return self._used_once(name, value, rest)

    def _used_once(self, name: str, value: Expr, rest: tuple[Stmt, ...]) -> bool:
        """Whether the one use is a step of the same block, just as large, that nothing keeps apart."""
        for place, stmt in enumerate(rest):
            if isinstance(stmt, Let) and stmt.name == name and not _mentions(stmt, name):
                return False
            if not _mentions(stmt, name):
                continue
            if not isinstance(stmt, Let | Set | Add | Store) or isinstance(
                stmt.value, Dot | Sum | Max | RunningSum | Columns | Transpose
            ):
                return False
            again = _uses(stmt, name) > 1 or self._used_later(name, rest[place + 1 :])
            rank = self._rank(stmt.value) if isinstance(stmt, Store) else len(self.types[stmt.name].shape)
            return not again and rank == len(self.types[name].shape) and not _disturbed(value, rest[:place])
        return False

    def _used_later(self, name: str, rest: tuple[Stmt, ...]) -> bool:
        for stmt in rest:
            if _mentions(stmt, name):
                return True
            if isinstance(stmt, Let) and stmt.name == name:
                return False
        return False

    def _rank(self, expr: Expr) -> int:
        match expr:
            case Load(_, index):
                return sum(bool(infer(entry, self.types, self.program).shape) for entry in index)
            case Columns():
                return 2
            case _:
                return len(infer(expr, self.types, self.program).shape)


def _uses(stmt: Stmt, name: str) -> int:
    inner = stmt.body if isinstance(stmt, For | When) else ()
    used = Var(name)
    return sum(
        node == used
        for part in (stmt, *statements(inner))
        for expr in expressions(part)
        for node in walk(expr)
    )


def _multiplied(name: str, statements_after: tuple[Stmt, ...]) -> bool:
    """Whether the tile is an operand of a matrix product."""
    return any(
        isinstance(node, Dot) and Var(name) in walk(node)
        for stmt in statements(statements_after)
        for expr in expressions(stmt)
        for node in walk(expr)
    )


def _mentions(stmt: Stmt, name: str) -> bool:
    return _uses(stmt, name) > 0


def _disturbed(value: Expr, between: tuple[Stmt, ...]) -> bool:
    """Whether any of the statements changes what `value` reads."""
    names = {node.name for node in walk(value) if isinstance(node, Var)}
    tensors = {node.tensor for node in walk(value) if isinstance(node, Load)}
    return any(
        stmt.tensor in tensors if isinstance(stmt, Store) else getattr(stmt, "name", None) in names
        for stmt in statements(between)
    )
