"""Print one tile program as a Gluon kernel: how it begins, what it keeps where, and its loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...ir.check import check
from ...ir.flags import Only
from ...ir.fuse import mapped, rebuilt
from ...ir.nodes import Binary, Const, Dim, Expr, For, Let, Span, Stmt, Var, When
from ...ir.printer import TIGHT
from ...ir.program import GROUPED, HEADS, Program, head_sizes
from ...ir.rewrite import apart
from ...ir.traits import SOFTMAX
from ...lower.ragged import RAGGED
from ...schedule import orders
from ...schedule.places import Plan, placed, plan_of
from ..bounds import Bounds
from ..layer import ScheduledForeign
from ..triton_parameters import parameters
from ..writer import Writer
from .layouts import Layouts
from .machines import MACHINES
from .rounds import Rounds
from .spelling import Spelling
from .steps import Steps


class GluonKernel:
    """Prints one kernel, of a program with one loop over tokens."""

    def __init__(self, scheduled: ScheduledForeign) -> None:
        self.kernel, schedule = scheduled.kernel, scheduled.schedule
        self.sizes = {name: max(schedule.values(name)) for name in self.kernel.constants}
        assert self.kernel.program is not None
        self.machine = MACHINES[scheduled.architecture]
        pieces = orders.chosen(self.kernel, schedule.rewrites)
        plan, self.copies = plan_of(self.kernel, pieces), pieces["copies"]
        program = _of_one_block(self.kernel.program, self.sizes)
        self.program, self.look = apart(placed(program, plan, self.sizes.__getitem__))
        self.types = check(self.program)
        self.plan: Plan = plan.of(self.program)
        self.operands = "IO" if SOFTMAX in self.program.does else "gl.bfloat16"
        """The dtype of what products read: sums of most layers leave the range of float16."""
        warps = max(setting.warps for setting in schedule.settings.values())
        self.layouts = Layouts(warps)
        self.spelling = Spelling(self.types, self.size, self.layouts, Bounds(self.program, schedule))

    def size(self, dim: Dim) -> int:
        """A static size as a number."""
        return self.sizes[dim] if isinstance(dim, str) else dim

    def rounded(self, text: str) -> str:
        """A tile in registers as an operand of products."""
        if self.operands == "gl.bfloat16":
            return f"rounded({text})"
        return f"{text if text.isidentifier() else f'({text})'}.to({self.operands})"

    def emit(self, w: Writer) -> None:
        """The function, with the same parameters as the portable kernel."""
        kernel = self.kernel
        body = self._body()
        w.line(f"@gluon.jit(do_not_specialize={list(kernel.sizes)!r})".replace("'", '"'))
        constants = (*kernel.flags, *kernel.constants, "STAGES")
        given = [*parameters(kernel), *(f"{name}: gl.constexpr" for name in constants)]
        w.call(f"def {kernel.name}(", given, "):")
        with w.indented():
            w.line(f'"""{self.machine.summary(kernel)}"""')
            if kernel.scalars:
                w.line("scale = gl.cast(scale, gl.float32)  # compilers of callers may pass 64 bits")
            self._program_ids(w)
            for line in body:
                w.line(line) if line else w.blank()
            if kernel.second_look and not self.look:
                self.look_again(w)  # which finds out by itself whether there is doubt

    def _program_ids(self, w: Writer) -> None:
        w.line("program = gl.program_id(0)")
        for axis in reversed(self.program.grid[1:]):
            extent = self.spelling.scalar(axis.extent, TIGHT)
            wide = ".to(gl.int64)" if axis.batch else ""
            index = f"program % {extent}"
            w.line(f"{axis.name} = ({index}){wide}" if wide else f"{axis.name} = {index}")
            w.line(f"program = program // {extent}")
        w.line(f"{self.program.grid[0].name} = program.to(gl.int64)")
        for size in dict.fromkeys(t.heads for t in self.program.tensors if t.heads and not t.strided):
            w.line(f"{size} = {size} if {GROUPED} else {HEADS}")

    def look_again(self, w: Writer) -> None:
        """Leave rows that may be spoilt to a second look."""
        look = self.kernel.second_look
        assert look is not None
        w.line("barrier()  # other threads have written what is written again")
        heads = head_sizes(look.tensors)  # without groups no parameters, which constants are not
        given = [f"{x} if {GROUPED} else 1" if x in heads else x for x in parameters(look)]
        w.call(f"{look.name}(", [*given, *look.flags, *look.constants])

    def _body(self) -> list[str]:
        (loop,) = (stmt for stmt in self.program.body if isinstance(stmt, For))
        place = self.program.body.index(loop)
        before, after = self.program.body[:place], self.program.body[place + 1 :]
        steps = Steps(self, loop)
        first, constants, state, end = Writer(), Writer(), Writer(), Writer()
        for stmt in before:
            steps.outside(self._section(stmt, first, constants, state), stmt)
        rounds = Rounds(self, loop, steps)
        bounds = rounds.bounds()
        inside = rounds.text()
        steps.leave()
        for stmt in after:
            steps.outside(end, stmt)
        memory, copies, sums = rounds.memory(), rounds.first_copies(), rounds.machine.memory()
        masks = rounds.masks()
        return [
            *_lines(first),
            *bounds,
            "",
            *(f"{name}: gl.constexpr = {value}" for name, value in self.layouts.found.items()),
            *memory,
            *_lines(constants),
            "",
            *copies,
            *(f"{name} = {self.spelling.runs[name]}" for name in self._runs(loop)),
            *masks,
            *sums,
            *_lines(state),
            *rounds.machine.enter(),
            *inside,
            *rounds.machine.leave(),
            *_lines(end),
        ]

    def _runs(self, loop: For) -> list[str]:
        """Runs of indices: first those of the loop's tiles, which makes a few registers' difference."""
        tiles = {stmt.name for stmt in loop.body if isinstance(stmt, Let)}
        return sorted(self.spelling.runs, key=lambda run: run.split("_")[0] not in tiles)

    def _section(self, stmt: Stmt, numbers: Writer, constants: Writer, tiles: Writer) -> Writer:
        """Where a statement before the loop goes: numbers, shared tiles that never change, or the state."""
        match stmt:
            case When(Var(flag), _) | Only(flag, _) if flag == RAGGED:
                return numbers
            case Let(name, value) if not isinstance(value, Span) and not self.types[name].shape:
                return numbers
            case Let(name, _) if name in self.plan.shared:
                return constants
        return tiles


def _of_one_block(program: Program, size: Mapping[str, int]) -> Program:
    """The program without axes of blocks of which there is only one."""
    single = [
        axis.name
        for axis in program.grid
        for x in (axis.extent,)
        if isinstance(x, Binary) and x.op == "cdiv" and isinstance(x.x, Const) and isinstance(x.y, Var)
        if x.x.value <= size[x.y.name]
    ]

    def first(expr: Expr) -> Expr:
        match expr:
            case Binary("mul", Var(name), _) if name in single:
                return Const(0)
        return rebuilt(expr, first)

    grid = tuple(axis for axis in program.grid if axis.name not in single)
    return replace(program, grid=grid, body=mapped(program.body, first))


def _lines(w: Writer) -> list[str]:
    return w.text().splitlines() if w.text().strip() else []
