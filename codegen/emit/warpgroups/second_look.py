"""The second look of a kernel for warpgroups: a tile program like any other, printed as Gluon.

It has loads, stores, elementwise work and sums along axes, and so one layout does for all of its matrices.
A vector lies along one axis of them: how it is used says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir.build import Builder
from ...ir.check import walk
from ...ir.fuse import statements
from ...ir.heads import ungrouped
from ...ir.kernels import ForeignKernel
from ...ir.nodes import (
    Add,
    Binary,
    Const,
    Dim,
    Expand,
    Expr,
    Full,
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
from ...ir.program import Program
from ...ir.rewrite import drop_unused
from ...lower import linear_attention_parts, sliding_window_parts
from ...lower.feature_maps import feature_map
from ...lower.groups import over_queries
from ...lower.ragged import RAGGED, never
from ...mixers.linear_attention import LinearAttention
from ...mixers.sliding_window import SlidingWindow
from ...names import second_look
from ...schedule.foreign import WINDOW_TILES, walk_tiles
from ...spec.model import LayerSpec
from ...spec.signature import OF_STATES
from ..layer import ScheduledForeign, ScheduledProgram
from ..triton_kernel import TritonKernel
from ..triton_parameters import parameters
from ..writer import Writer

LAYOUTS = (
    "TILE: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [{warps}, 1], [1, 0])",
    "ROW: gl.constexpr = gl.SliceLayout(0, TILE)",
    "COLUMN: gl.constexpr = gl.SliceLayout(1, TILE)",
)
VECTORS = {0: "ROW", 1: "COLUMN"}
"""Layouts of vectors, by the axis that they get as matrices."""


def with_second_look(spec: LayerSpec, kernel: ForeignKernel) -> ForeignKernel:
    """The kernel with the second look of what it computes, over all of its segment."""
    b = Builder()
    match spec:
        case LinearAttention():
            layer = linear_attention_parts.Layer(spec, feature_map(spec))
            _linear_attention(b, layer, kernel)
            tiles = walk_tiles(kernel.printer, spec.head_dims.qk, layer.features.block)
        case SlidingWindow():
            _sliding_window(b, sliding_window_parts.Layer(spec), kernel)
            tiles = WINDOW_TILES
    if not b.body:
        return kernel
    bounds = tiles | kernel.bounds
    constants = tuple(dict.fromkeys((*kernel.constants, *tiles)))
    look = Program(
        second_look(kernel.name),
        "The rows again, by selects.",
        kernel.grid,
        kernel.tensors,
        kernel.sizes,
        kernel.scalars,
        kernel.flags,
        constants,
        b.body,
        bounds,
    )
    look = drop_unused(look if RAGGED in kernel.flags else never(look))
    states = (tensor.name for tensor in kernel.tensors if tensor.heads == OF_STATES)
    look = over_queries(ungrouped(look), *states)
    return replace(kernel, constants=constants, bounds=bounds, second_look=look)


def _linear_attention(b: Builder, layer: linear_attention_parts.Layer, kernel: ForeignKernel) -> None:
    match kernel.instead_of:
        case "recurrence":
            layer.walk(b, Var("value_block") * "VALUES").outputs()
        case "query_gradients":
            layer.walk(b).query_gradients()
        case "key_gradients":
            layer.walk(b).key_gradients()


def _sliding_window(b: Builder, layer: sliding_window_parts.Layer, kernel: ForeignKernel) -> None:
    first, stop = layer.segment(b)
    rows = layer.rows(b)
    if kernel.instead_of == "outputs":
        with rows.spoilt(first, stop, {"o": rows.u}):
            rows.outputs(first, stop)
    else:
        with rows.spoilt(first, stop, {"dq": rows.d, "dk": rows.d, "dv": rows.u}):
            rows.query_gradients(first, stop)
            rows.key_gradients(first, stop)


def emit_second_look(w: Writer, scheduled: ScheduledForeign) -> None:
    """The function, if the kernel has one."""
    look = scheduled.kernel.second_look
    if look:
        program = ScheduledProgram.of(look, replace(scheduled.schedule, rewrites=()))
        SecondLook(w, program).emit("noinline=True")
        w.blank(2)


def call(w: Writer, look: Program) -> None:
    """A kernel's last step, where it is in doubt or leaves that to the function."""
    w.line("barrier()  # other threads have written what is written again")
    w.call(f"{look.name}(", [*parameters(look), *look.flags, *look.constants])


