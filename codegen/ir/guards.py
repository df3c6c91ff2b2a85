"""Rows past the end of a sequence are kept out of tiles only where anything that is stored would show them.

A tile of features has a guard, `where(t < T, f(x), 0)`, if f(0) is not 0.  Only the last round of a loop over
tokens has rows past the end.  Where they stay rows, or are columns of pairs that are not seen, nothing shows
them; what they enter through a sum over rows, under those flags alone under which that is stored after the
loop.  A second look may be in doubt for their sake, which costs time and changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from .check import walk
from .flags import Chosen
from .fuse import expressions, rebuilt, statements
from .nodes import (
    Add,
    Binary,
    Const,
    Dot,
    Doubt,
    Expand,
    Expr,
    For,
    Let,
    Load,
    Set,
    Span,
    Stmt,
    Store,
    Sum,
    Transpose,
    Var,
    When,
    Where,
)
from .program import Program

ROWS, COLUMNS, ALL = "rows", "columns", "all"
"""Which elements of a tile rows past the end may have changed."""
NOTHING: frozenset[str] = frozenset()
Shown = dict[str, frozenset[str]]


def guards_where_shown(program: Program) -> Program:
    """The program with the guards that it needs, under the flags that need them."""
    body = tuple(_Guards(program, stmt).without() if isinstance(stmt, For) else stmt for stmt in program.body)
    return replace(program, body=body)


class _Guards:
    """Those of one loop."""

    def __init__(self, program: Program, loop: For) -> None:
        self.loop, self.after = loop, program.body[program.body.index(loop) + 1 :]
        self.lets = {stmt.name: stmt.value for stmt in loop.body if isinstance(stmt, Let)}
        self.tokens = {
            name for name, x in self.lets.items() if isinstance(x, Span) and x.start == Var(loop.var)
        }

    def without(self) -> For:
        body: list[Stmt] = []
        for stmt in self.loop.body:
            guard = self._guard(stmt) if isinstance(stmt, Let) else None
            flags = self._flags(stmt.name) if guard and isinstance(stmt, Let) else None
            if guard and isinstance(stmt, Let) and flags is not None and len(flags) <= 1:
                body += _without(stmt, guard, *flags)
            else:
                body.append(stmt)
        return replace(self.loop, body=tuple(body))

    def _guard(self, stmt: Let) -> Expr | None:
        """The test that the rows of a tile have tokens, if it has one."""
        for node in walk(stmt.value):
            if isinstance(node, Where) and node.y == Const(0.0):
                for test in _tests(node.condition):
                    match test:
                        case Binary("lt", Expand(Var(name), 1), _) if name in self.tokens:
                            return test
        return None

    def _flags(self, guarded: str) -> set[str] | None:
        """The flags under which what is stored shows a tile's rows past the end; None: it always does."""
        shown: Shown = {guarded: frozenset({ROWS})}
        for stmt in self.loop.body:
            match stmt:
                case Let(name, value) | Set(name, value) if name != guarded:
                    shown[name] = self._shown(value, shown)
                case Add(name, value):
                    shown[name] = shown.get(name, NOTHING) | self._shown(value, shown)
                case Store(_, _, value) if self._shown(value, shown) - {ROWS}:
                    return None
        flags: set[str] = set()
        for stmt in self.after:
            if isinstance(stmt, When) and isinstance(stmt.condition, Doubt):
                continue
            if not any(shown.get(name) for name in _stored(stmt)):
                continue
            if not isinstance(stmt, When) or not isinstance(stmt.condition, Var):
                return None
            flags.add(stmt.condition.name)
        return flags

    def _shown(self, value: Expr, shown: Shown) -> frozenset[str]:
        match value:
            case Var(name):
                return shown.get(name, NOTHING)
            case Transpose(x):
                swapped = {ROWS: COLUMNS, COLUMNS: ROWS, ALL: ALL}
                return frozenset(swapped[what] for what in self._shown(x, shown))
            case Dot(x, y):
                left, right = self._shown(x, shown), self._shown(y, shown)
                summed = {ALL} if COLUMNS in left or ROWS in right else set()
                return frozenset(summed | (left - {COLUMNS}) | (right - {ROWS}))
            case Sum(x, axis):
                found = self._shown(x, shown)
                return found if not found or axis == 1 and found == {ROWS} else frozenset({ALL})
            case Where(condition, x, Const(0.0)) if self._leaves_out_later(condition):
                found = self._shown(x, shown)  # rows past the end alone see their columns
                return frozenset(ROWS if what == COLUMNS else what for what in found)
            case Load():
                return NOTHING
        parts = [part for part in vars(value).values() if isinstance(part, Expr)]
        return NOTHING.union(*(self._shown(part, shown) for part in parts))

    def _leaves_out_later(self, condition: Expr) -> bool:
        """Whether a test of pairs is that no key is later than its query."""
        match self.lets.get(condition.name, condition) if isinstance(condition, Var) else condition:
            case Binary("ge", Expand(Var(query), 1), Expand(Var(key), 0)):
                return query == key and query in self.tokens
        return False


def _without(stmt: Let, guard: Expr, flag: str | None = None) -> list[Stmt]:
    """A tile without its guard, or with it under a flag."""
    plain = f"{stmt.name}_plain"
    before: list[Stmt] = []

    def bare(expr: Expr) -> Expr:
        match expr:
            case Where(condition, x, Const(0.0)) if guard in (tests := _tests(condition)):
                for test in tests:
                    x = x if test == guard else Where(test, x, Const(0.0))
                if flag is None:
                    return x
                before.append(Let(plain, x))
                return Chosen(flag, Where(guard, Var(plain), Const(0.0)), Var(plain))
        return rebuilt(expr, bare)

    last = Let(stmt.name, bare(stmt.value))
    return [*before, last]


def _stored(stmt: Stmt) -> set[str]:
    """What a statement, or those inside it, stores or makes stored things of."""
    every = list(statements((stmt,)))
    if not any(isinstance(inner, Store) for inner in every):
        return set()
    return {
        node.name
        for inner in every
        for expr in expressions(inner)
        for node in walk(expr)
        if isinstance(node, Var)
    }


def _tests(condition: Expr) -> list[Expr]:
    match condition:
        case Binary("and", x, y):
            return _tests(x) + _tests(y)
    return [condition]
