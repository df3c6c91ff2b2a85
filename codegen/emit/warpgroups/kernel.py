"""What printers of kernels for Hopper's warpgroups share: how a kernel begins, tiles, and what it copies."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from textwrap import dedent

from ...ir.nodes import Head
from ...ir.program import GROUPED, HEADS, Program, head_sizes
from ...lower.ragged import RAGGED, TABLE
from ...schedule import orders
from ...spec.signature import OF_KEYS, OF_QUERIES, OF_STATES, OF_VALUES
from ..layer import ScheduledForeign
from ..triton_expression import formula
from ..writer import Writer
from .second_look import call

LAYOUTS = {
    # Results of products, and what single warps multiply.
    "SQUARE": "gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])",
    "WIDE": "gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])",
    "NARROW": "gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16])",
    "COLUMNS": "gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16])",
    "SUMS": "gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])",
    "PAIRS": "gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8])",
    "LEFT": "gl.DotOperandLayout(0, SQUARE, 2)",
    # Shared tiles, by the bytes of a row; and numbers, one a token.
    "BYTES_128": "gl.NVMMASharedLayout(128, 16)",
    "BYTES_64": "gl.NVMMASharedLayout(64, 16)",
    "BYTES_32": "gl.NVMMASharedLayout(32, 16)",
    "PLAIN": "gl.NVMMASharedLayout(0, 16)",
    "NUMBERS": "gl.SwizzledSharedLayout(1, 1, 1, [0])",
    # Who copies what.
    "ROWS_16": "gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])",
    "ROWS_64": "gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])",
    "ONES": "gl.BlockedLayout([1, 8], [32, 1], [4, 1], [1, 0])",
    "TOKENS": "gl.BlockedLayout([1], [32], [4], [0])",
}
"""What every layout that a kernel may name is; none needs one that stands after it."""


@dataclass(frozen=True)
class Stream:
    """Rows that are copied into shared memory ahead of their use, one tile a chunk."""

    tiles: str
    rows: str
    stride: str
    columns: str
    layout: str
    dtype: str = "IO"
    width: str = "VALUES"

    def allocate(self) -> str:
        """The tiles."""
        shape = f"[STAGES, CHUNK, {self.width}]"
        layout = {"ROWS_16": "BYTES_32", "ROWS_32": "BYTES_64", "ROWS_64": "BYTES_128"}[self.layout]
        return f"{self.tiles} = gl.allocate_shared_memory({self.dtype}, {shape}, {layout})"

    def fetch(self, slot: str, t: str, stop: str) -> str:
        """The copy of one tile, in the background."""
        where = f"{self.rows}, {t}, {self.stride}, {stop}, {self.columns}, {self.layout}"
        return f"fetch({self.tiles}.index({slot}), {where})"


@dataclass(frozen=True)
class Numbers:
    """The same for one number a token."""

    tiles: str
    row: str

    def allocate(self) -> str:
        """The tiles."""
        return f"{self.tiles} = gl.allocate_shared_memory(gl.float32, [STAGES, CHUNK], NUMBERS)"

    def fetch(self, slot: str, t: str, stop: str) -> str:
        """The copy of one tile, in the background."""
        return f"fetch_numbers({self.tiles}.index({slot}), {self.row}, {t}, {stop}, TOKENS)"


class WarpgroupKernel:
    """Prints one kernel."""

    layouts = LAYOUTS
    streams: tuple[Stream | Numbers, ...] = ()
    backwards = False
    """Whether it goes from the last chunk to the first."""
    blocks = False
    """Whether each program has a block of the values."""

    def __init__(self, scheduled: ScheduledForeign, facts: dict[str, str]) -> None:
        self.w, self.kernel, self.facts = Writer(), scheduled.kernel, facts
        for name, size in {"HEAD_Q": OF_QUERIES, "HEAD_K": OF_KEYS, "HEAD_V": OF_VALUES}.items():
            facts[name] = self.head(size)
        states = OF_STATES if OF_STATES in self.kernel.sizes else HEADS
        self.whole = f"b * {states} + {self.head(OF_STATES)}"
        """The number of a program's sequence and head, among those that have a state."""
        self.order = orders.chosen(scheduled.kernel, scheduled.schedule.rewrites)

    def emit(self, w: Writer, parameters: list[str]) -> None:
        """The function; `parameters` are tensors, strides, sizes and scalars, as in other kernels."""
        kernel = self.kernel
        w.line(f"@gluon.jit(do_not_specialize={list(kernel.sizes)!r})".replace("'", '"'))
        constants = (*kernel.flags, *kernel.constants, "STAGES")
        w.call(f"def {kernel.name}(", [*parameters, *(f"{name}: gl.constexpr" for name in constants)], "):")
        self.body()
        if kernel.second_look:
            self.look_again(kernel.second_look)
        with w.indented():
            w.line(f'"""{kernel.summary}"""')
            self._where(w)
            for line in _named(self.layouts, self.w.text()):
                w.line(line)
            for line in self.w.text().splitlines():
                w.line(line)

    def body(self) -> None:
        """Print everything after layouts to `self.w`."""
        raise NotImplementedError

    def look_again(self, function: Program) -> None:
        """Leave rows that may be spoilt to a second look, which finds out by itself whether any are."""
        call(self.w, function)

    def print(self, text: str) -> None:
        """Lines, with facts in place of @NAMES@."""
        for name, value in self.facts.items():
            text = text.replace(f"@{name}@", value)
        for line in dedent(text).strip("\n").rstrip().splitlines():
            self.w.line(line)

    def _where(self, w: Writer) -> None:
        """Which batch, head, segment and values a program works on."""
        if self.kernel.scalars:
            w.line("scale = gl.cast(scale, gl.float32)  # compilers of callers may pass 64 bits")
        w.line("program = gl.program_id(0)")
        if self.blocks:
            w.line(f"value_block = program % gl.cdiv({self.facts['V']}, VALUES)")
            w.line(f"program = program // gl.cdiv({self.facts['V']}, VALUES)")
        for line in (
            "segment = program % segments",
            "program = program // segments",
            "h = (program % H).to(gl.int64)",
            "b = (program // H).to(gl.int64)",
        ):
            w.line(line)
        if RAGGED in self.kernel.flags:
            w.line(f"if {RAGGED}:")
            with w.indented():
                for line in self._table:
                    w.line(line)
            w.line("else:")
        with w.indented() if RAGGED in self.kernel.flags else nullcontext():
            w.line("length = gl.cdiv(gl.cdiv(T, SEGMENT), segments) * SEGMENT")
            w.line("start = segment * length")
            w.line("stop = gl.minimum(start + length, T)")
        groups = head_sizes(self.kernel.tensors)
        for size in (size for size in self.kernel.sizes if size in groups):
            w.line(f"{self.head(size)} = {formula(Head(size, None))}")
        if OF_STATES in self.kernel.sizes:
            w.line(f"{OF_STATES} = {OF_STATES} if {GROUPED} else {HEADS}")
        w.blank()

    def head(self, size: str) -> str:
        """The head of a program among those that a size counts; its own where heads are no groups."""
        return f"head_{size[1:].lower()}" if size in self.kernel.sizes else "h"

    _table = (
        f"start = gl.load({TABLE.name} + segment * {TABLE.dims[1]})",
        f"stop = gl.load({TABLE.name} + segment * {TABLE.dims[1]} + 1)",
        "if not (start < stop):",
        "    return",
    )
    """Where a segment of packed sequences is: see `lower/ragged.py`."""

    # Memory

    def tiles(self, **tiles: tuple[str, str]) -> None:
        """Allocate the streams' tiles, and others that are used anew for every chunk: shape and layout."""
        element = next(t.name for t in self.kernel.tensors if t.strided)
        self.w.line(f"IO: gl.constexpr = {element}.dtype.element_ty")
        for stream in self.streams:
            self.print(stream.allocate())
        self.once = tuple(tiles)
        for name, (shape, layout) in tiles.items():
            dtype = "IO" if name == "out" else "gl.bfloat16"
            # Their addresses are hidden from the compiler: see `hide_addresses`.
            name, shape = f"{name}_memory", f"[1, {shape[1:]}"
            self.print(f"{name} = gl.allocate_shared_memory({dtype}, {shape}, {layout})")

    def fetch_first(self) -> None:
        """Begin to copy the first chunks."""
        first, step = ("last", "-") if self.backwards else ("start", "+")
        if self.backwards:
            self.w.line("last = start + (gl.cdiv(stop - start, CHUNK) - 1) * CHUNK")
        self.w.line("for i in gl.static_range(STAGES - 1):")
        with self.w.indented():
            self.w.line(f"t = {first} {step} i * CHUNK")
            self._fetch("i", "t")

    def loop(self) -> str:
        """The loop over chunks."""
        return (
            "for back in range(start, stop, CHUNK):"
            if self.backwards
            else "for t0 in range(start, stop, CHUNK):"
        )

    def next_chunk(self) -> None:
        """Wait for a chunk's rows."""
        if self.backwards:
            self.w.line("t0 = last - (back - start)")
        self.print("""
            async_copy.wait_group(STAGES - 2)
            barrier()  # this chunk has arrived, and all warps are done with the one before it
        """)

    def hide_addresses(self) -> None:
        """Let the tiles' addresses vary with the loop, as far as the compiler can know.

        Those that do not vary it keeps, and there are too many of them: spilled ones cost up to 30 %.
        """
        self.print("""
            zero = gl.where(slot == STAGES, 1, 0)  # 0, but of that the compiler knows nothing
        """)
        for name in self.once:
            self.w.line(f"{name} = {name}_memory.index(zero)")

    def copies(self, place: str) -> None:
        """Begin to copy a later chunk, if the order says that it is now."""
        if self.order["copies"] == place:
            self.fetch_ahead()

    def fetch_ahead(self) -> None:
        """Begin to copy a later chunk, into tiles that the one before this chunk had."""
        self.w.line(f"ahead = t0 {'-' if self.backwards else '+'} (STAGES - 1) * CHUNK")
        self.w.line("free = gl.where(slot == 0, STAGES - 1, slot - 1)")
        self._fetch("free", "ahead")

    def _fetch(self, slot: str, t: str) -> None:
        stop = "stop"
        if self.backwards:
            self.w.line(f"end = gl.where({t} < start, {t}, stop)")
            stop = "end"
        for stream in self.streams:
            self.print(stream.fetch(slot, t, stop))
        self.w.line("async_copy.commit_group()")

    def show(self) -> None:
        """Let products see what has been stored."""
        self.print("""
            fence_async_shared()
            barrier()  # products see what has been stored
        """)

    def advance(self) -> None:
        """The next chunk's slot."""
        self.w.line("slot = gl.where(slot == STAGES - 1, 0, slot + 1)")


def _named(layouts: dict[str, str], body: str) -> list[str]:
    """Those layouts that a body names, as assignments."""
    found: list[str] = []
    for name, layout in reversed(layouts.items()):
        if re.search(rf"\b{name}\b", "\n".join([body, *found])):
            found.insert(0, f"{name}: gl.constexpr = {layout}")
    return found