class SecondLook(TritonKernel):
    """Prints one function."""

    language = "gl"
    decorator = "gluon.jit"
    barrier = "barrier()"

    def __init__(self, w: Writer, scheduled: ScheduledProgram) -> None:
        super().__init__(w, scheduled, scheduled.program)
        self.has_offset = False  # kernels for warpgroups serve no tensors that reach so far
        self.warps = max(setting.warps for setting in scheduled.schedule.settings.values())
        self.axes = _Axes(self)

    def _program_ids(self) -> None:
        for layout in LAYOUTS:
            self.w.line(layout.format(warps=self.warps))
        super()._program_ids()

    def _statement(self, stmt: Stmt) -> None:
        match stmt:
            case Let(name, Span(start, size)):
                if name in self.named:
                    offset = f"{self.text(start)} + " if start != Const(0) else ""
                    self.w.line(f"{name} = {offset}{self._run(size, Var(name))}")
            case Let(name, Full(shape, value)) if shape:
                layout = self._layout(Var(name)) if len(shape) == 1 else "TILE"
                sizes = ", ".join(map(str, shape))
                self.w.line(f"{name} = gl.full([{sizes}], {value!r}, gl.float32, {layout})")
            case When(Binary() as condition, body):
                self.w.line(f"if {self.text(condition)}:")
                with self.w.indented():
                    self._block(body)
            case _:
                super()._statement(stmt)

    def _run(self, size: Dim, along: Expr | int) -> str:
        return f"gl.arange(0, {size}, {self._layout(along)})"

    def _layout(self, along: Expr | int) -> str:
        return VECTORS[along if isinstance(along, int) else self.axes.of(along)]


class _Axes:
    """The axis of every vector of a program: vectors that meet have the same."""

    def __init__(self, kernel: SecondLook) -> None:
        self._kernel = kernel
        self._same: dict[str | int, str | int] = {}
        for stmt in statements(kernel.program.body):
            match stmt:
                case Let(name, Load(index=index)) | Set(name, Load(index=index)):
                    self._accessed(index, [name])
                case Store(_, index, value):
                    self._accessed(index, self._vectors(value))
                case Let(name, Sum(x, axis) | Max(x, axis)) | Add(name, Sum(x, axis)):
                    if kernel.rank(x) == 2:
                        self._join([name, axis])
                case Let(name, value) | Set(name, value) | Add(name, value):
                    met = self._vectors(value)
                    self._join([name, *met] if kernel.rank(Var(name)) == 1 else met)

    def of(self, vector: Expr) -> int:
        """The axis of a vector."""
        assert isinstance(vector, Var)
        axis = self._find(vector.name)
        if not isinstance(axis, int):
            raise TypeError(f"nothing says along which axis {vector.name} lies")
        return axis

    def _accessed(self, index: tuple[Expr, ...], vectors: list[str]) -> None:
        """Index tiles lie along the axes of what they load or store."""
        tiles = [entry.name for entry in index if isinstance(entry, Var) and self._kernel.rank(entry)]
        if len(tiles) == 1:
            self._join([*tiles, *vectors])
        for axis, tile in zip((1, 0), tiles if len(tiles) == 2 else (), strict=False):
            self._join([axis, tile])

    def _vectors(self, value: Expr) -> list[str]:
        """Vectors that meet in an expression as vectors; those laid along an axis of a matrix have that."""
        laid: set[str] = set()
        for node in walk(value):
            if isinstance(node, Expand):
                inner = [x.name for x in walk(node.x) if isinstance(x, Var) and self._kernel.rank(x) == 1]
                self._join([1 if node.axis == 1 else 0, *inner])
                laid |= set(inner)
        names = [x.name for x in walk(value) if isinstance(x, Var) and self._kernel.rank(x) == 1]
        return [name for name in names if name not in laid]

    def _join(self, members: Sequence[str | int]) -> None:
        roots = {self._find(member) for member in members}
        axes = [root for root in roots if isinstance(root, int)]
        if len(axes) > 1:
            raise TypeError(f"{', '.join(map(str, members))} lie along both axes")
        for root in roots:
            first = axes[0] if axes else next(iter(roots))
            if root != first:
                self._same[root] = first

    def _find(self, member: str | int) -> str | int:
        while member in self._same:
            member = self._same[member]
        return member
