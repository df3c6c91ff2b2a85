"""What is known of a vector before anything runs: its elements, where only constants enter them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .check import walk
from .fuse import rebuilt
from .nodes import INDEX, Binary, Cast, Const, Expand, Expr, Let, Span, Sum, Var, Where
from .program import Program

OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "floordiv": lambda x, y: x // y,
    "mod": lambda x, y: x % y,
    "xor": lambda x, y: int(x) ^ int(y),
    "min": min,
    "max": max,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "and": lambda x, y: int(x) & int(y),
}


class Known:
    """The vectors of a program that are the same in every run."""

    def __init__(self, program: Program, lets: list[Let], size: Callable[[str], int]) -> None:
        self._constants, self._size = set(program.constants), size
        self._values: dict[str, Expr | None] = {}
        for let in lets:  # a name that means two things is not known
            self._values[let.name] = None if let.name in self._values else let.value

    def elements(self, expr: Expr) -> list[float] | None:
        """The elements of a vector (one for a scalar), or None if they depend on the run."""
        match expr:
            case Const(value):
                return [value]
            case Var(name) if name in self._constants:
                return [self._size(name)]
            case Var(name):
                meaning = self._values.get(name)
                return None if meaning is None else self.elements(meaning)
            case Span(start, size):
                first = self.elements(start)
                count = size if isinstance(size, int) else self._size(size)
                return None if first is None else [first[0] + i for i in range(count)]
            case Binary(op, x, y) if op in OPERATIONS:
                left, right = self.elements(x), self.elements(y)
                if left is None or right is None:
                    return None
                length = max(len(left), len(right))
                pairs = zip(left * (length // len(left)), right * (length // len(right)), strict=True)
                return [OPERATIONS[op](a, c) for a, c in pairs]
            case Where(condition, x, y):
                chooser, yes, no = self.elements(condition), self.elements(x), self.elements(y)
                if chooser is None or yes is None or no is None:
                    return None
                length = max(len(chooser), len(yes), len(no))
                rows = zip(*(part * (length // len(part)) for part in (chooser, yes, no)), strict=True)
                return [a if choice else c for choice, a, c in rows]
            case Cast(x, dtype) if dtype == INDEX:
                return self.elements(x)
            case Sum(Var(name), 1) if meaning := self._values.get(name):
                matrix = self._rows(meaning)
                return None if matrix is None else [sum(row) for row in matrix]
            case _:
                return None

    def decided(self, expr: Expr) -> Expr:
        """The expression with choices that are the same for all elements made."""
        expr = rebuilt(expr, self.decided)
        if isinstance(expr, Where):
            choice = set(self.elements(expr.condition) or (0, 1))
            return expr if len(choice) > 1 else expr.x if choice.pop() else expr.y
        return expr

    def stepped(self, expr: Expr) -> Expr:
        """A choice of two numbers that turns over once, made by the index tile that it comes of."""
        if not (isinstance(expr, Where) and isinstance(expr.x, Const) and isinstance(expr.y, Const)):
            return expr
        choice = [bool(x) for x in self.elements(expr.condition) or ()]
        first = choice.count(True)
        of = {name for name in self._names(expr.condition) if isinstance(self._values.get(name), Span)}
        match expr.condition:
            case Binary(_, Var(name), _) if name in of:
                return expr  # as it does already
        if len(of) != 1 or choice != [True] * first + [False] * (len(choice) - first):
            return expr
        (name,) = of
        span = self._values[name]
        assert isinstance(span, Span)
        place = Var(name) if span.start == Const(0) else Var(name) - span.start
        return replace(expr, condition=place < first)

    def _names(self, expr: Expr) -> set[str]:
        """The names of what an expression is made of, and of what that is."""
        found = {node.name for node in walk(expr) if isinstance(node, Var)}
        return found.union(*(self._names(x) for name in found if (x := self._values.get(name)) is not None))

    def _rows(self, expr: Expr) -> list[list[float]] | None:
        """The same of a matrix: its rows."""
        match expr:
            case Cast(x, _):
                return self._rows(x)
            case Binary(op, Expand(x, 1), Expand(y, 0)) if op in OPERATIONS:
                left, right = self.elements(x), self.elements(y)
                if left is None or right is None:
                    return None
                return [[OPERATIONS[op](a, c) for c in right] for a in left]
            case _:
                return None
