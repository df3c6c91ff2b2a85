"""Expressions with the layouts of a kernel: which indices meet a tile, and who has a vector's numbers."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.check import Types, walk
from ...ir.fuse import rebuilt
from ...ir.nodes import (
    ACC,
    OPERAND,
    Binary,
    Cast,
    Const,
    Dim,
    Expand,
    Expr,
    Full,
    Load,
    Span,
    Var,
    Where,
)
from ...lower.ragged import under
from ..bounds import Bounds
from ..triton_expression import formula
from .layouts import ALONE, Layouts, Slice

COMPARISONS = ("lt", "le", "gt", "ge", "eq")
TRUE = Const(True)


class Spelling:
    """Knows the index tiles and vectors of one kernel."""

    def __init__(self, types: Types, size: Callable[[Dim], int], layouts: Layouts, bounds: Bounds) -> None:
        self.types, self.size, self.layouts, self.bounds = types, size, layouts, bounds
        self.spans: dict[str, Span] = {}
        self.ends: dict[Expr, tuple[Expr, Expr]] = {}
        """By where index tiles start: the end of their tensor, and the loop's own, which comes first."""
        self.names: dict[Expr, Var] = {}
        """Plain numbers that have been calculated, by what they are."""
        self.vectors: dict[str, Slice | str] = {}
        """Layouts of vectors."""
        self.everywhere: dict[str, Expr] = {}
        """Vectors of indices alone, which have no layout: they are spelled out where they are used."""
        self.operands: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Registers with the elements of tiles that lie in shared memory, and in which layouts."""
        self.rings: dict[str, str] = {}
        """Where in shared memory vectors of a round lie."""
        self.given: dict[tuple[str, str], str] = {}
        """Variables with vectors of indices, by their layouts."""
        self.constants: dict[str, tuple[tuple[Dim, ...], float]] = {}
        """Shared tiles of one value."""
        self.turned: set[str] = set()
        """Tiles in registers that are kept transposed."""
        self.runs: dict[str, str] = {}
        """Runs of indices by their names."""
        self._named: dict[tuple[str, str], str] = {}

    # Tiles

    def matrix(self, expr: Expr, tile: str, turned: bool) -> str:
        """An elementwise expression, whose tiles have this layout in registers."""
        return formula(self._matrix(expr, tile, turned), language="gl")

    def vector(self, expr: Expr, layout: Slice | str) -> str:
        """An expression of vectors."""
        return formula(self._vector(expr, layout), language="gl")

    def scalar(self, expr: Expr, outer: int = 0) -> str:
        """An expression of plain numbers."""
        return formula(self._called(expr), outer, "gl")

    def _called(self, expr: Expr) -> Expr:
        """An expression with the names that parts of it have got."""
        return self.names.get(expr) or rebuilt(expr, self._called)

    def is_turned(self, expr: Expr) -> bool:
        """Whether an expression's tiles are kept transposed."""
        return any(isinstance(node, Var) and node.name in self.turned for node in walk(expr))

    def of_indices(self, expr: Expr) -> bool:
        """Whether a vector is made of indices and numbers alone."""
        return not isinstance(expr, Load) and all(
            not self.types[node.name].shape or node.name in self.spans or node.name in self.everywhere
            for node in walk(expr)
            if isinstance(node, Var)
        )

    def meet(self, expr: Expr) -> Slice | str | None:
        """The layout of the vectors of an expression."""
        names = [node.name for node in walk(expr) if isinstance(node, Var)]
        return next((self.vectors[name] for name in names if name in self.vectors), None)

    def _matrix(self, expr: Expr, tile: str, turned: bool) -> Expr:
        def part(x: Expr) -> Expr:
            return self._matrix(x, tile, turned)

        match expr:
            case Expand(x, axis):
                axis = 1 - axis if turned else axis
                return Expand(self._vector(x, Slice(axis, tile)), axis)
            case Binary("div", x, Expand() as divisor):  # one division a row
                return Binary("mul", part(x), part(Expand(Const(1.0) / divisor.x, divisor.axis)))
            case Binary(op, Expand(Var(x), a), Expand(Var(y), c)) if op in COMPARISONS and a != c:
                if self._start(x) is not None and self._start(x) == self._start(y):
                    sides = (self._offsets(x, a, tile, turned), self._offsets(y, c, tile, turned))
                    return Binary(op, *sides)
            case Binary("and", x, y):
                return _both(part(x), part(y))
            case Binary("lt", Expand(Var(x), axis), y) if x in self.spans:
                return self._inside(x, y, lambda test: part(Expand(test, axis)))
            case Where(condition, x, y):
                test = part(condition)
                return part(x) if test == TRUE else Where(test, part(x), part(y))
            case Cast(Var(name), dtype) if dtype == ACC and name in self.constants:
                return Var(self.full(*self.constants[name], tile, turned))
            case Cast(Var(name), dtype) if dtype == ACC and self.types[name].dtype == OPERAND:
                return Var(self.widened(name, tile))
            case Cast(Cast(x, inner), dtype) if dtype == ACC and inner == OPERAND:
                return Var(f"in_float32(rounded({self.matrix(x, tile, turned)}))")
            case Cast(Const() as value, dtype) if dtype == OPERAND:
                return value
            case Full(shape, value):
                return Var(self.full(shape, value, tile, turned))
        return rebuilt(expr, part)

    def _vector(self, expr: Expr, layout: Slice | str) -> Expr:
        def part(x: Expr) -> Expr:
            return self._vector(x, layout)

        match expr:
            case Var(name) if (name, self.text(layout)) in self.given:
                return Var(self.given[name, self.text(layout)])
            case Var(name) if name in self.spans:
                span = self.spans[name]
                run = Var(self.run(name, layout))
                return run if span.start == Const(0) else span.start + run
            case Var(name) if name in self.everywhere:
                return part(self.everywhere[name])
            case Var(name) if name in self.rings and self.vectors[name] != layout:
                return Var(f"{self.rings[name]}.load({self.text(layout)})")
            case Var(name) if name in self.vectors and self.vectors[name] != layout:
                return Var(f"gl.convert_layout({name}, {self.text(layout)})")
            case Binary("sub", Var(name), start) if self._start(name) == start:
                if (name, self.text(layout)) not in self.given:
                    return Var(self.run(name, layout))
            case Binary("and", x, y):
                return _both(part(x), part(y))
            case Binary("lt", Var(name), y) if name in self.spans:
                return self._inside(name, y, part)
            case Where(condition, x, y):
                test = part(condition)
                return part(x) if test == TRUE else Where(test, part(x), part(y))
        return rebuilt(expr, part)

    def _inside(self, name: str, end: Expr, part: Callable[[Expr], Expr]) -> Expr:
        """Whether the indices of a tile are below an end: of a loop's own if that comes first."""
        span = self.spans[name]
        if isinstance(end, Const) and self.bounds.inside(Var(name), int(end.value)):
            return TRUE
        last, own = self.ends.get(span.start, (None, end))
        limit = own if under(end, False) == last else end
        rest = limit if span.start == Const(0) else limit - span.start
        return part(Binary("lt", Binary("sub", Var(name), span.start), rest))

    def _offsets(self, name: str, axis: int, tile: str, turned: bool) -> Expr:
        layout = Slice(1 - axis if turned else axis, tile)
        given = self.given.get((name, self.text(layout)))
        return Expand(Var(given or self.run(name, layout)), layout.axis)

    def _start(self, name: str) -> Expr | None:
        return self.spans[name].start if name in self.spans else None

    # Names

    def text(self, layout: Slice | str) -> str:
        """A vector's layout."""
        return layout if isinstance(layout, str) else self.layouts.slice(layout)

    def run(self, name: str, layout: Slice | str) -> str:
        """A variable with the offsets of an index tile."""
        text = self.text(layout)
        key = (name, text)
        if key not in self._named:
            size = self.spans[name].size
            where = layout.lower() if isinstance(layout, str) else ("across", "down")[layout.axis]
            variable = f"{name}_{where}"
            if variable in self.runs and not isinstance(layout, str):
                variable = self.apart(variable, layout)
            self._named[key] = variable
            self.runs[variable] = f"gl.arange(0, {size}, {text})"
        return self._named[key]

    def apart(self, variable: str, layout: Slice) -> str:
        """Another name for the same in one more layout."""
        return f"{variable}_{layout.tile.rpartition('_')[2].lower()}"

    def full(self, shape: tuple[Dim, ...], value: float, layout: str, turned: bool = False) -> str:
        """A tile of one value."""
        shape = shape[::-1] if turned else shape
        return f"gl.full([{', '.join(map(str, shape))}], {value!r}, gl.float32, {layout})"

    def operand(self, name: str, layout: str) -> str:
        """The elements of a tile of operands, in registers."""
        if name not in self.operands:
            return name
        held, where = self.operands[name]
        return held if layout in where else f"{name}.load({layout})"

    def widened(self, name: str, layout: str) -> str:
        """The same in float32; single warps have elements of a left operand where a warpgroup has them."""
        text = f"in_float32({self.operand(name, layout)})"
        of_warps = layout == ALONE and name not in self.operands
        return f"gl.convert_layout({text}, {layout}, assert_trivial=True)" if of_warps else text


def _both(x: Expr, y: Expr) -> Expr:
    return y if x == TRUE else x if y == TRUE else x & y
