"""Print scheduled programs as Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.check import infer, walk
from ..ir.flags import Only
from ..ir.fuse import expressions, handed_on, statements
from ..ir.kernels import counts
from ..ir.nodes import (
    INDEX,
    Add,
    Comment,
    Const,
    Dim,
    Dot,
    Doubt,
    Expand,
    Expr,
    For,
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
    Var,
    When,
)
from ..ir.printer import TIGHT
from ..ir.program import (
    GROUPED,
    HAS_SLOT,
    HEADS,
    SLOT,
    Program,
    Tensor,
    head_sizes,
    loads_ahead,
    uses_operands,
)
from ..ir.rewrite import apart
from .bounds import Bounds
from .layer import ScheduledProgram
from .triton_expression import cast_suffix, formula
from .triton_parameters import (
    parameters,
    pool_offset,
    pool_stride,
    pools,
    product,
    stride_names,
    times,
    vector_of,
)
from .writer import Writer


def emit_kernel(w: Writer, scheduled: ScheduledProgram) -> None:
    """Print a program, and before it the function to which it leaves its second look."""
    kernel, look = apart(scheduled.program)
    if look:
        TritonKernel(w, scheduled, look).emit("noinline=True")
        w.blank(2)
    # Lengths and counts change from call to call; of rows it matters whether they are whole vectors.
    sizes = str([*counts(kernel), *map(pool_stride, pools(kernel))]).replace("'", '"')
    TritonKernel(w, scheduled, kernel, look).emit(f"do_not_specialize={sizes}")


class TritonKernel:
    """Prints one program as a ``@triton.jit`` function; `look` is what it calls where it is in doubt.

    A call keeps the second look's registers out of the program's loops.
    """

    language = "tl"
    decorator = "triton.jit"
    barrier = "tl.debug_barrier()"

    def __init__(
        self, w: Writer, scheduled: ScheduledProgram, program: Program, look: Program | None = None
    ) -> None:
        self.w, self.program, self.look, self.types = w, program, look, scheduled.types
        self.bounds = Bounds(scheduled.program, scheduled.schedule)
        axes = [Var(axis.name) for axis in program.grid if axis.batch or axis.leads]
        self.batch = axes + self._heads()
        lets = [stmt for stmt in statements(program.body) if isinstance(stmt, Let)]
        self.batch += [Var(let.name) for let in lets if isinstance(let.value, Const)]
        self.named = self._named_spans()
        self.read: set[tuple[str, tuple[Expr, ...]]] = set()  # what was loaded, and not stored since
        self.rows = self._rows()
        self.summed_up = self._summed_up() if self.language == "tl" else {}
        self.condition = ""
        self.has_offset = any(map(self._may_be_far, self._entries()))
        self.is_step = self.language == "tl" and bool(pools(program))
        self.counted = {s.var for s in statements(self.program.body) if isinstance(s, For) and not s.ahead}

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

    def _heads(self) -> list[Var]:
        """The variables that are heads of tensors, in as many bits as the program's own."""
        lets = (stmt for stmt in statements(self.program.body) if isinstance(stmt, Let))
        return [Var(stmt.name) for stmt in lets if isinstance(stmt.value, Head)]

    def _entries(self) -> Iterator[tuple[Expr, Dim, str]]:
        """Every index of every access, with the extent and the stride of its dimension."""
        for stmt in statements(self.program.body):
            access = stmt if isinstance(stmt, Store) else getattr(stmt, "value", None)
            if isinstance(access, Load | Store):
                tensor = self.program.tensor(access.tensor)
                yield from zip(access.index, tensor.dims, self._strides(tensor), strict=True)

    def _summed_up(self) -> dict[str, Var]:
        """Matrices that are summed up as a whole, by the names of the sums of their rows.

        In two steps Triton 3.7 fails on Blackwell, if the matrix is an accumulator of products.
        """
        values = {s.name: s.value for s in statements(self.program.body) if isinstance(s, Let)}
        read = [node for s in statements(self.program.body) for x in expressions(s) for node in walk(x)]
        sums = {x.x.name for x in read if isinstance(x, Sum) and x.axis == 0}
        rows = {name: value.x for name, value in values.items() if isinstance(value, Sum) and value.axis == 1}
        once = {name for name in rows if sum(node == Var(name) for node in read) == 1}
        return {name: matrix for name, matrix in rows.items() if name in sums & once}

    def _rows(self) -> set[str]:
        """Vectors that are laid along the columns of a matrix, as they were introduced."""
        every = list(statements(self.program.body))
        return {
            node.x.name
            for stmt in every
            for expr in expressions(stmt)
            for node in walk(expr)
            if isinstance(node, Expand) and node.axis == 0 and isinstance(node.x, Var)
        } - {stmt.name for stmt in every if isinstance(stmt, Set)}

    def emit(self, options: str) -> None:
        program, w = self.program, self.w
        w.line(f"@{self.decorator}({options})")
        offset = ["OFFSET: tl.constexpr = tl.int32"] if self.has_offset else []
        early = ["EARLY: tl.constexpr = False"] if self.is_step else []
        constants = [f"{name}: {self.language}.constexpr" for name in self._constants()]
        w.call(f"def {program.name}(", [*parameters(program), *constants, *offset, *early], "):")
        with w.indented():
            w.line(f'"""{program.summary}"""')
            if early:
                w.line("if EARLY:  # launched before the kernel ahead has ended, as the next one may be now")
                w.line("    tl.extra.cuda.gdc_wait()")
                w.line("    tl.extra.cuda.gdc_launch_dependents()")
            for scalar in program.scalars:
                cast = self._cast(Var(scalar), "float32")
                w.line(f"{scalar} = {cast}  # compilers of callers may pass 64 bits")
            self._program_ids()
            self._block(program.body)

    def _constants(self) -> list[str]:
        """What the kernel is compiled for, besides how far its tensors reach."""
        program = self.program
        return [
            *program.flags,
            *program.constants,
            *(["OPERAND"] if uses_operands(program) else []),
            *(["STAGES"] if loads_ahead(program) else []),
        ]

    def _program_ids(self) -> None:
        rest = "program"
        self.w.line(f"program = {self.language}.program_id(0)")
        for axis in reversed(self.program.grid[1:]):
            extent = self.text(axis.extent, TIGHT)
            wide = f".to({self.language}.int64)" if Var(axis.name) in self.batch else ""
            self.w.line(
                f"{axis.name} = ({rest} % {extent}){wide}" if wide else f"{axis.name} = {rest} % {extent}"
            )
            self.w.line(f"program = {rest} // {extent}")
        first = self.program.grid[0]
        self.w.line(f"{first.name} = program.to({self.language}.int64)")
        packed = (tensor.heads for tensor in self.program.tensors if not tensor.strided)
        for size in dict.fromkeys(filter(None, packed)):
            self.w.line(f"{size} = {size} if {GROUPED} else {HEADS}")
        for indices in dict.fromkeys(tensor.slots for tensor in self.program.tensors if tensor.slots):
            self._find_slot(first.name, self.program.tensor(indices))

    def _find_slot(self, entry: str, indices: Tensor) -> None:
        """Where the program's entry is in each pool; without indices these are dense, and have no pool.

        Then offsets are written as those of other tensors, which takes fewer registers than strides.  Either
        way Triton learns of the same vectors: it lays tiles out by them, and so the order of sums.
        """
        w, language = self.w, self.language
        w.line(f"{HAS_SLOT} = True")
        for pool in pools(self.program):
            w.line(f"{pool_offset(pool)} = {entry} * {product(pool.stored[1:])}")
        w.line(f"if {indices.optional}:")
        with w.indented():
            w.line(f"{SLOT} = {language}.load({indices.name} + {entry}).to({language}.int64)")
            w.line(f"{HAS_SLOT} = ({SLOT} >= 0) & ({SLOT} < slots)")
            for pool in pools(self.program):
                offset = f"{SLOT} * {pool_stride(pool)}"
                if vector := vector_of(pool):
                    offset = f"{language}.multiple_of({offset}, {vector})"
                w.line(f"{pool_offset(pool)} = {offset}")

    # Statements

    def _block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self._statement(stmt)

    def _statement(self, stmt: Stmt) -> None:
        w = self.w
        match stmt:
            case Let(name, Span()) if name not in self.named:
                pass  # addresses spell it out
            case Let(name, Sum()) if name in self.summed_up:
                pass
            case Let(name, Load() as load) | Set(name, Load() as load):
                self._load(name, load)
            case Let(name, value) | Set(name, value):
                w.line(f"{name} = {self._right_side(value)}")
            case Add(name, Dot(x, y)):
                w.line(f'{name} = tl.dot({self.text(x)}, {self.text(y)}, {name}, input_precision="ieee")')
            case Add(name, value):
                w.line(f"{name} += {self._right_side(value)}")
            case Store(tensor, index, value):
                if (tensor, index) in self.read and len(infer(value, self.types, self.program).shape) < 2:
                    # Several warps hold such a vector, and one of them writes it.
                    w.line(f"{self.barrier}  # every warp has read what is now overwritten")
                self.read.discard((tensor, index))
                pointer, mask = self._address(tensor, index)
                mask = " & ".join(part for part in (mask, self.condition) if part)
                arguments = [pointer, self.text(value), *([f"mask={mask}"] if mask else [])]
                w.call(f"{self.language}.store(", arguments)
            case For(var, start, stop, step, body, ahead, several, False):
                end = f"{self.text(stop)} if {several} else 1" if several else self.text(stop)
                bounds = f"{self.text(start)}, {end}, {self.text(step)}"
                # By itself Triton loads ahead only for products.
                rounds = f"tl.range({bounds}, num_stages=STAGES)" if ahead else f"range({bounds})"
                w.line(f"for {var} in {rounds}:")
                with w.indented():
                    self._block(body)
                    if handed_on(stmt):
                        w.line(f"if {several}:")
                        with w.indented():
                            w.line("tl.debug_barrier()  # the next round reads what this one has stored")
            case When(Var() as condition, body) | When(condition, body, each=True):
                w.line(f"if {self.text(condition)}:")
                with w.indented():
                    self._block(body)
            case When(Doubt(x), body):
                w.line(f"if {x.name} != 0.0:  # NaN")
                with w.indented():
                    if self.look:
                        self._call(self.look)
                    self._block(body)
            case When(condition, body):
                # As a mask of what is stored: Triton 3.7 cannot load ahead across branches on Blackwell.
                made = (inner.value for inner in body if isinstance(inner, Let))
                assert all(isinstance(inner, Let | Store) for inner in body)
                assert not any(isinstance(value, Load) for value in made)
                self.condition = f"({self.text(condition)})"
                self._block(body)
                self.condition = ""
            case Only(flag, condition):
                w.line(f"if {flag}:")
                with w.indented():
                    w.line(f"if not ({self.text(condition)}):")
                    with w.indented():
                        w.line("return")
            case Comment(words):
                w.line(f"# {words}")

    def _call(self, look: Program) -> None:
        self.w.line("tl.debug_barrier()  # other threads have written what is written again")
        offset = ["OFFSET"] if self.has_offset else []
        heads = head_sizes(look.tensors)  # without groups no parameters, which constants are not
        given = [f"{x} if {GROUPED} else 1" if x in heads else x for x in parameters(look)]
        passed = [*given, *look.flags, *look.constants, *offset]
        self.w.call(f"{look.name}(", passed)

    def _load(self, name: str, load: Load) -> None:
        self.read.add((load.tensor, load.index))
        pointer, mask = self._address(load.tensor, load.index)
        fill = 0 if load.dtype == INDEX and not load.fill else load.fill
        guard = [f"mask={mask}", f"other={fill}"] if mask else []
        suffix = cast_suffix(load.dtype, self.language)
        self.w.call(f"{name} = {self.language}.load(", [pointer, *guard], f"){suffix}")
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
        tiles = [entry for entry in index if self.rank(entry)]
        base, offsets = [name], []
        masks = [HAS_SLOT] if tensor.slots else []
        for entry, extent, stride in zip(index, tensor.dims, strides, strict=True):
            if tensor.slots and entry is index[0]:
                base.append(pool_offset(tensor))
                continue
            far = self._may_be_far((entry, extent, stride))
            if not self.rank(entry):
                if entry != Const(0):
                    base.append(times(self._scalar(entry, far), stride))
                continue
            position = tiles.index(entry)
            side = "" if len(tiles) == 1 else ("[:, None]" if position == 0 else "[None, :]")
            span = self.bounds.span(entry)
            if span is None:
                place = self._cast(entry, "int64") if far else self.text(entry)
                offsets.append(times(f"{place}{side}", stride))
            else:
                if span.start != Const(0):
                    base.append(times(self._cast(span.start, "int64"), stride))
                run = self._run(span.size, entry if len(tiles) == 1 else 1 - position)
                run = f"tl.cast({run}, OFFSET)" if far and self.has_offset else run
                offsets.append(times(f"{run}{side}", stride))
            masks += (f"({self.text(test)}){side}" for test in self.bounds.conditions(entry, extent))
        pointer = " + ".join(base)
        if offsets:
            pointer += f" + ({' + '.join(offsets)})" if len(offsets) > 1 else f" + {offsets[0]}"
        return pointer, " & ".join(masks)

    def _may_be_far(self, entry: tuple[Expr, Dim, str]) -> bool:
        """Whether an index times its stride may need more than 32 bits; those of a batch have 64."""
        index, extent, stride = entry
        return isinstance(extent, str) and stride != "1" and index != Const(0) and index not in self.batch

    def _scalar(self, entry: Expr, far: bool) -> str:
        """An index that is no tile; a token's has 64 bits, since `OFFSET` is for those within a tile."""
        if far and (not isinstance(entry, Var) or entry.name in self.counted):
            return self._cast(entry, "int64")
        return f"tl.cast({self.text(entry)}, OFFSET)" if far and self.has_offset else self.text(entry, TIGHT)

    def _cast(self, expr: Expr, dtype: str) -> str:
        return f"{self.language}.cast({self.text(expr)}, {self.language}.{dtype})"

    def _run(self, size: Dim, along: Expr | int) -> str:
        """A run of indices: those of a vector, or along an axis of a matrix."""
        return f"tl.arange(0, {size})"

    def _strides(self, tensor: Tensor) -> list[str]:
        named = [f"{tensor.name}_{axis}" for axis in stride_names(tensor)]
        if tensor.strided:
            return [*named, "1"]
        stored = tensor.stored
        return [*named, *(product(stored[i + 1 :]) for i in range(len(named), len(stored)))]

    def rank(self, expr: Expr) -> int:
        """How many axes an index or a variable has."""
        match expr:
            case Var(name):
                return len(self.types[name].shape)
            case Span():
                return 1
            case _:
                return 0

    # Expressions

    def text(self, expr: Expr, outer: int = 0) -> str:
        """An expression."""
        return formula(expr, outer, self.language)

    def _right_side(self, value: Expr) -> str:
        match value:
            case Dot(x, y):
                return f'tl.dot({self.text(x)}, {self.text(y)}, input_precision="ieee")'
            case Sum(x, 0) if x.name in self.summed_up:
                return f"tl.sum({self.summed_up[x.name].name})"
            case Sum(x, axis):
                return f"{self.language}.sum({x.name}, {axis})"
            case Max(x, axis):
                return f"{self.language}.max({x.name}, {axis})"
            case RunningSum(x):
                return f"tl.cumsum({x.name}, 0)"
            case _:
                return self.text(value)
