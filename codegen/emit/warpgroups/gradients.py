"""Print the gradients of linear attention for Hopper's warpgroups, as two recurrences.

Those of queries go from the first chunk to the last, with the state of the keys before; those of keys and
values from the last to the first, with the mirrored state of the queries after, Σ_i g_i Φ(u_i)ᵀ.  A state's
squares are weighted where it enters products.  Neither is ever stored.  The gradient of features goes back to
their columns by exchange, as features come from columns (`based_ops/support/exchange.py`).

What is needed early in a chunk is gone before the next is made: a tile of 64 x 160 gradients of features, the
state and a tile of features together are more than a thread's registers.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.kernels import ForeignKernel
from ...ir.nodes import IO, Var
from ...ir.program import GROUPED, Axis, Tensor
from ...lower.groups import SHARED
from ...lower.linear_attention_parts import BATCH_AXES, ROWS, SIZES, Layer
from ...lower.ragged import FLAGGED, RAGGED
from ...spec.signature import OF_STATES
from .kernel import Numbers, Stream
from .state_kernel import FEATURE_TILES, KEYS, QUERIES, STATE_TILES, VALUES, StateKernel

WRITE_VALUES = """
    out.store(dV.to(IO))
    barrier()
    write(out, dv_rows, t0, H * @V@, stop, @COLUMNS@, ROWS_64)
"""
OUT = ("[CHUNK, VALUES]", "BYTES_128")


def query_gradients(layer: Layer, kernel: ForeignKernel) -> ForeignKernel:
    """The launch of what makes dq of one segment; and g, and e, of which `lower/` says what they are."""
    normalize = layer.spec.normalize
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.values("do"),
        *((layer.values("o", strided=False), layer.gradients()) if normalize else ()),
        *layer.row_sums("n", "e"),
        *layer.user_states("initial_", "INITIAL"),
        *layer.segment_states("SEGMENTED"),
        Tensor("dq", (*ROWS, layer.qk), IO),
    )
    summary = "The gradients of the queries of one segment, first to last."
    return _over_segments(kernel, summary, tensors, ("INITIAL", "SEGMENTED"), of_keys=True)


def key_gradients(layer: Layer, kernel: ForeignKernel) -> ForeignKernel:
    """The launch of what makes dk and dv of one segment, and the state's gradient before the first."""
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.gradients(),
        *layer.row_sums("e"),
        *layer.user_states("initial_", "INITIAL"),
        *layer.segment_states("SEGMENTED"),
        Tensor("dk", (*ROWS, layer.qk), IO),
        layer.values("dv", strided=False),
        *layer.user_states("total_", "TOTAL"),
    )
    summary = "The gradients of the keys and values of one segment, last to first."
    return _over_segments(kernel, summary, tensors, ("INITIAL", "SEGMENTED", "TOTAL"))


def _over_segments(
    kernel: ForeignKernel,
    summary: str,
    tensors: tuple[Tensor, ...],
    flags: tuple[str, ...],
    of_keys: bool = False,
) -> ForeignKernel:
    """Programs over the heads of outputs, each with a state of its own, or with that of its keys' group."""
    owners = dict(SHARED)
    if of_keys:
        owners |= dict.fromkeys((x.name for x in tensors if x.optional in flags), OF_STATES)
    tensors = tuple(replace(tensor, heads=owners.get(tensor.name)) for tensor in (*tensors, FLAGGED))
    heads = dict.fromkeys(tensor.heads for tensor in tensors if tensor.heads)
    return replace(
        kernel,
        summary=summary,
        grid=(*BATCH_AXES, Axis("segment", Var("segments"))),
        tensors=tensors,
        sizes=(*SIZES, *heads),
        flags=(*flags, RAGGED, GROUPED),
    )


