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

    def body(self) -> None:
        self.hidden = self.normalize  # without the normaliser there are registers to spare
        features = {f"K_{name}": tile for name, tile in FEATURE_TILES.items()}
        self.tiles(**features, **STATE_TILES, out=("[CHUNK, VALUES]", "BYTES_128"))
        if self.normalize:
            self.eighths("CHUNK")
        self.w.blank()
        self._start()
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.fetch_ahead()
            if self.hidden:
                self.hide_addresses()
            self.key_features()
            self.store_features("K")
            self.show()
            self._queries()
            self._results()
        self.final_state(*(["count += stop - start"] if self.normalize else []))

    def _start(self) -> None:
        self.forward_rows()
        self.fetch_first()
        self.print("""
            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, CHUNK, gl.SliceLayout(0, SQUARE))
        """)
        if self.normalize:
            self.print("""
                # Two ways to leave later keys out.  This one has fewer instructions, but the order that ptxas
                # gives to all of them made it 20 % slower than comparisons in the cases left to those.
                IN_BITS: gl.constexpr = IO == gl.bfloat16 and not FINAL
                if IN_BITS:
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
        self.w.blank()
        self.w.line("Q = rounded(queries.index(slot).load(LEFT).to(gl.float32) * scale)")
        if self.normalize:
            self.print("""
                N = quadratic_form(Q, Z, z, PAIRS) + (count + (t0 - start))
                Z, z = add_sums(K, Z, z, PAIRS)
            """)
        self.print("""
            R = warpgroup_mma(Q, K.permute((1, 0)), zeros, use_acc=False, is_async=True)
            wide, narrow = features(Q, LEFT)
            R = warpgroup_mma_wait(0, [R])
        """)
        weights = """
            A = rounded(gl.where(i[:, None] >= j[None, :], @SEEN@, 0.0))
            A = gl.convert_layout(A, LEFT, assert_trivial=True)
        """
        if self.normalize:
            self.print("""
                if IN_BITS:
                    A = gl.convert_layout(rounded(@SEEN@), LEFT, assert_trivial=True)
                    A = where_bits(A, bits.load(LEFT))
                else:
            """)
            with self.w.indented():
                self.print(weights)
        else:
            self.print(weights)
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
        self.print("""
            S_wide, S_narrow = warpgroup_mma_wait(0, [S_wide, S_narrow])
        """)
        self.advance()
