"""Print one program as a TileLang kernel: a function of its tile sizes that returns a ``prim_func``."""

from __future__ import annotations

from ..ir.check import walk
from ..ir.fuse import expressions, handed_on, statements
from ..ir.nodes import (
    ACC,
    BOOL,
    OPERAND,
    Add,
    Cast,
    Columns,
    Comment,
    Const,
    Dim,
    Dot,
    Doubt,
    Expr,
    For,
    Full,
    Head,
    Let,
    Load,
    Max,
    RunningSum,
    Set,
    Stmt,
    Store,
    Sum,
    Transpose,
    Var,
    When,
)
from ..ir.program import GROUPED, HAS_SLOT, HEADS, SLOT, Tensor
from ..schedule.scopes import EXPRESSION, FRAGMENT, SCALAR
from .layer import ScheduledProgram
from .tilelang_elements import Elements
from .tilelang_places import used_indices
from .tilelang_target import WHOLE_VECTORS, Target, c_name, passed_sizes
from .writer import Writer


def emit_kernel(
    w: Writer, scheduled: ScheduledProgram, body: tuple[Stmt, ...], scopes: dict[str, str], target: Target
) -> None:
    """Print the program, whose statements after fusing are `body`."""
    _Kernel(w, scheduled, body, scopes, target).emit()


