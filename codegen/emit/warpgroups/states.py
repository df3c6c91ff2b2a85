"""Print the sums of segments, `lower/linear_attention_states.py`, for Hopper's warpgroups."""

from __future__ import annotations

from ...mixers.linear_attention import LinearAttention
from ..layer import ScheduledForeign
from .kernel import Numbers, Stream
from .state_kernel import FEATURE_TILES, KEYS, QUERIES, VALUES, StateKernel


class States(StateKernel):
    """What each segment adds to the state: of keys and values, or of queries and gradients of outputs."""

    def __init__(self, spec: LinearAttention, scheduled: ScheduledForeign) -> None:
        super().__init__(spec, scheduled)
        self.of_queries = bool(self.kernel.scalars)
        self.x = "q" if self.of_queries else "k"
        if not self.of_queries:
            self.streams = (KEYS, VALUES)
        elif self.normalize:
            g = Stream("values", "y_rows", "H * @V@", "@COLUMNS@", "ROWS_64", "gl.bfloat16")
            self.streams = (QUERIES, g, Numbers("factors", "e_row"))
        else:
            self.streams = (QUERIES, Stream("values", "y_rows", "do_t", "@COLUMNS@", "ROWS_64"))

    def body(self) -> None:
        operand = {"U": ("[CHUNK, @QK@]", "BYTES_32")} if self.of_queries and self.normalize else {}
        self.tiles(**operand, **{f"X_{name}": tile for name, tile in FEATURE_TILES.items()})
        self.w.blank()
        self._start()
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.hide_addresses()
            self._add()
        self._end()

    def _start(self) -> None:
        x, y = self.x, "v" if not self.of_queries else "do"
        self.print(f"{x}_rows = {x} + b * {x}_b + h * {x}_h")
        if self.of_queries and self.normalize:
            self.print("""
                y_rows = g + (b * T * H + h) * @V@@FIRST@
                e_row = e + (b * H + h) * T
            """)
        else:
            rows = "y_rows" if self.of_queries else "v_rows"
            self.print(f"{rows} = {y} + b * {y}_b + h * {y}_h@FIRST@")
        what = "first" if self.of_queries else "last"
        segment = "0" if self.of_queries else "segments - 1"
        self.print(f"""
            if not ALL:  # nothing comes after the {what} segment that would start from it
                stop = gl.where(segment == {segment}, start, stop)
        """)
        self.fetch_first()
        self.columns()
        if self.of_queries:
            self.weights()
        self.no_state()
        if self.of_queries and self.normalize:
            self.w.line("terms = gl.full([CHUNK], 0.0, gl.float32, TOKENS)")
        self.w.line("slot = 0")

    def _add(self) -> None:
        self.w.line("Y = values.index(slot)")
        if self.of_queries:
            self.w.line("x = rounded(queries.index(slot).load(LEFT).to(gl.float32) * scale)")
            if self.normalize:
                self.w.line("U.store(x)")
            else:
                self.print("""
                    if IO == gl.float16:
                        Y, _ = in_bfloat16(Y, LEFT)
                """)
        else:
            self.print("""
                X = keys.index(slot)
                if IO == gl.float16:  # sums leave its range, so products are of bfloat16
                    X, x = in_bfloat16(X, LEFT)
                    Y, _ = in_bfloat16(Y, LEFT)
                else:
                    x = X.load(LEFT)
            """)
        self.print("""
            wide, narrow = features(x, LEFT)
            X_wide.store(wide)
            X_narrow.store(narrow)
        """)
        self.show()
        self.fetch_ahead()
        self.print("""
            S_wide = warpgroup_mma(Y.permute((1, 0)), X_wide, S_wide, is_async=True)
            S_narrow = warpgroup_mma(Y.permute((1, 0)), X_narrow, S_narrow, is_async=True)
        """)
        if self.normalize and self.of_queries:
            self.print("""
                Z, z = add_weighted_sums(U, factors.index(slot), Z, z, PAIRS)
                terms += factors.index(slot).load(TOKENS)
            """)
        elif self.normalize:
            self.w.line("Z, z = add_sums(X, Z, z, PAIRS)")
        self.print("""
            S_wide, S_narrow = warpgroup_mma_wait(0, [S_wide, S_narrow])
        """)
        self.advance()

    def _end(self) -> None:
        self.w.line("async_copy.wait_group(0)")
        if self.normalize:
            self.w.line(
                "count = gl.sum(terms, 0)" if self.of_queries else "count += gl.maximum(stop - start, 0)"
            )
        self.store("", "sums", self.facts["INDEX"], of_queries=self.of_queries)
