"""Print the recurrence of maps that act on single components, for Hopper's warpgroups.

A chunk's features, values and weights and the state are all 64 by 64; columns that a layer lacks are 0.
The normaliser is a state of values that are all an eighth, eight of them: so its products have eight columns,
and their sum is what is wanted.

Of a chunk's products all are issued in a row but those that read its weights.  Only for these one is waited
for, the first; the others run while the weights are made.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.nodes import Var, Where, row, wrap
from ...lower.feature_maps import ElementwiseMap, feature_map
from ...mixers.linear_attention import LinearAttention
from ..layer import ScheduledForeign
from ..triton_expression import formula
from .state_kernel import KEYS, QUERIES, VALUES, StateKernel

X = Var("x")


class ElementwiseRecurrence(StateKernel):
    """The outputs of one segment."""

    streams = (
        replace(QUERIES, layout="ROWS_64", width="QK"),
        replace(KEYS, layout="ROWS_64", width="QK"),
        VALUES,
    )
    hidden = False  # there are registers to spare
    witness = "S"

    def __init__(self, spec: LinearAttention, scheduled: ScheduledForeign) -> None:
        super().__init__(spec, scheduled)
        features = feature_map(spec)
        assert isinstance(features, ElementwiseMap)
        (width,) = scheduled.schedule.values("QK")
        self.mapped, self.keeps_zero = features.of(X), features.keeps_zero
        self.maps = self.mapped != X
        if width > features.rows and not self.keeps_zero:
            self.mapped = Where(row(Var("j")) < features.rows, self.mapped, wrap(0.0))
        self.sums = ("O", "N", "S", "z") if self.normalize else ("O", "S")

    def body(self) -> None:
        tiles = {"K": ("[CHUNK, QK]", "BYTES_128")} if self.maps else {}
        tiles["S_operand"] = ("[VALUES, QK]", "BYTES_128")
        if self.normalize:
            tiles["z_operand"] = ("[8, QK]", "BYTES_128")
        self.tiles(**tiles, out=("[CHUNK, VALUES]", "BYTES_128"))
        if self.normalize:
            self.eighths("CHUNK")
        self.w.blank()
        self._start()
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.copies("arrived")
            self._operands()
            self.copies("shown")
            self._products()
            self.copies("in_flight")
            self._results()
        self.final_state()

    def _start(self) -> None:
        self.forward_rows()
        self.fetch_first()
        self.print("""
            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, CHUNK, gl.SliceLayout(0, SQUARE))
            f = gl.arange(0, QK, gl.SliceLayout(0, SQUARE))
            u = gl.arange(0, VALUES, gl.SliceLayout(1, SQUARE))@FIRST@
            zeros = gl.full([CHUNK, CHUNK], 0.0, gl.float32, SQUARE)
            S = gl.full([VALUES, QK], 0.0, gl.float32, SQUARE)
        """)
        if self.normalize:
            self.print("""
                i_sums = gl.arange(0, CHUNK, gl.SliceLayout(1, SUMS))
                f_sums = gl.arange(0, QK, gl.SliceLayout(1, SUMS))
                no_sums = gl.full([CHUNK, 8], 0.0, gl.float32, SUMS)
                z = gl.full([QK, 8], 0.0, gl.float32, SUMS)
            """)
        self.first_state()

    # A chunk

    def _operands(self) -> None:
        """What products read on the right: features of keys, values, and the state."""
        self.w.line("V = values.index(slot)")
        if self.maps:
            self._features_of_keys()
        else:
            self.w.line("K = keys.index(slot)")
        self.print("""
            if IO == gl.float16:  # sums leave its range, so products are of bfloat16
                V, _ = in_bfloat16(V, LEFT)
        """)
        if not self.maps:
            self.w.line("    K, _ = in_bfloat16(K, LEFT)")
        self.w.line("S_operand.store(S.to(gl.bfloat16))")
        if self.normalize:
            self.w.line("z_operand.permute((1, 0)).store(z.to(gl.bfloat16))")
        self.show()

    def _features_of_keys(self) -> None:
        self.w.line("x = in_float32(keys.index(slot).load(SQUARE))")
        self.w.line(f"x = {formula(self.mapped, language='gl')}")
        if not self.keeps_zero:
            self.print("""
                if FINAL:  # what lies past the end would have features, too
                    x = gl.where((i < stop - t0)[:, None], x, 0.0)
            """)
        self.w.line("K.store(rounded(x))")

    def _products(self) -> None:
        """Older keys through the state, the chunk's own directly; then these enter the state."""
        self.w.blank()
        self.w.line("x = in_float32(queries.index(slot).load(SQUARE))")
        if self.maps:
            self.w.line(f"x = {formula(self.mapped, language='gl')}")
        self.print("""
            Q = gl.convert_layout(rounded(x * scale), LEFT, assert_trivial=True)
            R = warpgroup_mma(Q, K.permute((1, 0)), zeros, use_acc=False, is_async=True)
            O = warpgroup_mma(Q, S_operand.permute((1, 0)), zeros, use_acc=False, is_async=True)
        """)
        if self.normalize:
            self.w.line(
                "N = warpgroup_mma(Q, z_operand.permute((1, 0)), no_sums, use_acc=False, is_async=True)"
            )
        self.w.line("S = warpgroup_mma(V.permute((1, 0)), K, S, is_async=True)")
        if self.normalize:
            self.w.line("z = warpgroup_mma(K.permute((1, 0)), eighths, z, is_async=True)")
        self.print(f"""
            R = warpgroup_mma_wait({len(self.sums)}, [R])
            A = rounded(gl.where(i[:, None] >= j[None, :], @SEEN@, 0.0))
            A = gl.convert_layout(A, LEFT, assert_trivial=True)
            O = warpgroup_mma(A, V, O, is_async=True)
        """)
        if self.normalize:
            self.w.line("N = warpgroup_mma(A, eighths, N, is_async=True)")

    def _results(self) -> None:
        found = ", ".join(self.sums)
        self.w.line(f"{found} = warpgroup_mma_wait(0, [{found}])")
        if self.normalize:
            self.w.line("N = gl.sum(N, 1)")
            self.divide("i_sums")
        self.write_outputs()
        self.advance()

    # The state

    def load(self, flag: str, prefix: str, index: str, of_queries: bool = False) -> None:
        """Read a stored state, where the flag says so."""
        self.w.line(f"if {flag}:")
        with self.w.indented():
            self.print(f"""
                before = {prefix}state + ({index}) * @ROWS@ * @V@
                S = load_state(before, f, u, @ROWS@, @V@)
            """)
            if self.normalize:
                self.print(f"""
                    before = {prefix}normalizer + ({index}) * @ROWS@
                    sums = gl.load(before + f_sums, mask=f_sums < @ROWS@, other=0.0).to(gl.float32)
                    z += (sums * 0.125)[:, None]
                """)

    def store(self, prefix: str, name: str, index: str, of_queries: bool = False) -> None:
        """Write the state."""
        self.print(f"""
            after = {prefix}{name} + ({index}) * @ROWS@ * @V@
            store_state(after, f, u, @ROWS@, @V@, S)
        """)
        if self.normalize:
            self.print(f"""
                after = {prefix}normalizer + ({index}) * @ROWS@
                gl.store(after + f_sums, gl.sum(z, 1), mask=f_sums < @ROWS@)
            """)
