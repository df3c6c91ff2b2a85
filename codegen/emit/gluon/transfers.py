"""The text of what moves between memory and registers: states, vectors, numbers and constant tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.check import walk
from ...ir.fuse import expressions
from ...ir.nodes import (
    ACC,
    Add,
    Cast,
    Dim,
    Dot,
    Expand,
    Expr,
    For,
    Let,
    Load,
    Set,
    Stmt,
    Var,
    When,
)
from ..writer import Writer
from .addresses import Addresses
from .layouts import Slice

if TYPE_CHECKING:
    from .kernel import GluonKernel


class Transfers:
    """Prints loads and stores of one kernel, and variables for what they are indexed with."""

    def __init__(self, kernel: GluonKernel, loop: For) -> None:
        self.kernel, self.loop = kernel, loop
        self.plan, self.types, self.size = kernel.plan, kernel.types, kernel.size
        self.spelling, self.layouts = kernel.spelling, kernel.layouts
        self.addresses = Addresses(kernel.program, self.spelling, loop.var)
        self.rows: dict[str, str] = {}
        """Where the rows of a program begin, by their tensors."""
        self.spelling.turned = {name for name in self.plan.turned if name not in self.plan.shared}
        self.anew: frozenset[str] = frozenset()
        """Index tiles that the compiler shall not know by now."""

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The rows and columns of a tile in registers."""
        shape = self.types[name].shape
        return shape[::-1] if name in self.spelling.turned else shape

    def columns(self, name: str) -> int:
        """The columns of a tile in registers."""
        return self.size(self.shape(name)[1])

    def home(self, name: str) -> str:
        """The layout of a tile in registers."""
        if name in self.plan.right:
            return self.layouts.side(right=True)
        if name in self.plan.by_rows:
            return self.layouts.rows(self.columns(name))
        return self.layouts.alone() if name in self.plan.alone else self.layouts.sums(self.columns(name))

    def introduce_index(self, w: Writer, name: str, index: tuple[Expr, ...]) -> None:
        """Variables for the index of a matrix in memory, if it is one."""
        for axis, entry in enumerate(index[-2:] if len(self.addresses.tiles(index)) == 2 else ()):
            if isinstance(entry, Var):
                self.vector_of(w, entry.name, Slice(axis, self.home(name)))

    def vector_of(self, w: Writer, name: str, layout: Slice) -> None:
        """A variable with a vector of indices, and those with what it is made of."""
        anew = name in self.anew
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

    # Memory

    def constant(self, w: Writer, name: str, shape: tuple[int | str, ...], value: float) -> None:
        self.spelling.constants[name] = shape, value
        if not self.is_multiplied(name):
            return
        sizes = f"[{', '.join(map(str, shape))}]"
        if name not in self.plan.shared:
            w.line(f"{name} = gl.full({sizes}, {value!r}, gl.bfloat16, {self.layouts.side(right=False)})")
            return
        rows, columns = self.layouts.rows(self.size(shape[1])), self.layouts.shared(self.size(shape[1]))
        tile = f"gl.full({sizes}, {value!r}, gl.bfloat16, {rows})"
        w.line(f"{name} = gl.allocate_shared_memory(gl.bfloat16, {sizes}, {columns}, {tile})")

    def is_multiplied(self, name: str) -> bool:
        """Whether a product reads a tile."""
        products = (x.value for x in self.loop.body if isinstance(x, Let | Add) and isinstance(x.value, Dot))
        return any(Var(name) in walk(product) for product in products)

    def load(self, w: Writer, name: str, load: Load) -> None:
        """A tile from memory, into registers."""
        dtype = ".to(gl.float32)" if load.dtype == ACC else ""
        match len(self.addresses.tiles(load.index)):
            case 2:
                w.line(f"{name} = load_state({self._state(name, load.tensor, load.index)})")
            case 1 if self._is_matrix(load.index[-1]):
                pointers, guard = self._at(load.tensor, load.index)
                w.line(f"{name} = gl.load({pointers}, mask={guard}, other={load.fill!r}){dtype}")
            case 1:
                pointer, mask = self.vector_at(name, load.tensor, load.index)
                guard = f", mask={mask}, other={load.fill!r}" if mask else ""
                w.line(f"{name} = gl.load({pointer}{guard}){dtype}")
            case 0:
                w.line(f"{name} = gl.load({self.addresses.first(load.tensor, load.index)}){dtype}")

    def store(self, w: Writer, tensor: str, index: tuple[Expr, ...], value: Expr) -> None:
        """A tile in registers to memory."""
        name, last = stored(value), index[-1]
        if self._is_matrix(last):
            pointers, guard = self._at(tensor, index)
            w.line(f"gl.store({pointers}, {name}, mask={guard})")
        elif not self.addresses.tiles(index):
            w.line(f"gl.store({self.addresses.first(tensor, index)}, {name})")
        elif len(self.addresses.tiles(index)) == 2:
            self.introduce_index(w, name, index)
            w.line(f"store_state({self._state(name, tensor, index)}, {name})")
        else:
            pointer, mask = self.vector_at(name, tensor, index)
            w.line(f"gl.store({pointer}, {name}{f', mask={mask}' if mask else ''})")

    def _is_matrix(self, entry: Expr) -> bool:
        """Whether an entry of an index is a matrix of them."""
        return isinstance(entry, Var) and len(self.types[entry.name].shape) == 2

    def _at(self, tensor: str, index: tuple[Expr, ...]) -> tuple[str, str]:
        """The pointers of what a matrix of indices tells, and which of them lie inside."""
        last = self.spelling.scalar(index[-1])
        inside = f"{last} < {self.kernel.program.tensor(tensor).dims[-1]}"
        return f"{self.addresses.first(tensor, index[:-1])} + {last}", inside

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

    def meets_a_tile(self, name: str) -> bool:
        """Whether a vector is a number for each row or column of a tile in registers, and laid out so."""
        try:
            self._layout_of(name)
        except TypeError:
            return False
        return True

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


def stored(value: Expr) -> str:
    """The tile that a store stores, rounded by that to the tensor's own dtype."""
    value = value.x if isinstance(value, Cast) else value
    assert isinstance(value, Var)
    return value.name
