"""The text of one step: a load, a product, a tile that products read, a store, or what lies in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.check import walk
from ...ir.exchange import WIDTH, Exchanged
from ...ir.flags import Only
from ...ir.fuse import expressions, statements
from ...ir.nodes import (
    IO,
    OPERAND,
    Add,
    Cast,
    Dot,
    Doubt,
    Expand,
    Expr,
    For,
    Full,
    Head,
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
from ..writer import Writer
from .layouts import Slice
from .transfers import Transfers

if TYPE_CHECKING:
    from .kernel import GluonKernel


class Steps(Transfers):
    """Prints the statements of one kernel."""

    def __init__(self, kernel: GluonKernel, loop: For) -> None:
        super().__init__(kernel, loop)
        self.loaded: set[str] = set()
        """Shared tiles that products of single warps have read on their right."""

    # What a step does to memory

    def issues(self, stmt: Stmt) -> bool:
        """Whether it begins a product of the whole warpgroup, which runs on in the background."""
        dot = isinstance(getattr(stmt, "value", None), Dot)
        return dot and isinstance(stmt, Let | Add) and stmt.name not in self.plan.alone

    def shared_by(self, stmt: Stmt) -> set[str]:
        """The tiles that it stores in shared memory for products to read."""
        if not isinstance(stmt, Let) or stmt.name not in self.plan.shared:
            return set()
        arrived = isinstance(stmt.value, Load) and not self.converts(stmt.value)
        return set() if arrived else {stmt.name}

    def converts(self, load: Load) -> bool:
        """Whether a tile that was copied for products has another dtype than those may read."""
        return self.kernel.operands != "IO" and self.kernel.program.tensor(load.tensor).dtype == IO

    def multiplied_by(self, stmt: Stmt) -> set[str]:
        """The shared tiles that its product reads."""
        value = getattr(stmt, "value", None)
        if not isinstance(value, Dot):
            return set()
        return {_name(side) for side in (value.x, value.y)} & {*self.plan.shared}

    def read_by(self, stmt: Stmt) -> set[str]:
        """The tiles in registers that it has to have."""
        value = getattr(stmt, "value", None)
        if isinstance(value, Dot):
            return {_name(side) for side in (value.x, value.y)}
        every = list(statements((stmt,)))
        nodes = (node for inner in every for expr in expressions(inner) for node in walk(expr))
        read = {node.name for node in nodes if isinstance(node, Var)}
        if isinstance(stmt, Store) and (tile := dict(self.plan.through).get(stmt.tensor)):
            readers = (inner for inner in self.loop.body if tile in self.multiplied_by(inner))
            read |= {inner.name for inner in readers if isinstance(inner, Let | Add)}
        return read | {inner.name for inner in every if isinstance(inner, Add)}

    # Statements

    def leave(self) -> None:
        """The loop is over: what it has of index tiles that are calculated anew is not used again."""
        self.anew = frozenset(self.plan.anew)
        if self.anew:
            self.spelling.given.clear()

    def outside(self, w: Writer, stmt: Stmt) -> None:
        """A statement before the loop or after it."""
        match stmt:
            case Let(name, Full((), value)):
                w.line(f"{name} = {value!r}")
            case Let(name, Span() as span):
                self.spelling.spans[name] = span
            case Let(name, Head(heads, _)):
                w.line(f"{name} = {self.spelling.scalar(Head(heads))}")
            case Let(name, Cast(Full(shape, value), dtype)) if dtype == OPERAND:
                self.constant(w, name, shape, value)
            case Let(name, Full((_,), value) as numbers):
                self.spelling.vectors[name] = layout = self._of_numbers(name, self.size(numbers.shape[0]))
                w.line(f"{name} = {self.spelling.full(numbers.shape, value, self.spelling.text(layout))}")
            case Let(name, Load() as load) | Set(name, Load() as load):
                self.load(w, name, load)
            case Let(_, Sum()) if self.summed_up(stmt.name):
                pass
            case Let(name, value) | Set(name, value) | Add(name, value):
                if len(self.types[name].shape) == 2:
                    self._introduce(w, value, name)
                self.inside(w, stmt)
            case Store(tensor, index, value):
                self.store(w, tensor, index, value)
            case When(Var(flag), body):
                for inner in body:  # what several flags need stands before them
                    if isinstance(inner, Let | Set) and isinstance(inner.value, Load):
                        self.introduce_index(w, inner.name, inner.value.index)
                w.line(f"if {flag}:")
                with w.indented():
                    for inner in body:
                        self.outside(w, inner)
            case Only(flag, condition):
                w.line(f"if {flag}:")
                w.line(f"    if not ({self.spelling.scalar(condition)}):")
                w.line("        return")
            case When(Doubt(x)):
                w.line(f"if {x.name} != 0.0:  # NaN")
                with w.indented():
                    self.kernel.look_again(w)
            case _:
                raise TypeError(f"no place for {type(stmt).__name__}")

    def inside(self, w: Writer, stmt: Stmt) -> None:
        """A step of a round, but for what the loop copies ahead or back, and what a machine does."""
        match stmt:
            case Let(name, Dot(x, y)) | Add(name, Dot(x, y)) if name in self.plan.alone:
                sides = self._alone(w, x, False), self._alone(w, y, True)
                onto = name if isinstance(stmt, Add) else self.nothing(name)
                w.line(f"{name} = multiplied_alone({', '.join(sides)}, {onto})")
            case Let(name, Sum(x, axis)):
                w.line(f"{name} = {self._sum(name, x, axis)}")
            case Add(name, Sum(x, axis)):
                w.line(f"{name} += {self._sum(name, x, axis)}")
            case Let(name, Max(x, axis)):
                w.line(f"{name} = {self._along('max', name, x, axis)}")
            case When(condition, body):
                w.line(f"if {self.spelling.scalar(condition)}:")
                with w.indented():
                    for inner in body:
                        self.inside(w, inner)
            case Let(name, RunningSum(x)):
                self.spelling.vectors[name] = self.spelling.vectors[x.name]
                w.line(f"{name} = running_sum({x.name})")
            case Let(name, value) if name in self.plan.shared:
                self._operand(w, name, value)
            case Let(name, Cast(Var(x), dtype)) if name in self.plan.right and x in self.plan.alone:
                # Turned, a sum of single warps lies in registers as what their products read on the right.
                turned = f"gl.permute(rounded({x}), (1, 0))"
                w.line(f"{name} = gl.convert_layout({turned}, {self.layouts.side(right=True)})")
            case Let(name, Cast(_, dtype) as value) if dtype == OPERAND:
                w.line(f"{name} = {self.rounded(value, name)}")
            case Add(name, value) if len(self.types[name].shape) == 1:
                w.line(f"{name} += {self.spelling.vector(value, self.spelling.vectors[name])}")
            case Add(name, value):
                added = self.spelling.matrix(value, self.home(name), name in self.spelling.turned)
                w.line(f"{name} += {added}")
            case Let(name, value) | Set(name, value):
                self._value(w, name, value)
            case _:
                raise TypeError(f"no place for {stmt!r}")

    def rounded(self, value: Cast, name: str) -> str:
        """A tile for products, in registers."""
        return self.kernel.rounded(self.spelling.matrix(value.x, self.home(name), False))

    def exchanged(self, value: Exchanged) -> str:
        """Features in registers, in pairs."""
        left = self.layouts.left(WIDTH)
        return f"{value.exchange.name}({self.spelling.operand(value.x.name, left)}, {left})"

    def summed_up(self, name: str) -> bool:
        """Whether a sum of rows is only summed up further, and so printed with that."""
        sums = [s for s in self.kernel.program.body if isinstance(s, Let | Add) and isinstance(s.value, Sum)]
        further = any(s.value == Sum(Var(name), 0) for s in sums)
        return further and any(s.name == name for s in sums)

    def _value(self, w: Writer, name: str, value: Expr) -> None:
        rank = len(self.types[name].shape)
        if rank == 2:
            w.line(f"{name} = {self.spelling.matrix(value, self.home(name), name in self.spelling.turned)}")
        elif rank == 0:
            w.line(f"{name} = {self.spelling.scalar(value)}")
        elif self.spelling.of_indices(value):
            self.spelling.everywhere[name] = value
        else:
            layout = self.spelling.meet(value)
            if layout is None:
                raise TypeError(f"nothing says in which layout {name} is")
            self.spelling.vectors[name] = layout
            w.line(f"{name} = {self.spelling.vector(value, layout)}")

    def _operand(self, w: Writer, name: str, value: Expr) -> None:
        """A tile that products read from shared memory, stored there."""
        if isinstance(value, Exchanged):
            turned, text = value.transposed, self.exchanged(value)
        else:
            turned, shape = self.spelling.is_turned(value), self.types[name].shape
            layout = self.layouts.sums(self.size(shape[0 if turned else 1]))
            matrix = self.spelling.matrix(value.x if isinstance(value, Cast) else value, layout, turned)
            text = self.kernel.rounded(matrix) if isinstance(value, Cast) else matrix
        across = ".permute((1, 0))" if turned != (name in self.plan.turned) else ""
        w.line(f"{name}{across}.store({text})")
        self.spelling.operands[name] = name, ()  # who calculates with it reads it again

    def sides(self, stmt: Let | Add) -> tuple[str, str]:
        """What a product reads on its left and on its right."""
        assert isinstance(stmt.value, Dot)
        x, y = stmt.value.x, stmt.value.y
        if stmt.name in self.spelling.turned:
            return self._side(y, True), self._side(x, True)
        return self._side(x), self._side(y)

    def nothing(self, name: str) -> str:
        """A tile of zeros like one in registers."""
        shape, turned = self.types[name].shape, name in self.spelling.turned
        return self.spelling.full(shape, 0.0, self.home(name), turned)

    def _side(self, side: Var | Transpose, across: bool = False) -> str:
        name = _name(side)
        across ^= isinstance(side, Transpose) ^ (name in self.plan.turned)
        return f"{name}.permute((1, 0))" if across else name

    def _alone(self, w: Writer, side: Var | Transpose, right: bool) -> str:
        """A side of a product of single warps, in registers; right ones may be read again."""
        name, layout = _name(side), self.layouts.side(right)
        if name not in self.plan.shared:
            if name in self.plan.left:
                return f"gl.convert_layout({name}, {layout}, assert_trivial=True)"
            return name
        across = ".permute((1, 0))" if isinstance(side, Transpose) else ""
        if not right:
            return f"{name}{across}.load({layout})"
        if name not in self.loaded:
            self.loaded.add(name)
            w.line(f"{name}_right = {name}{across}.load({layout})")
        return f"{name}_right"

    def _introduce(self, w: Writer, value: Expr, name: str) -> None:
        """Variables for the vectors of indices that a matrix is calculated with."""
        turned = name in self.spelling.turned
        for node in walk(value):
            if isinstance(node, Expand):
                axis = 1 - node.axis if turned else node.axis
                for part in walk(node.x):
                    if isinstance(part, Var):
                        self.vector_of(w, part.name, Slice(axis, self.home(name)))

    def _of_numbers(self, name: str, size: int) -> Slice | str:
        """The layout of a vector that grows: that of the sums of rows or columns that it adds, if it does."""
        for stmt in self.loop.body:
            match stmt:
                case Add(grown, Sum(x, axis)) if grown == name and len(self.types[x.name].shape) == 2:
                    return self._of_sums(x, axis)
        return self.layouts.tokens(size)

    def _sum(self, name: str, x: Var, axis: int) -> str:
        if axis == 0 and self.summed_up(x.name):
            (value,) = (s.value for s in self.kernel.program.body if isinstance(s, Let) and s.name == x.name)
            assert isinstance(value, Sum)
            return f"gl.sum(gl.sum({value.x.name}, 1), 0)"
        return self._along("sum", name, x, axis)

    def _along(self, what: str, name: str, x: Var, axis: int) -> str:
        """A sum or the highest along an axis of a tile."""
        if len(self.types[x.name].shape) == 2:
            self.spelling.vectors[name] = layout = self._of_sums(x, axis)
            axis = layout.axis
        return f"gl.{what}({x.name}, {axis})"

    def _of_sums(self, x: Var, axis: int) -> Slice:
        """The layout of sums along an axis of a tile, which may be kept transposed."""
        return Slice(1 - axis if x.name in self.spelling.turned else axis, self.home(x.name))


def _name(side: Var | Transpose) -> str:
    return side.x.name if isinstance(side, Transpose) else side.name
