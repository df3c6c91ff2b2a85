"""What lowering leaves behind, taken away before anybody reads it: copies, and sums and products of nothing.

S_initial = load(...)                S = load(...)
S = S_initial               becomes
seen = t + 0 >= j                    seen = t >= j
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from .check import walk
from .flags import Only
from .fuse import expressions, rebuilt, statements, substitute
from .nodes import Add, Binary, Blocks, Comment, Const, Expr, For, Let, Set, Stmt, Store, Var, When
from .program import Program

NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "floordiv": 1}
"""Whole numbers that change nothing on the right of an operation; on the left of those that commute."""
COMMUTE = ("add", "mul")


def tidy(program: Program) -> Program:
    """The same program without copies and without operations that change nothing."""
    return replace(program, body=_Tidier(program).block(program.body, {}))


class _Tidier:
    def __init__(self, program: Program) -> None:
        every = list(statements(program.body))
        self.introduced = Counter(stmt.name for stmt in every if isinstance(stmt, Let))
        self.changed = {stmt.name for stmt in every if isinstance(stmt, Set | Add)}
        self.several = {name for stmt in every if isinstance(stmt, Blocks) for name in stmt.tiles}
        self.used = Counter(name for stmt in every for name in _names(stmt))
        self.handed = Counter(_handed(program.body))

    def block(self, body: tuple[Stmt, ...], bindings: dict[str, Expr]) -> tuple[Stmt, ...]:
        bindings = dict(bindings)
        result: list[Stmt] = []
        for stmt in body:
            stmt = self._inside(stmt, bindings)
            match stmt:
                case Let(name, Var() as copied) if self._one(name) and self._one(copied.name):
                    bindings[name] = copied
                case Set(name, Var(copy)) if result and self._ends_in(copy, result[-1]):
                    result[-1] = Set(name, result[-1].value)  # type: ignore[attr-defined]
                case _:
                    result.append(stmt)
        return tuple(result)

    def _one(self, name: str) -> bool:
        """Whether a name stands for one thing throughout."""
        return self.introduced[name] <= 1 and name not in self.changed and name not in self.several

    def _ends_in(self, copy: str, last: Stmt) -> bool:
        """Whether the last statement makes what is copied, and as always for nobody else."""
        if not isinstance(last, Let) or last.name != copy or copy in self.changed or copy in self.several:
            return False
        return self.handed[copy] == self.introduced[copy] == self.used[copy]

    def _inside(self, stmt: Stmt, bindings: dict[str, Expr]) -> Stmt:
        def new(expr: Expr) -> Expr:
            return folded(substitute(expr, bindings))

        match stmt:
            case Let(_, value) | Set(_, value) | Add(_, value):
                return replace(stmt, value=new(value))
            case Store(_, index, value):
                return replace(stmt, index=tuple(map(new, index)), value=new(value))
            case For(_, start, stop, step, body):
                body = self.block(body, bindings)
                return replace(stmt, start=new(start), stop=new(stop), step=new(step), body=body)
            case When(condition, body):
                return replace(stmt, condition=new(condition), body=self.block(body, bindings))
            case Only(_, condition):
                return replace(stmt, condition=new(condition))
            case Blocks(_, _, _, body, _):
                return replace(stmt, body=self.block(body, bindings))
            case _:
                return stmt


def folded(expr: Expr) -> Expr:
    """The expression without operations on whole numbers that change nothing."""
    expr = rebuilt(expr, folded)
    match expr:
        case Binary(op, x, Const(int(number))) if NEUTRAL.get(op) == number and not isinstance(number, bool):
            return x
        case Binary(op, Const(int(number)), y) if op in COMMUTE and NEUTRAL[op] == number:
            return y
    return expr


def _handed(body: tuple[Stmt, ...]) -> Iterator[str]:
    """Names of what one statement introduces and the next one gives to another name."""
    for stmt, following in pairwise((*body, Comment(""))):
        if isinstance(stmt, For | When | Blocks):
            yield from _handed(stmt.body)
        match stmt, following:
            case Let(name, _), Set(_, Var(copy)) if copy == name:
                yield name


def _names(stmt: Stmt) -> Iterator[str]:
    return (node.name for expr in expressions(stmt) for node in walk(expr) if isinstance(node, Var))
