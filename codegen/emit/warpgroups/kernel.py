"""What printers of kernels for Hopper's warpgroups share: how a kernel begins, tiles, and what it copies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent

from ...ir.nodes import Var, wrap
from ...ir.printer import text
from ...lower.feature_maps import feature_map
from ...schedule.legal import EXCHANGED
from ...spec.model import LinearAttention
from ..layer import ScheduledProgram
from ..writer import Writer

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
    "QK_ROWS": "gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])",
    "VALUE_ROWS": "gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])",
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

    def allocate(self) -> str:
        """The tiles, one a stage."""
        if self.layout == "TOKENS":
            return f"{self.tiles} = gl.allocate_shared_memory(gl.float32, [STAGES, CHUNK], NUMBERS)"
        width, layout = ("@QK@", "BYTES_32") if self.layout == "QK_ROWS" else ("VALUES", "BYTES_128")
        return f"{self.tiles} = gl.allocate_shared_memory({self.dtype}, [STAGES, CHUNK, {width}], {layout})"

    def fetch(self, slot: str, t: str, stop: str) -> str:
        """The copy of one tile, in the background."""
        tile = f"{self.tiles}.index({slot})"
        if self.layout == "TOKENS":
            return f"fetch_numbers({tile}, {self.rows}, {t}, {self.stride}, {stop}, TOKENS)"
        return f"fetch({tile}, {self.rows}, {t}, {self.stride}, {stop}, {self.columns}, {self.layout})"


QUERIES = Stream("queries", "q_rows", "q_t", "@D@", "QK_ROWS")
KEYS = Stream("keys", "k_rows", "k_t", "@D@", "QK_ROWS")
VALUES = Stream("values", "v_rows", "v_t", "@COLUMNS@", "VALUE_ROWS")

FEATURE_TILES = {"wide": ("[CHUNK, 128]", "BYTES_128"), "narrow": ("[CHUNK, 32]", "BYTES_64")}
STATE_TILES = {
    "S_wide_operand": ("[VALUES, 128]", "BYTES_128"),
    "S_narrow_operand": ("[VALUES, 32]", "BYTES_64"),
}


class WarpgroupKernel:
    """Prints one kernel."""

    streams: tuple[Stream, ...] = ()
    backwards = False
    """Whether it goes from the last chunk to the first."""
    hidden = True
    """Whether the addresses of its tiles are hidden from the compiler: see `hide_addresses`."""

    def __init__(self, spec: LinearAttention, scheduled: ScheduledProgram) -> None:
        self.w, self.kernel, self.normalize = Writer(), scheduled.program, spec.normalize
        (values,) = scheduled.schedule.values("VALUES")
        features = feature_map(spec)
        v = spec.head_dims.v
        self.blocks = v > values
        rest = f"{v} - value_block * VALUES" if self.blocks else str(v)
        self.facts = {
            "V": str(v),
            "D": str(spec.head_dims.qk),
            "QK": str(EXCHANGED),
            "ROWS": str(features.rows),
            "EPS": repr(spec.eps),
            "COLUMNS": "VALUES" if v % values == 0 else rest,
            "FIRST": " + value_block * VALUES" if self.blocks else "",
            "SEEN": text(features.kernel(Var("R"), wrap(1.0))),
            "SLOPE": text(features.slope(Var("R"), wrap(1.0))),
            "INDEX": "(b * H + h) * segments + segment",
        }

    def emit(self, w: Writer, parameters: list[str]) -> None:
        """The function; `parameters` are tensors, strides, sizes and scalars, as in other kernels."""
        kernel = self.kernel
        w.line(f"@gluon.jit(do_not_specialize={list(kernel.sizes)!r})".replace("'", '"'))
        constants = (*kernel.flags, *kernel.constants, "STAGES")
        w.call(f"def {kernel.name}(", [*parameters, *(f"{name}: gl.constexpr" for name in constants)], "):")
        self.body()
        with w.indented():
            w.line(f'"""{kernel.summary}"""')
            self._where(w)
            for line in _layouts(self.w.text()):
                w.line(line)
            for line in self.w.text().splitlines():
                w.line(line)

    def body(self) -> None:
        """Print everything after layouts to `self.w`."""
        raise NotImplementedError

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
            "length = gl.cdiv(gl.cdiv(T, SEGMENT), segments) * SEGMENT",
            "start = segment * length",
            "stop = gl.minimum(start + length, T)",
            "",
        ):
            w.line(line) if line else w.blank()

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
            if self.hidden:
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

    # Pieces of a chunk

    def keys_and_values(self) -> None:
        """Tiles of keys and values, and their features, as operands."""
        self.print("""
            K = keys.index(slot)
            V = values.index(slot)
            if IO == gl.float16:  # sums leave its range, so products are of bfloat16
                K, x = in_bfloat16(K, LEFT)
                V, _ = in_bfloat16(V, LEFT)
            else:
                x = K.load(LEFT)
            wide, narrow = features(x, LEFT)
        """)

    def store_features(self, side: str) -> None:
        """A chunk's features, and the state, as what products read."""
        self.print(f"""
            {side}_wide.store(wide)
            {side}_narrow.store(narrow)
            S_wide_operand.store((S_wide * weight[None, :]).to(gl.bfloat16))
            S_narrow_operand.store(S_narrow.to(gl.bfloat16))
        """)

    def show(self) -> None:
        """Let products see what has been stored."""
        self.print("""
            fence_async_shared()
            barrier()  # products see what has been stored
        """)

    def advance(self) -> None:
        """The next chunk's slot."""
        self.w.line("slot = gl.where(slot == STAGES - 1, 0, slot + 1)")

    # The state

    def columns(self) -> None:
        """Indices of the state's columns and rows."""
        self.print("""
            f_wide = gl.arange(0, 128, gl.SliceLayout(0, WIDE))
            f_narrow = gl.arange(0, 32, gl.SliceLayout(0, NARROW))
            u_wide = gl.arange(0, VALUES, gl.SliceLayout(1, WIDE))@FIRST@
            u_narrow = gl.arange(0, VALUES, gl.SliceLayout(1, NARROW))@FIRST@
        """)

    def weights(self) -> None:
        """What columns of `wide` weigh on the side of queries."""
        self.print("weight = gl.where(f_wide < @QK@, 0.5, 1.0)  # squares come once")

    def no_state(self) -> None:
        """A state of nothing."""
        self.print("""
            S_wide = gl.full([VALUES, 128], 0.0, gl.float32, WIDE)
            S_narrow = gl.full([VALUES, 32], 0.0, gl.float32, NARROW)
        """)
        if self.normalize:
            self.print("""
                Z = gl.full([@QK@, @QK@], 0.0, gl.float32, PAIRS)
                z = gl.full([CHUNK, @QK@], 0.0, gl.float32, PAIRS)
                count = 0.0
            """)

    def load(self, flag: str, prefix: str, index: str, of_queries: bool = False) -> None:
        """Read a stored state, where the flag says so."""
        self.w.line(f"if {flag}:")
        with self.w.indented():
            self.print(f"""
                before = {prefix}state + ({index}) * @ROWS@ * @V@
                S_wide = load_state(before, rows_of_wide(f_wide, @D@), u_wide, @ROWS@, @V@)
                S_narrow = load_state(before, rows_of_narrow(f_narrow, @D@), u_narrow, @ROWS@, @V@)
            """)
            if of_queries:
                self.w.line("S_wide = S_wide / weight[None, :]")
            if self.normalize:
                squares = "0.5" if of_queries else "1.0"
                source = f"{prefix}normalizer + ({index}) * @ROWS@"
                self.print(f"Z, z, count = load_sums({source}, @D@, {squares}, PAIRS)")

    def store(self, prefix: str, name: str, index: str, of_queries: bool = False) -> None:
        """Write the state, and `count`."""
        wide = "S_wide * weight[None, :]" if of_queries else "S_wide"
        squares = "0.5" if of_queries else "1.0"
        self.print(f"""
            after = {prefix}{name} + ({index}) * @ROWS@ * @V@
            store_state(after, rows_of_wide(afresh(f_wide), @D@), u_wide, @ROWS@, @V@, {wide})
            store_state(after, rows_of_narrow(afresh(f_narrow), @D@), u_narrow, @ROWS@, @V@, S_narrow)
        """)
        if self.normalize:
            normalizer = "normalizer" if name == "state" else f"normalizer_{name}"
            self.print(
                f"store_sums({prefix}{normalizer} + ({index}) * @ROWS@, Z, z, count, @D@, {squares}, PAIRS)"
            )


def _layouts(body: str) -> list[str]:
    """The layouts that a body names, as assignments."""
    found: list[str] = []
    for name, layout in reversed(LAYOUTS.items()):
        if re.search(rf"\b{name}\b", "\n".join([body, *found])):
            found.insert(0, f"{name}: gl.constexpr = {layout}")
    return found
