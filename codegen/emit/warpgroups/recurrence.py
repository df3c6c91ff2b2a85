"""Print the recurrence, `lower/linear_attention_recurrence.py`, for Hopper's warpgroups.

The normaliser of older keys is a quadratic form, on instructions of single warps, done before the chunk's own
products are under way.  Keys come before queries, and all products on the state, on the chunk and into the
state are issued in a row after them, so that few tiles are alive at once.  Nothing that changes in the loop
may spill: 44 bytes took 20 % more time, 124 bytes 55 %.
"""

from __future__ import annotations

from .state_kernel import FEATURE_TILES, KEYS, QUERIES, STATE_TILES, VALUES, StateKernel


class Recurrence(StateKernel):
    """The outputs of one segment."""

    streams = (QUERIES, KEYS, VALUES)
    hidden = False

    def body(self) -> None:
        features = {f"K_{name}": tile for name, tile in FEATURE_TILES.items()}
        self.tiles(**features, **STATE_TILES, out=("[CHUNK, VALUES]", "BYTES_128"))
        if self.normalize:
            self.eighths("CHUNK")
        self.w.blank()
        self._start()
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.copies("arrived")
            if self.order["state"] == "early":
                self.store_state()
            self.key_features()
            self.store_features("K")
            if self.order["state"] == "late":
                self.store_state()
            self.show()
            self.copies("shown")
            self._queries()
            self._products()
            self.copies("in_flight")
            self._results()
        self.final_state(*(["count += stop - start"] if self.normalize else []))

    def _start(self) -> None:
        self.forward_rows()
        self.fetch_first()
        self.print("""
            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, CHUNK, gl.SliceLayout(0, SQUARE))
        """)
        if self.order["mask"] == "bits":
            self.print("""
                seen = gl.where(i[:, None] >= j[None, :], -1, 0).to(gl.int16)
                bits = gl.allocate_shared_memory(gl.int16, [CHUNK, CHUNK], BYTES_128, seen)
            """)
        self.columns()
        self.weights()
        self.w.line("zeros = gl.full([CHUNK, CHUNK], 0.0, gl.float32, SQUARE)")
        self.no_state()
        if self.normalize:
            self.w.line("i_pairs = gl.arange(0, CHUNK, gl.SliceLayout(1, PAIRS))")
        self.first_state()

    def _queries(self) -> None:
        """Features of queries, and weights of the chunk's own keys."""
        add_sums = "Z, z = add_sums(K, Z, z, PAIRS)"
        self.w.blank()
        self.w.line(f"Q = rounded({self._widened('queries.index(slot).load(LEFT)')} * scale)")
        if self.normalize:
            self.w.line("N = quadratic_form(Q, Z, z, PAIRS) + (count + (t0 - start))")
            if self.order["sums"] == "early":
                self.w.line(add_sums)
        self.print("""
            R = warpgroup_mma(Q, K.permute((1, 0)), zeros, use_acc=False, is_async=True)
            wide, narrow = features(Q, LEFT)
        """)
        if self.normalize and self.order["sums"] == "late":
            self.w.line(add_sums)
        self.w.line("R = warpgroup_mma_wait(0, [R])")
        if self.order["mask"] == "bits":
            self.print("""
                A = gl.convert_layout(rounded(@SEEN@), LEFT, assert_trivial=True)
                A = where_bits(A, bits.load(LEFT))
            """)
        else:
            self.print("""
                A = rounded(gl.where(i[:, None] >= j[None, :], @SEEN@, 0.0))
                A = gl.convert_layout(A, LEFT, assert_trivial=True)
            """)

    def _widened(self, x: str) -> str:
        return f"in_float32({x})" if self.order["scaling"] == "shifted" else f"{x}.to(gl.float32)"

    def _products(self) -> None:
        self.w.blank()
        self.print("""
            # Older keys through the state, the chunk's own directly; then these enter the state.
            O = warpgroup_mma(wide, S_wide_operand.permute((1, 0)), zeros, use_acc=False, is_async=True)
            O = warpgroup_mma(narrow, S_narrow_operand.permute((1, 0)), O, is_async=True)
            O = warpgroup_mma(A, V, O, is_async=True)
        """)
        if self.normalize:
            self.print("""
                N_own = gl.full([CHUNK, 8], 0.0, gl.float32, SUMS)
                N_own = warpgroup_mma(A, eighths, N_own, use_acc=False, is_async=True)
            """)
        self.print("""
            S_wide = warpgroup_mma(V.permute((1, 0)), K_wide, S_wide, is_async=True)
            S_narrow = warpgroup_mma(V.permute((1, 0)), K_narrow, S_narrow, is_async=True)
        """)

    def _results(self) -> None:
        if self.normalize:
            self.print("""
                O, N_own = warpgroup_mma_wait(2, [O, N_own])
                N += gl.convert_layout(gl.sum(N_own, 1), gl.SliceLayout(1, PAIRS))
            """)
            self.divide("i_pairs")
        else:
            self.w.line("O = warpgroup_mma_wait(2, [O])")
        self.write_outputs()
        self.w.line("S_wide, S_narrow = warpgroup_mma_wait(0, [S_wide, S_narrow])")
        self.advance()