class _Gradients(StateKernel):
    """What both have in common."""

    gradient = ""
    """Of what each chunk has a tile of D columns."""

    def start(self, of_queries: bool) -> None:
        """All before the loop but where rows begin."""
        self.fetch_first()
        self.print("""
            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, CHUNK, gl.SliceLayout(0, SQUARE))
            token = gl.arange(0, CHUNK, gl.SliceLayout(1, COLUMNS))
            column = gl.arange(0, @QK@, gl.SliceLayout(0, COLUMNS))
        """)
        self.columns()
        self.weights()
        self.w.line("zeros = gl.full([CHUNK, CHUNK], 0.0, gl.float32, SQUARE)")
        self.no_state()
        self.load("INITIAL", "initial_", self.whole, of_queries)
        self.load("SEGMENTED", "", self.facts["INDEX"], of_queries)

    def through_features(
        self, left: str, x: str, side: str, enters: str, meanwhile: str = "", last: str = ""
    ) -> None:
        """Add to a chunk's gradient that of x through its features; and let the chunk enter the state.

        Gradients of features are products of `left` with the state.  What is done `meanwhile`, and `last`, is
        done while the first and the last of the products are in flight.
        """
        upper = f"{left}, S_wide_operand.slice(64, 64, 1)"
        into = self.gradient
        self.w.blank()
        self.print(f"""
            # Through features: their gradients in three parts, of which few are there at once.
            lower = warpgroup_mma({left}, S_wide_operand.slice(0, 64, 1), zeros, use_acc=False, is_async=True)
            narrow = gl.full([CHUNK, 32], 0.0, gl.float32, NARROW)
            narrow = warpgroup_mma({left}, S_narrow_operand, narrow, use_acc=False, is_async=True)
        """)
        self.print(meanwhile)
        self.print(f"""
            lower, narrow, {into} = warpgroup_mma_wait(0, [lower, narrow, {into}])
            upper = warpgroup_mma({upper}, zeros, use_acc=False, is_async=True)
            S_wide = warpgroup_mma({enters}.permute((1, 0)), {side}_wide, S_wide, is_async=True)
            S_narrow = warpgroup_mma({enters}.permute((1, 0)), {side}_narrow, S_narrow, is_async=True)
        """)
        self.print(last)
        self.print(f"""
            parts = features_back(lower, narrow, {x}, COLUMNS, NARROW)
            upper = warpgroup_mma_wait(2, [upper])
            {into} += features_back_rest(upper, {x}, parts, COLUMNS, NARROW)
        """)

    def finish(self, factor: str = "") -> None:
        """Write a chunk's gradient, and wait for the state."""
        tile = self.gradient
        name = tile.lower()
        self.print(f"""
            row = afresh(token)
            {name}_chunk = {name}_rows + gl.cast(t0, gl.int64) * (H * @D@)
            inside = (row < stop - t0)[:, None] & (column < @D@)[None, :]
            pointers = {name}_chunk + (row[:, None] * (H * @D@) + column[None, :])
            gl.store(pointers, {f"({tile} * {factor})" if factor else tile}.to(IO), mask=inside)
            S_wide, S_narrow = warpgroup_mma_wait(0, [S_wide, S_narrow])
        """)
        self.advance()