class _Kernel(Elements):
    def __init__(
        self,
        w: Writer,
        scheduled: ScheduledProgram,
        body: tuple[Stmt, ...],
        scopes: dict[str, str],
        target: Target,
    ) -> None:
        super().__init__(scheduled, scopes, target)
        self.w, self.body = w, body
        self.passed = passed_sizes(scheduled.program)
        self.indices: dict[str, Expr] = {}  # index tiles in force
        self.loaded: set[str] = set()  # tensors read since the threads last met
        loops = {stmt.var for stmt in statements(body) if isinstance(stmt, For)}
        taken = (
            loops
            | set(scopes)
            | {t.name for t in self.program.tensors}
            | {axis.name for axis in self.program.grid}
        )
        self.axes = [name for name in ("i", "j", "m", "l") if name not in taken][:2]

    def emit(self) -> None:
        program, w = self.program, self.w
        dims = {dim for tensor in program.tensors for dim in tensor.stored}
        sizes = [self._extent(name) for name in program.sizes if name in dims]
        w.call(
            f"def {program.name}(",
            [
                *program.constants,
                *self.target.constants(program),
                "THREADS",
                *program.flags,
                *([] if self.target.on_host else ["ALIGNED"]),
            ],
            "):",
        )
        with w.indented():
            w.line(f'"""{program.summary}"""')
            w.line(f'{", ".join(sizes)} = tl.dynamic("{" ".join(sizes)}")')
            for name in {self._extent(tensor.heads): None for tensor in program.tensors if tensor.heads}:
                w.line(f"{name} = {name} if {GROUPED} else {self._extent(HEADS)}")
            w.blank()
            w.line("@tl.prim_func")
            w.line(f"def {program.name}_kernel(")
            with w.indented():
                for tensor in program.tensors:
                    w.line(f"{c_name(tensor.name)}: {self._parameter(tensor)},")
                for scalar in program.scalars:
                    w.line(f"{scalar}: tl.float32,")
                for size in self.passed:
                    w.line(f"{size}: tl.int32,")
            w.line("):")
            with w.indented():
                alone = ",)" if len(program.grid) == 1 else ")"
                w.call("grid = (", [self.expr(axis.extent) for axis in program.grid], alone)
                w.line("with tl.Kernel(prod(grid), threads=THREADS) as program:")
                with w.indented():
                    axes = ", ".join(axis.name for axis in program.grid) + alone[:-1]
                    w.line(f"{axes} = coordinates(program, grid)")
                    for indices in dict.fromkeys(tensor.slots for tensor in program.tensors if tensor.slots):
                        given = f"{program.tensor(indices).optional}, {indices}, {program.grid[0].name}"
                        w.line(f"{SLOT}, {HAS_SLOT} = slot_of({given}, slots)")
                    self._allocate()
                    self._block(self.body)
            w.blank()
            w.line(f"return {program.name}_kernel")

    def _parameter(self, tensor: Tensor) -> str:
        dims = ", ".join(self._extent(dim) if isinstance(dim, str) else str(dim) for dim in tensor.stored)
        present = f", {tensor.optional}" if tensor.optional else ""
        alone = "," if len(tensor.dims) == 1 else ""
        return f"tensor(({dims}{alone}), {self.target.dtype(tensor.dtype)}{present})"

    def _extent(self, size: str) -> str:
        """The name by which tensors' dimensions call a runtime size."""
        return f"{size}_stored" if size in self.passed else size

    def _allocate(self) -> None:
        if not self.target.on_host:
            whole = [
                c_name(t.name)
                for t in self.program.tensors
                if isinstance(t.dims[-1], int) and t.dims[-1] % WHOLE_VECTORS == 0
            ]
            if whole:
                self.w.line(f"aligned(ALIGNED, {', '.join(whole)})")
        for name, scope in self.scopes.items():
            if scope not in (SCALAR, EXPRESSION):
                kind = self.types[name]
                shape = ", ".join(map(str, kind.shape or (1,))) + ("," if len(kind.shape) < 2 else "")
                self.w.line(f"{name} = tl.alloc_{scope}(({shape}), {self.target.dtype(kind.dtype)})")

    # Statements

    def _block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self._statement(stmt)

    def _statement(self, stmt: Stmt) -> None:
        w = self.w
        match stmt:
            case Let(name, value) if self.scopes[name] == EXPRESSION:
                self.indices[name] = value
            case Let(name, Head() as head):
                w.line(f"{name} = {self.expr(head)}")
            case Let(name, value) if self.scopes[name] == SCALAR:
                dtype = self.target.dtype(self.types[name].dtype)
                w.line(f"{name} = tl.alloc_var({dtype}, init={self.expr(value)})")
            case Let(name, value) | Set(name, value):
                self._assign(name, value)
            case Add(name, value):
                self._add(name, value)
            case Store(tensor, index, value):
                self._store(tensor, index, value)
            case For(var, start, stop, step, body, ahead, several, False):
                end = f"{self.expr(stop)} if {several} else 1" if several else self.expr(stop)
                plain = (start, step) == (Const(0), Const(1))
                bounds = [end] if plain else [self.expr(start), end, self.expr(step)]
                w.call(f"for {var} in {self.target.rounds(ahead)}", bounds, "):")
                with w.indented():
                    self._block(body)
                    if handed_on(stmt) and not self.target.on_host:
                        w.line(f"if {several}:")
                        with w.indented():
                            w.line("tl.sync_threads()  # the next round reads what this one has stored")
                        self.loaded.clear()
            case When(condition, body):
                before = set(self.loaded)
                w.line(f"if {self.expr(condition)}:")
                with w.indented():
                    if isinstance(condition, Doubt) and not self.target.on_host:
                        w.line("tl.sync_threads()  # other threads have written what is looked at again")
                    self._block(body)
                self.loaded |= before
            case Comment(words):
                w.line(f"# {words}")
        self.loaded |= {
            node.tensor for expr in expressions(stmt) for node in walk(expr) if isinstance(node, Load)
        }

    def _assign(self, name: str, value: Expr) -> None:
        match value:
            case Full(_, number):
                self.w.line(f"tl.fill({name}, {number!r})" if number else f"tl.clear({name})")
            case Dot():
                self._dot(name, value, ["clear=True"])
            case Sum(x, axis) | Max(x, axis):
                self.w.line(f"tl.reduce_{type(value).__name__.lower()}({x.name}, {name}, dim={axis})")
            case RunningSum(x):
                self.w.call("running_sum(", [x.name, name])
            case Cast(Var(source), to) if to == OPERAND and self.scopes.get(source) == FRAGMENT:
                self.w.line(f"tl.copy({source}, {name})")
            case _:
                self._elementwise(name, "=", value)

    def _add(self, name: str, value: Expr) -> None:
        match value:
            case Dot():
                self._dot(name, value, [])
            case Sum(x, axis):
                self.w.line(f"tl.reduce_sum({x.name}, {name}, dim={axis}, clear=False)")
            case _:
                self._elementwise(name, "+=", value)

    def _dot(self, name: str, value: Dot, extra: list[str]) -> None:
        operands = [part.x.name if isinstance(part, Transpose) else part.name for part in (value.x, value.y)]
        transposed = [
            f"transpose_{side}=True"
            for side, part in (("x", value.x), ("y", value.y))
            if isinstance(part, Transpose)
        ]
        self.w.call("dot(", [*operands, name, *transposed, *extra])

    def _elementwise(self, name: str, operator: str, value: Expr) -> None:
        shape = self.types[name].shape
        target = self._variable(name, self._places(len(shape)))
        self._loop(shape, f"{target} {operator} ", value, ())

    def _store(self, name: str, index: tuple[Expr, ...], value: Expr) -> None:
        if name in self.loaded and not self.target.on_host:
            self.w.line("tl.sync_threads()  # everything is read before anything is overwritten")
            self.loaded.clear()
        shape = tuple(self._shape(entry)[0] for entry in index if self._shape(entry))
        places = self._places(len(shape))
        # TileLang drops what is stored outside a tensor.
        inside = self._inside(Load(name, index, ACC), places, outside_tensor=False)
        self._loop(shape, f"{self._element(name, index, places)} = ", value, index, inside)

    def _loop(
        self, shape: tuple[Dim, ...], target: str, value: Expr, index: tuple[Expr, ...], inside: str = ""
    ) -> None:
        """One assignment for every element of a tile that is `inside`, all of them by default.

        Index tiles that it uses are computed first.
        """
        places = self._places(len(shape))
        # What is stored converts to the buffer's own dtype.
        plain = value.x if isinstance(value, Cast) and not self._is(value.x, BOOL) else value
        text = self.expr(plain, places)
        if not shape:
            self.w.line(f"{target}{text}")
            return
        gathers = any(isinstance(node, Columns) for node in walk(value))
        self.w.line(f"for {', '.join(places)} in {self.target.loop(shape, gathers)}:")
        with self.w.indented():
            for name, place in used_indices((*index, value), places, self.indices, self._rank).items():
                self.w.line(f"{name} = {self.expr(self.indices[name], (place,))}")
            if not inside:
                self.w.line(f"{target}{text}")
                return
            self.w.line(f"if {inside}:")
            with self.w.indented():
                self.w.line(f"{target}{text}")

    def _places(self, rank: int) -> tuple[str, ...]:
        return tuple(self.axes[:rank])
