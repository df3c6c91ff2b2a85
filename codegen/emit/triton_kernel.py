"""Print scheduled programs as Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..ir.check import infer, walk
from ..ir.fuse import expressions, statements
from ..ir.kernels import Kernel, counts
from ..ir.nodes import (
    Add,
    Comment,
    Const,
    Dim,
    Dot,
    Expand,
    Expr,
    For,
    Let,
    Load,
    Max,
    Set,
    Span,
    Stmt,
    Store,
    Sum,
    Var,
    When,
)
from ..ir.printer import TIGHT
from ..ir.program import Tensor, loads_ahead, uses_operands
from .bounds import Bounds
from .layer import ScheduledProgram
from .triton_expression import cast_suffix, formula
from .writer import Writer


def parameters(kernel: Kernel) -> list[str]:
    """What a kernel takes at every launch: tensors, strides, sizes and scalars."""
    return [
        *(t.name for t in kernel.tensors),
        *(f"{t.name}_{axis}" for t in kernel.tensors if t.strided for axis in stride_names(t)),
        *kernel.sizes,
        *kernel.scalars,
    ]


class TritonKernel:
    """Prints one program as a ``@triton.jit`` function."""

    def __init__(self, w: Writer, scheduled: ScheduledProgram) -> None:
        self.w, self.program, self.types = w, scheduled.program, scheduled.types
        self.bounds = Bounds(scheduled.program, scheduled.schedule)
        self.batch = [Var(axis.name) for axis in scheduled.program.grid if axis.batch]
        self.named = self._named_spans()
        self.read: set[tuple[str, tuple[Expr, ...]]] = set()  # what was loaded, and not stored since
        self.rows = self._rows()
        self.condition = ""

    def _named_spans(self) -> set[str]:
        """Index tiles that need a name: those calculated with, or compared with a tensor's extent."""
        named: set[str] = set()
        for stmt in statements(self.program.body):
            for expr in (stmt.value,) if isinstance(stmt, Store) else expressions(stmt):
                if not isinstance(expr, Load):
                    named |= {node.name for node in walk(expr) if isinstance(node, Var)}
        for entry, extent, _ in self._entries():
            if isinstance(entry, Var) and self.bounds.conditions(entry, extent):
                named.add(entry.name)
        return named

    def _entries(self) -> Iterator[tuple[Expr, Dim, str]]:
        """Every index of every access, with the extent and the stride of its dimension."""
        for stmt in statements(self.program.body):
            access = stmt if isinstance(stmt, Store) else getattr(stmt, "value", None)
            if isinstance(access, Load | Store):
                tensor = self.program.tensor(access.tensor)
                yield from zip(access.index, tensor.dims, self._strides(tensor), strict=True)

    def _rows(self) -> set[str]:
        """Vectors that are laid along the columns of a matrix."""
        return {
            node.x.name
            for stmt in statements(self.program.body)
            for expr in expressions(stmt)
            for node in walk(expr)
            if isinstance(node, Expand) and node.axis == 0 and isinstance(node.x, Var)
        }

    def emit(self) -> None:
        program, w = self.program, self.w
        # Lengths and counts change from call to call; of rows it matters whether they are whole vectors.
        w.line(f"@triton.jit(do_not_specialize={list(counts(program))!r})".replace("'", '"'))
        w.call(
            f"def {program.name}(",
            [
                *parameters(program),
                *(f"{flag}: tl.constexpr" for flag in program.flags),
                *(f"{name}: tl.constexpr" for name in program.constants),
                *(["OPERAND: tl.constexpr"] if uses_operands(program) else []),
                *(["STAGES: tl.constexpr"] if loads_ahead(program) else []),
                *(["OFFSET: tl.constexpr = tl.int32"] if any(map(self._may_be_far, self._entries())) else []),
            ],
            "):",
        )
        with w.indented():
            w.line(f'"""{program.summary}"""')
            for scalar in program.scalars:
                w.line(f"{scalar} = tl.cast({scalar}, tl.float32)  # compilers of callers may pass 64 bits")
            self._program_ids()
            self._block(program.body)

    def _program_ids(self) -> None:
        rest = "program"
        self.w.line("program = tl.program_id(0)")
        for axis in reversed(self.program.grid[1:]):
            extent = formula(axis.extent)
            wide = ".to(tl.int64)" if axis.batch else ""
            self.w.line(
                f"{axis.name} = ({rest} % {extent}){wide}" if wide else f"{axis.name} = {rest} % {extent}"
            )
            self.w.line(f"program = {rest} // {extent}")
        first = self.program.grid[0]
        self.w.line(f"{first.name} = program.to(tl.int64)")

    # Statements

    def _block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self._statement(stmt)

    def _statement(self, stmt: Stmt) -> None:
        w = self.w
        match stmt:
            case Let(name, Span()) if name not in self.named:
                pass  # addresses spell it out
            case Let(name, Load() as load) | Set(name, Load() as load):
                self._load(name, load)
            case Let(name, value) | Set(name, value):
                w.line(f"{name} = {self._right_side(value)}")
            case Add(name, Dot(x, y)):
                w.line(f'{name} = tl.dot({formula(x)}, {formula(y)}, {name}, input_precision="ieee")')
            case Add(name, value):
                w.line(f"{name} += {self._right_side(value)}")
            case Store(tensor, index, value):
                if (tensor, index) in self.read and len(infer(value, self.types, self.program).shape) < 2:
                    # Several warps hold such a vector, and one of them writes it.
                    w.line("tl.debug_barrier()  # every warp has read what is now overwritten")
                self.read.discard((tensor, index))
                pointer, mask = self._address(tensor, index)
                mask = " & ".join(part for part in (mask, self.condition) if part)
                arguments = [pointer, formula(value), *([f"mask={mask}"] if mask else [])]
                w.call("tl.store(", arguments)
            case For(var, start, stop, step, body, ahead):
                bounds = ", ".join(formula(bound) for bound in (start, stop, step))
                # By itself Triton loads ahead only for products.
                rounds = f"tl.range({bounds}, num_stages=STAGES)" if ahead else f"range({bounds})"
                w.line(f"for {var} in {rounds}:")
                with w.indented():
                    self._block(body)
            case When(Var(flag), body):
                w.line(f"if {flag}:")
                with w.indented():
                    self._block(body)
            case When(condition, body):
                # As a mask: Triton 3.7 cannot load ahead across branches on Blackwell.
                assert all(isinstance(inner, Store) for inner in body)
                self.condition = f"({formula(condition)})"
                self._block(body)
                self.condition = ""
            case Comment(words):
                w.line(f"# {words}")

    def _load(self, name: str, load: Load) -> None:
        self.read.add((load.tensor, load.index))
        pointer, mask = self._address(load.tensor, load.index)
        guard = [f"mask={mask}", f"other={load.fill}"] if mask else []
        self.w.call(f"{name} = tl.load(", [pointer, *guard], f"){cast_suffix(load.dtype)}")
        if name in self.rows and uses_operands(self.program):
            # Triton would load the vector anew for each column that a thread has of a product; what comes
            # out of a reduction it hands on through shared memory.
            self.w.line(f"{name} = tl.sum({name}[:, None], 1)")

    def _address(self, name: str, index: tuple[Expr, ...]) -> tuple[str, str]:
        """The pointer tile, and the mask of what lies inside ("" if everything does).

        Offsets are summed in 64 bits, but a product of one index with its stride is an `OFFSET`: 32 bits,
        unless strides are so large that these cannot hold it.
        """
        tensor = self.program.tensor(name)
        strides = self._strides(tensor)
        tiles = [entry for entry in index if self._rank(entry)]
        base, offsets = [name], []
        masks: list[str] = []
        for entry, extent, stride in zip(index, tensor.dims, strides, strict=True):
            far = self._may_be_far((entry, extent, stride))
            if not self._rank(entry):
                if entry != Const(0):
                    scalar = f"tl.cast({formula(entry)}, OFFSET)" if far else formula(entry, TIGHT)
                    base.append(_times(scalar, stride))
                continue
            position = tiles.index(entry)
            side = "" if len(tiles) == 1 else ("[:, None]" if position == 0 else "[None, :]")
            span = self.bounds.span(entry)
            if span is None:
                offsets.append(_times(f"{formula(entry)}{side}", stride))
            else:
                if span.start != Const(0):
                    base.append(_times(f"tl.cast({formula(span.start)}, tl.int64)", stride))
                run = f"tl.arange(0, {span.size})"
                run = f"tl.cast({run}, OFFSET)" if far else run
                offsets.append(_times(f"{run}{side}", stride))
            masks += (f"({formula(test)}){side}" for test in self.bounds.conditions(entry, extent))
        pointer = " + ".join(base)
        if offsets:
            pointer += f" + ({' + '.join(offsets)})" if len(offsets) > 1 else f" + {offsets[0]}"
        return pointer, " & ".join(masks)

    def _may_be_far(self, entry: tuple[Expr, Dim, str]) -> bool:
        """Whether an index times its stride may need more than 32 bits; those of a batch have 64."""
        index, extent, stride = entry
        return isinstance(extent, str) and stride != "1" and index != Const(0) and index not in self.batch

    def _strides(self, tensor: Tensor) -> list[str]:
        if tensor.strided:
            return [*(f"{tensor.name}_{axis}" for axis in stride_names(tensor)), "1"]
        return [_product(tensor.dims[i + 1 :]) for i in range(len(tensor.dims))]

    def _rank(self, expr: Expr) -> int:
        match expr:
            case Var(name):
                return len(self.types[name].shape)
            case Span():
                return 1
            case _:
                return 0

    # Expressions

    def _right_side(self, value: Expr) -> str:
        match value:
            case Dot(x, y):
                return f'tl.dot({formula(x)}, {formula(y)}, input_precision="ieee")'
            case Sum(x, axis):
                return f"tl.sum({x.name}, {axis})"
            case Max(x, axis):
                return f"tl.max({x.name}, {axis})"
            case _:
                return formula(value)


def stride_names(tensor: Tensor) -> list[str]:
    """Names of the stride parameters, one a dimension but the last."""
    return [str(dim).lower() for dim in tensor.dims[:-1]]


def _product(dims: tuple[Dim, ...]) -> str:
    """The product of extents as text; runtime sizes first, so that it is taken in 64 bits."""
    names = [dim for dim in dims if isinstance(dim, str)]
    number = prod(dim for dim in dims if isinstance(dim, int))
    return " * ".join([*names, *([str(number)] if number != 1 or not names else [])])


def _times(x: str, stride: str) -> str:
    return x if stride == "1" else f"{x} * {stride}"