class QueryGradients(_Gradients):
    """dq, g and e."""

    gradient = "dQ"

    def body(self) -> None:
        do = Stream("gradients", "do_rows", "do_t", "@COLUMNS@", "ROWS_64")
        self.streams = (QUERIES, KEYS, VALUES, do)
        features = {f"K_{name}": tile for name, tile in FEATURE_TILES.items()}
        if self.normalize:
            o = Stream("outputs", "o_rows", "H * @V@", "@COLUMNS@", "ROWS_64")
            self.streams += (o, Numbers("sums", "n_row"))
            features |= {"G": OUT}
        self.tiles(**features, **STATE_TILES)
        self.w.blank()
        self.print("""
            q_rows = q + b * q_b + @HEAD_Q@ * q_h
            k_rows = k + b * k_b + @HEAD_K@ * k_h
            v_rows = v + b * v_b + @HEAD_V@ * v_h
            do_rows = do + b * do_b + h * do_h
            dq_rows = dq + (b * T * H + h) * @D@
        """)
        if self.normalize:
            self.print("""
                o_rows = o + (b * T * H + h) * @V@
                g_rows = g + (b * T * H + h) * @V@
                n_row = n + (b * H + h) * T
                e_row = e + (b * H + h) * T
            """)
        self.start(of_queries=False)
        if self.normalize:
            self.w.line("row_left = gl.arange(0, CHUNK, gl.SliceLayout(1, LEFT))")
        self.w.line("slot = 0")
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.fetch_ahead()
            self.hide_addresses()
            self._operands()
            self._products()
            self.through_features("G", "Q", "K", "V")
            self.finish("scale")
        self.w.line("async_copy.wait_group(0)")

    def _operands(self) -> None:
        self.key_features()
        self.store_features("K")
        self.store_state()
        if self.normalize:
            self.print("""
                dO = gradients.index(slot).load(LEFT).to(gl.float32)
                inverse = 1.0 / (sums.index(slot).load(gl.SliceLayout(1, LEFT)) + @EPS@)
                E = -gl.sum(dO * outputs.index(slot).load(LEFT).to(gl.float32), 1) * inverse
                G.store(rounded(dO * inverse[:, None]))
            """)
        else:
            self.print("""
                G = gradients.index(slot)
                if IO == gl.float16:
                    G, _ = in_bfloat16(G, LEFT)
            """)
        self.show()
        if self.normalize:
            self.print("""
                write(G, g_rows, t0, H * @V@, stop, @COLUMNS@, ROWS_64)
                gl.store(e_row + t0 + row_left, E, mask=row_left < stop - t0)
            """)

    def _products(self) -> None:
        self.w.blank()
        self.print("""
            # This chunk's keys, directly.
            Q = rounded(queries.index(slot).load(LEFT).to(gl.float32) * scale)
            R = warpgroup_mma(Q, K.permute((1, 0)), zeros, use_acc=False, is_async=True)
            dA = warpgroup_mma(G, V.permute((1, 0)), zeros, use_acc=False, is_async=True)
        """)
        if self.normalize:
            self.print("""
                dQ = gl.convert_layout(quadratic_form_back(Q, Z, z, PAIRS), COLUMNS, assert_trivial=True)
                dQ = dQ * gl.convert_layout(E, gl.SliceLayout(1, COLUMNS))[:, None]
                Z, z = add_sums(K, Z, z, PAIRS)
            """)
        else:
            self.w.line(f"dQ = gl.full([CHUNK, {self.facts['QK']}], 0.0, gl.float32, COLUMNS)")
        self.w.line("R, dA = warpgroup_mma_wait(0, [R, dA])")
        if self.normalize:
            self.w.line("dA += gl.convert_layout(E, gl.SliceLayout(1, SQUARE))[:, None]")
        self.print("""
            dR = rounded(gl.where(i[:, None] >= j[None, :], dA * (@SLOPE@), 0.0))
            dR = gl.convert_layout(dR, LEFT, assert_trivial=True)
            dQ = warpgroup_mma(dR, K, dQ, is_async=True)
        """)


