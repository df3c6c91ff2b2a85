"""What kernels of linear attention for Hopper's warpgroups share: features, and the state in registers."""

from __future__ import annotations

from ...ir.nodes import Var, wrap
from ...ir.printer import text
from ...ir.program import Program
from ...lower.feature_maps import feature_map
from ...mixers.linear_attention import LinearAttention
from ...schedule.foreign import EXCHANGED
from ..layer import ScheduledForeign
from .kernel import Stream, WarpgroupKernel

QUERIES = Stream("queries", "q_rows", "q_t", "@D@", "ROWS_16", width="@QK@")
KEYS = Stream("keys", "k_rows", "k_t", "@D@", "ROWS_16", width="@QK@")
VALUES = Stream("values", "v_rows", "v_t", "@COLUMNS@", "ROWS_64")

FEATURE_TILES = {"wide": ("[CHUNK, 128]", "BYTES_128"), "narrow": ("[CHUNK, 32]", "BYTES_64")}
STATE_TILES = {
    "S_wide_operand": ("[VALUES, 128]", "BYTES_128"),
    "S_narrow_operand": ("[VALUES, 32]", "BYTES_64"),
}


class StateKernel(WarpgroupKernel):
    """Prints one kernel that keeps a state."""

    witness = "S_narrow"
    """Some columns of the state."""

    def __init__(self, spec: LinearAttention, scheduled: ScheduledForeign) -> None:
        (values,) = scheduled.schedule.values("VALUES")
        features = feature_map(spec)
        v = spec.head_dims.v
        self.normalize = spec.normalize
        self.blocks = v > values
        rest = f"{v} - value_block * VALUES" if self.blocks else str(v)
        facts = {
            "V": str(v),
            "D": str(spec.head_dims.qk),
            "QK": str(EXCHANGED),
            "ROWS": str(features.rows),
            "EPS": repr(spec.eps),
            "COLUMNS": "VALUES" if v % values == 0 else rest,
            "FIRST": " + value_block * VALUES" if self.blocks else "",
            "SEEN": text(features.kernel(Var("R"), wrap(1.0))),
            "SLOPE": text(features.slope(Var("R"), wrap(1.0))),
        }
        super().__init__(scheduled, facts)
        facts["INDEX"] = f"({self.whole}) * segments + segment"

    def forward_rows(self) -> None:
        """Where the rows of the forward pass begin."""
        self.print("""
            q_rows = q + b * q_b + @HEAD_Q@ * q_h
            k_rows = k + b * k_b + @HEAD_K@ * k_h
            v_rows = v + b * v_b + @HEAD_V@ * v_h@FIRST@
            o_rows = o + (b * T * H + h) * @V@@FIRST@
        """)
        if self.normalize:
            self.w.line("n_row = n + (b * H + h) * T")

    def eighths(self, tokens: str) -> None:
        """What makes sums of rows of a product."""
        self.print(f"""
            # A row's sum as a product: eight equal columns, an eighth of it each.
            eighth = gl.full([{tokens}, 8], 0.125, gl.bfloat16, ONES)
            eighths = gl.allocate_shared_memory(gl.bfloat16, [{tokens}, 8], PLAIN, eighth)
        """)

    def first_state(self) -> None:
        """The state before the segment, where there is one."""
        self.load("INITIAL", "initial_", self.whole)
        self.load("SEGMENTED", "", self.facts["INDEX"])
        self.w.line("slot = 0")

    def final_state(self, *before: str) -> None:
        """The state after the last chunk, where it is asked for; `before` it is stored come other lines."""
        self.print("""
            async_copy.wait_group(0)
            if FINAL:
        """)
        with self.w.indented():
            for line in before:
                self.w.line(line)
            self.store("final_", self.whole)

    def look_again(self, function: Program) -> None:
        """The same if there is doubt.

        Every row enters the state: so a few of its columns are finite only if all values are.  They have the
        single components of keys among them, or all features.
        """
        self.w.line(f"doubt = gl.sum(gl.sum({self.witness} * 0.0, 1), 0)")
        self.w.line("if doubt != 0.0:  # NaN")
        with self.w.indented():
            super().look_again(function)

    # Pieces of a chunk

    def keys_and_values(self) -> None:
        """Tiles of keys and values, and the keys `x`, as operands."""
        self.print("""
            K = keys.index(slot)
            V = values.index(slot)
            if IO == gl.float16:  # sums leave its range, so products are of bfloat16
                K, x = in_bfloat16(K, LEFT)
                V, _ = in_bfloat16(V, LEFT)
            else:
                x = K.load(LEFT)
        """)

    def key_features(self) -> None:
        """The same, and their features."""
        self.keys_and_values()
        self.w.line("wide, narrow = features(x, LEFT)")

    def store_features(self, side: str) -> None:
        """A chunk's features as what products read."""
        self.print(f"""
            {side}_wide.store(wide)
            {side}_narrow.store(narrow)
        """)

    def store_state(self) -> None:
        """The state likewise."""
        self.print("""
            S_wide_operand.store((S_wide * weight[None, :]).to(gl.bfloat16))
            S_narrow_operand.store(S_narrow.to(gl.bfloat16))
        """)

    def divide(self, rows: str) -> None:
        """Write the normaliser, and outputs divided by it; `rows` are indices in the layout of N."""
        self.print(f"""
            gl.store(n_row + t0 + {rows}, N, mask={rows} < stop - t0)
            O = O * (1.0 / (gl.convert_layout(N, gl.SliceLayout(1, SQUARE)) + @EPS@))[:, None]
        """)

    def write_outputs(self) -> None:
        """Through a shared tile."""
        self.print("""
            out.store(O.to(IO))
            barrier()
            write(out, o_rows, t0, H * @V@, stop, @COLUMNS@, ROWS_64)
        """)

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

    def store(self, prefix: str, index: str, of_queries: bool = False) -> None:
        """Write the state, and `count`."""
        wide = "S_wide * weight[None, :]" if of_queries else "S_wide"
        squares = "0.5" if of_queries else "1.0"
        self.print(f"""
            after = {prefix}state + ({index}) * @ROWS@ * @V@
            store_state(after, rows_of_wide(afresh(f_wide), @D@), u_wide, @ROWS@, @V@, {wide})
            store_state(after, rows_of_narrow(afresh(f_narrow), @D@), u_narrow, @ROWS@, @V@, S_narrow)
        """)
        if self.normalize:
            where = f"{prefix}normalizer + ({index}) * @ROWS@"
            self.print(f"store_sums({where}, Z, z, count, @D@, {squares}, PAIRS)")
