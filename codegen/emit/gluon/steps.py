"""The text of one step: a load, a product, a tile that products read, a store, or what lies in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.check import walk
from ...ir.exchange import WIDTH, Exchanged
from ...ir.flags import Only
from ...ir.fuse import expressions
from ...ir.nodes import (
    ACC,
    OPERAND,
    Add,
    Cast,
    Dim,
    Dot,
    Doubt,
    Expand,
    Expr,
    For,
    Full,
    Head,
    Let,
    Load,
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
from .addresses import Addresses
from .layouts import Slice

if TYPE_CHECKING:
    from .kernel import GluonKernel


class Steps:
    """Prints the statements of one kernel."""

    def __init__(self, kernel: GluonKernel, loop: For) -> None:
        self.kernel, self.loop = kernel, loop
        self.plan, self.types, self.size = kernel.plan, kernel.types, kernel.size
        self.spelling, self.layouts = kernel.spelling, kernel.layouts
        self.addresses = Addresses(kernel.program, self.spelling, loop.var)
        self.loaded: set[str] = set()
        """Shared tiles that products of single warps have read on their right."""
        self.rows: dict[str, str] = {}
        """Where the rows of a program begin, by their tensors."""
        self.spelling.turned = {name for name in self.plan.turned if name not in self.plan.shared}

    # What a step does to memory

    def issues(self, stmt: Stmt) -> bool:
        """Whether it begins a product of the whole warpgroup, which runs on in the background."""
        dot = isinstance(getattr(stmt, "value", None), Dot)
        return dot and isinstance(stmt, Let | Add) and stmt.name not in self.plan.alone

    def shared_by(self, stmt: Stmt) -> set[str]:
        """The tiles that it stores in shared memory for products to read."""
        own = isinstance(stmt, Let) and stmt.name in self.plan.shared
        return {stmt.name} if own and isinstance(stmt, Let) else set()

    def multiplied_by(self, stmt: Stmt) -> set[str]:
        """The shared tiles that its product reads."""
        value = getattr(stmt, "value", None)
        if not isinstance(value, Dot):
            return set()
        return {_name(side) for side in (value.x, value.y)} & {*self.plan.shared}

    def read_by(self, stmt: Stmt) -> set[str]:
        """The tiles in registers that it has to have."""
        read = {node.name for expr in expressions(stmt) for node in walk(expr) if isinstance(node, Var)}
        value = getattr(stmt, "value", None)
        if isinstance(value, Dot):
            read = {_name(side) for side in (value.x, value.y)}
        elif isinstance(stmt, Add):
            read.add(stmt.name)
        return read

    # Statements

    def outside(self, w: Writer, stmt: Stmt) -> None:
        """A statement before the loop or after it."""
        match stmt:
            case Let(name, Span() as span):
                self.spelling.spans[name] = span
            case Let(name, Head(heads, _)):
                w.line(f"{name} = {self.spelling.scalar(Head(heads))}")
            case Let(name, Cast(Full(shape, value), dtype)) if dtype == OPERAND:
                self._constant(w, name, shape, value)
            case Let(name, Full((_,), value) as numbers):
                self.spelling.vectors[name] = layout = self.layouts.tokens(self.size(numbers.shape[0]))
                w.line(f"{name} = {self.spelling.full(numbers.shape, value, layout)}")
            case Let(name, Load() as load) | Set(name, Load() as load):
                self._load(w, name, load)
            case Let(_, Sum()) if self.summed_up(stmt.name):
                pass
            case Let(name, value) | Set(name, value) | Add(name, value):
                if len(self.types[name].shape) == 2:
                    self._introduce(w, value, name)
                self.inside(w, stmt)
            case Store(tensor, index, value):
                self.store(w, tensor, index, value)
            case When(Var(flag), body):
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
            case Add(name, Dot(x, y)) if name in self.plan.alone:
                sides = self._alone(w, x, False), self._alone(w, y, True)
                w.line(f"{name} = multiplied_alone({', '.join(sides)}, {name})")
            case Let(name, Sum(x, axis)):
                w.line(f"{name} = {self._sum(name, x, axis)}")
            case Add(name, Sum(x, axis)):
                w.line(f"{name} += {self._sum(name, x, axis)}")
            case Let(name, RunningSum(x)):
                self.spelling.vectors[name] = self.spelling.vectors[x.name]
                w.line(f"{name} = running_sum({x.name})")
            case Let(name, value) if name in self.plan.shared:
                self._operand(w, name, value)
            case Let(name, Cast(_, dtype)) if dtype == OPERAND and name in self.plan.right:
                w.line(f"{name} = {self.rounded(stmt)}")
            case Add(name, value) if len(self.types[name].shape) == 1:
                w.line(f"{name} += {self.spelling.vector(value, self.spelling.vectors[name])}")
            case Let(name, value) | Set(name, value):
                self._value(w, name, value)
            case _:
                raise TypeError(f"no place for {stmt!r}")

    def rounded(self, stmt: Let) -> str:
        """A tile for products, in registers."""
        assert isinstance(stmt.value, Cast)
        return f"rounded({self.spelling.matrix(stmt.value.x, self.home(stmt.name), False)})"

    def columns(self, name: str) -> int:
        """The columns of a tile in registers."""
        return self.size(self.shape(name)[1])

    def home(self, name: str) -> str:
        """The layout of a tile in registers."""
        if name in self.plan.right:
            return self.layouts.side(right=True)
        return self.layouts.alone() if name in self.plan.alone else self.layouts.sums(self.columns(name))

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
            turned, left = True, self.layouts.left(WIDTH)
            text = f"{value.exchange.name}({self.spelling.operand(value.x.name, left)}, {left})"
        else:
            turned, shape = self.spelling.is_turned(value), self.types[name].shape
            layout = self.layouts.sums(self.size(shape[0 if turned else 1]))
            value = value.x if isinstance(value, Cast) else value
            text = f"rounded({self.spelling.matrix(value, layout, turned)})"
        across = ".permute((1, 0))" if turned != (name in self.plan.turned) else ""
        w.line(f"{name}{across}.store({text})")

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

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The rows and columns of a tile in registers."""
        shape = self.types[name].shape
        return shape[::-1] if name in self.spelling.turned else shape

    def _side(self, side: Var | Transpose, across: bool = False) -> str:
        name = _name(side)
        across ^= isinstance(side, Transpose) ^ (name in self.plan.turned)
        return f"{name}.permute((1, 0))" if across else name

    def _alone(self, w: Writer, side: Var | Transpose, right: bool) -> str:
        """A side of a product of single warps, in registers; right ones may be read again."""
        name, layout = _name(side), self.layouts.side(right)
        if name not in self.plan.shared:
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

    def vector_of(self, w: Writer, name: str, layout: Slice) -> None:
        """A variable with a vector of indices, and those with what it is made of."""
        anew = name in self.plan.anew
        value = self.spelling.everywhere.get(name, Var(name) if anew else None)
        text = self.layouts.slice(layout)
        if value is None or (name, text) in self.spelling.given:
            return
        for part in walk(value):
            if isinstance(part, Var) and part.name != name:
                self.vector_of(w, part.name, layout)
        given = self.spelling.given
        variable = self.spelling.apart(name, layout) if name in given.values() else name
        vector = self.spelling.vector(value, layout)
        w.line(f"{variable} = {f'afresh({vector})' if anew else vector}")
        given[name, text] = variable

    def _sum(self, name: str, x: Var, axis: int) -> str:
        if axis == 0 and self.summed_up(x.name):
            (value,) = (s.value for s in self.kernel.program.body if isinstance(s, Let) and s.name == x.name)
            assert isinstance(value, Sum)
            return f"gl.sum(gl.sum({value.x.name}, 1), 0)"
        if len(self.types[x.name].shape) == 2:
            axis = 1 - axis if x.name in self.spelling.turned else axis
            self.spelling.vectors[name] = Slice(axis, self.home(x.name))
        return f"gl.sum({x.name}, {axis})"

    # Memory

    def _constant(self, w: Writer, name: str, shape: tuple[int | str, ...], value: float) -> None:
        self.spelling.constants[name] = shape, value
        sizes = f"[{', '.join(map(str, shape))}]"
        if name not in self.plan.shared:
            w.line(f"{name} = gl.full({sizes}, {value!r}, gl.bfloat16, {self.layouts.side(right=False)})")
            return
        rows, columns = self.layouts.rows(self.size(shape[1])), self.layouts.shared(self.size(shape[1]))
        tile = f"gl.full({sizes}, {value!r}, gl.bfloat16, {rows})"
        w.line(f"{name} = gl.allocate_shared_memory(gl.bfloat16, {sizes}, {columns}, {tile})")

    def _load(self, w: Writer, name: str, load: Load) -> None:
        """A tile from memory, into registers."""
        dtype = ".to(gl.float32)" if load.dtype == ACC else ""
        match len(self.addresses.tiles(load.index)):
            case 2:
                w.line(f"{name} = load_state({self._state(name, load.tensor, load.index)})")
            case 1:
                pointer, mask = self.vector_at(name, load.tensor, load.index)
                guard = f", mask={mask}, other={load.fill!r}" if mask else ""
                w.line(f"{name} = gl.load({pointer}{guard}){dtype}")
            case 0:
                w.line(f"{name} = gl.load({self.addresses.first(load.tensor, load.index)}){dtype}")

    def store(self, w: Writer, tensor: str, index: tuple[Expr, ...], value: Expr) -> None:
        """A tile in registers to memory."""
        name, last = stored(value), index[-1]
        if isinstance(last, Var) and len(self.types[last.name].shape) == 2:
            inside = f"{last.name} < {self.kernel.program.tensor(tensor).dims[-1]}"
            w.line(
                f"gl.store({self.addresses.first(tensor, index[:-1])} + {last.name}, {name}, mask={inside})"
            )
        elif not self.addresses.tiles(index):
            w.line(f"gl.store({self.addresses.first(tensor, index)}, {name})")
        elif len(self.addresses.tiles(index)) == 2:
            for axis, entry in enumerate(index[-2:]):
                if isinstance(entry, Var):
                    self.vector_of(w, entry.name, Slice(axis, self.home(name)))
            w.line(f"store_state({self._state(name, tensor, index)}, {name})")
        else:
            pointer, mask = self.vector_at(name, tensor, index)
            w.line(f"gl.store({pointer}, {name}{f', mask={mask}' if mask else ''})")

    def _state(self, name: str, tensor: str, index: tuple[Expr, ...]) -> str:
        """Where a state is: the first of its elements, its rows and values, and how many there are."""
        if name not in self.spelling.turned:
            raise TypeError(f"{name} is a matrix in memory, and not kept as a state is")
        home, dims = self.home(name), self.kernel.program.tensor(tensor).dims[-2:]
        rows, values = (
            self.spelling.vector(entry, Slice(axis, home)) for axis, entry in enumerate(index[-2:])
        )
        return f"{self.addresses.first(tensor, index[:-2])}, {rows}, {values}, {dims[0]}, {dims[1]}"

    def vector_at(self, name: str, tensor: str, index: tuple[Expr, ...]) -> tuple[str, str]:
        """The pointers of a vector, and the mask of what lies inside ("" if everything does)."""
        (dimension,) = self.addresses.tiles(index)
        entry, layout = index[dimension], self._layout_of(name)
        assert isinstance(entry, Var)
        place = self.addresses.place(entry, self.spelling.run(entry.name, layout))
        test = self.spelling.vector(entry < self.kernel.program.tensor(tensor).dims[dimension], layout)
        return f"{self.addresses.first(tensor, index)} + {place}", "" if test == "True" else test

    def _layout_of(self, name: str) -> Slice | str:
        """The layout of a vector: where it is used, it meets the rows or columns of a tile."""
        if name not in self.spelling.vectors:
            self.spelling.vectors[name] = self._wanted(name, self.kernel.program.body)
        return self.spelling.vectors[name]

    def _wanted(self, name: str, body: tuple[Stmt, ...]) -> Slice | str:
        for stmt in body:
            for expr in expressions(stmt):
                for node in walk(expr):
                    if isinstance(node, Expand) and Var(name) in walk(node.x) and isinstance(stmt, Let | Set):
                        turned = stmt.name in self.spelling.turned
                        return Slice(1 - node.axis if turned else node.axis, self.home(stmt.name))
            if isinstance(stmt, For | When):
                try:
                    return self._wanted(name, stmt.body)
                except TypeError:
                    pass
        raise TypeError(f"nothing says in which layout {name} is")


def _name(side: Var | Transpose) -> str:
    return side.x.name if isinstance(side, Transpose) else side.name


def stored(value: Expr) -> str:
    """The tile that a store stores, rounded by that to the tensor's own dtype."""
    value = value.x if isinstance(value, Cast) else value
    assert isinstance(value, Var)
    return value.name