class KeyGradients(_Gradients):
    """dk, dv, and what the state before the first token would have to change by."""

    gradient = "dK"
    backwards = True

    def body(self) -> None:
        if self.normalize:
            g = Stream("gradients", "g_rows", "H * @V@", "@COLUMNS@", "ROWS_64", "gl.bfloat16")
            self.streams = (QUERIES, KEYS, VALUES, g, Numbers("factors", "e_row"))
        else:
            do = Stream("gradients", "g_rows", "do_t", "@COLUMNS@", "ROWS_64")
            self.streams = (QUERIES, KEYS, VALUES, do)
        features = {f"U_{name}": tile for name, tile in FEATURE_TILES.items()}
        self.tiles(U=("[CHUNK, @QK@]", "BYTES_32"), **features, **STATE_TILES, out=OUT)
        self.w.blank()
        self.print("""
            q_rows = q + b * q_b + @HEAD_Q@ * q_h
            k_rows = k + b * k_b + @HEAD_K@ * k_h
            v_rows = v + b * v_b + @HEAD_V@ * v_h
            dk_rows = dk + (b * T * H + h) * @D@
            dv_rows = dv + (b * T * H + h) * @V@
        """)
        if self.normalize:
            self.print("""
                g_rows = g + (b * T * H + h) * @V@
                e_row = e + (b * H + h) * T
            """)
        else:
            self.w.line("g_rows = do + b * do_b + h * do_h")
        self.start(of_queries=True)
        if self.normalize:
            self.w.line("terms = gl.full([CHUNK], 0.0, gl.float32, TOKENS)")
        self.w.line("slot = 0")
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.hide_addresses()
            self._operands()
            self._products()
            sums = "Z, z = add_weighted_sums(U, factors.index(slot), Z, z, PAIRS)" if self.normalize else ""
            self.through_features("V", "K", "U", "G", WRITE_VALUES, sums)
            self.finish()
        self.print("""
            async_copy.wait_group(0)
            if TOTAL:
        """)
        with self.w.indented():
            if self.normalize:
                self.w.line("count += gl.sum(terms, 0)")
            self.store("total_", self.whole, of_queries=True)

    def _operands(self) -> None:
        self.store_state()
        self.print("""
            V = values.index(slot)
            G = gradients.index(slot)
            K = keys.index(slot).load(LEFT)
            if IO == gl.float16:  # sums leave its range, so products are of bfloat16
                K = rounded(K.to(gl.float32))
                V, _ = in_bfloat16(V, LEFT)
        """)
        if not self.normalize:
            self.w.line("    G, _ = in_bfloat16(G, LEFT)")
        self.print("""
            x = rounded(queries.index(slot).load(LEFT).to(gl.float32) * scale)
            U.store(x)
            wide, narrow = features(x, LEFT)
        """)
        self.store_features("U")
        self.show()
        self.fetch_ahead()

    def _products(self) -> None:
        self.w.blank()
        if self.normalize:
            self.print("""
                dK = gl.convert_layout(quadratic_form_back(K, Z, z, PAIRS), COLUMNS, assert_trivial=True)
                if TOTAL:
                    terms += factors.index(slot).load(TOKENS)
            """)
        else:
            self.w.line(f"dK = gl.full([CHUNK, {self.facts['QK']}], 0.0, gl.float32, COLUMNS)")
        self.print("""
            # This chunk's queries, directly: rows are keys here.
            R = warpgroup_mma(K, U.permute((1, 0)), zeros, use_acc=False, is_async=True)
            dA = warpgroup_mma(V, G.permute((1, 0)), zeros, use_acc=False, is_async=True)
            R, dA = warpgroup_mma_wait(0, [R, dA])
        """)
        if self.normalize:
            self.w.line("dA += factors.index(slot).load(gl.SliceLayout(0, SQUARE))[None, :]")
        self.print("""
            seen = i[:, None] <= j[None, :]
            dR = rounded(gl.where(seen, dA * (@SLOPE@), 0.0))
            dR = gl.convert_layout(dR, LEFT, assert_trivial=True)
            A = rounded(gl.where(seen, @SEEN@, 0.0))
            A = gl.convert_layout(A, LEFT, assert_trivial=True)
            dV = warpgroup_mma(A, G, zeros, use_acc=False, is_async=True)
            dK = warpgroup_mma(dR, U, dK, is_async=True)
            dV, dK = warpgroup_mma_wait(0, [dV, dK])  # frees the registers of A and dR

            # Later queries, through the mirrored state.
            wide, narrow = features(afresh(K, 2), LEFT)
            dV = warpgroup_mma(wide, S_wide_operand.permute((1, 0)), dV, is_async=True)
            dV = warpgroup_mma(narrow, S_narrow_operand.permute((1, 0)), dV, is_async=True)
            dV = warpgroup_mma_wait(0, [dV])
        """)
