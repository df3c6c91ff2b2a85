"""Print the recurrence over 17 to 32 columns of queries and keys, on two of Hopper's warpgroups.

A chunk has 128 tokens: 64 whose features, weights and outputs each warpgroup makes.  The state, up to 576
columns, is spread over both, in parts that one product sums each.  Beside it, the features of all keys of a
chunk would not fit into shared memory: so parts have rounds.  A round's features are stored when the products
of the one before it have read theirs; queries come with the last.

The normaliser of older keys is a quadratic form; its sums, Z and z, enter a product as the state does.
Features of queries are made while the product with those before them is under way, 64 columns at a time:
more of them do not fit the registers beside the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...mixers.linear_attention import LinearAttention
from ..layer import ScheduledForeign
from .state_kernel import KEYS, QUERIES, VALUES, StateKernel

LAYOUTS = {
    # Tokens: 64 rows in each warpgroup.
    "SQUARE": "gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 64, 16])",
    "NARROW": "gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 32, 16])",
    "SUMS": "gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 8, 16])",
    "LEFT": "gl.DotOperandLayout(0, SQUARE, 2)",
    # The state: half of the columns in each.
    "STATE_256": "gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 128, 16])",
    "STATE_128": "gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 64, 16])",
    "STATE_64": "gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 32, 16])",
    "PAIRS": "gl.NVMMADistributedLayout([2, 0], [2, 4], [16, 8])",
    # Shared tiles, by the bytes of a row.
    "BYTES_128": "gl.NVMMASharedLayout(128, 16)",
    "BYTES_64": "gl.NVMMASharedLayout(64, 16)",
    "PLAIN": "gl.NVMMASharedLayout(0, 16)",
    # Who copies what.
    "ROWS_32": "gl.BlockedLayout([1, 8], [8, 4], [8, 1], [1, 0])",
    "ROWS_64": "gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0])",
    "ONES": "gl.BlockedLayout([1, 8], [32, 1], [8, 1], [1, 0])",
}

LOAD_QUERIES = "Q = rounded(queries.index(slot).load(LEFT).to(gl.float32) * scale)"


@dataclass(frozen=True)
class Part:
    """Columns of the state that one product sums."""

    pieces: tuple[str, ...]
    """Their features, 64 columns each."""
    rows: str
    """The state's rows of the columns {f}."""
    weight: str = ""
    """What they weigh on the side of queries: squares come once, and so does the constant."""
    tile: int = 0
    """Where features of keys are stored."""

    @property
    def columns(self) -> int:
        return 64 * len(self.pieces)

    @property
    def layout(self) -> str:
        return f"STATE_{self.columns}"


WIDE_OF_LOW = ("left_of_wide(low, LEFT)", "right_of_wide(low, LEFT)")
WIDE_OF_HIGH = ("left_of_wide(high, LEFT)", "right_of_wide(high, LEFT)")

ROUNDS: dict[int, tuple[tuple[Part, ...], ...]] = {
    24: (
        (
            Part(
                (*WIDE_OF_LOW, *(f"crossed(low, doubled(high), {r}, LEFT)" for r in (0, 4))),
                "gl.where({f} < 128, rows_of_wide({f}, 24), rows_of_crossed({f} - 128, 24))",
                "gl.where({f} < 16, 0.5, 1.0)",
            ),
            Part(
                (WIDE_OF_HIGH[0], "singles(low, high, LEFT)"),  # in the other half there is nothing
                "gl.where({f} < 64, rows_of_wide({f}, 24, 16), rows_of_singles({f} - 64, 24))",
                "gl.where({f} < 16, 0.5, gl.where({f} == 97, 0.0, 1.0))",
                tile=1,
            ),
        ),
    ),
    32: (
        (
            Part(
                (*WIDE_OF_LOW, *WIDE_OF_HIGH),
                "gl.where({f} < 128, rows_of_wide({f}, 32), rows_of_wide({f} - 128, 32, 16))",
                "gl.where({f} % 128 < 16, 0.5, 1.0)",
            ),
            Part(
                ("singles(low, high, LEFT)",),
                "rows_of_singles({f}, 32)",
                "gl.where({f} == 33, 0.0, 1.0)",
                tile=1,
            ),
        ),
        (
            Part(
                tuple(f"crossed(low, high, {r}, LEFT)" for r in (0, 4, 8, 12)),
                "rows_of_crossed({f}, 32)",
            ),
        ),
    ),
}
"""By the columns of queries and keys: the parts whose features are in shared memory at once."""


class WideRecurrence(StateKernel):
    """The outputs of one segment."""

    layouts = LAYOUTS
    streams = (replace(QUERIES, layout="ROWS_32"), replace(KEYS, layout="ROWS_32"), VALUES)

    def __init__(self, spec: LinearAttention, scheduled: ScheduledForeign) -> None:
        super().__init__(spec, scheduled)
        self.facts["QK"] = "32"
        self.rounds = ROUNDS[spec.head_dims.qk]
        self.parts = tuple(part for parts in self.rounds for part in parts)
        self.index = {part: i for i, part in enumerate(self.parts)}
        self.witness = f"S_{min(self.index.values(), key=lambda i: self.parts[i].columns)}"

    def body(self) -> None:
        tiles = {f"K_{part.tile}": (f"[CHUNK, {part.columns}]", "BYTES_128") for part in self.parts}
        tiles |= {
            f"S_{i}_operand": (f"[VALUES, {part.columns}]", "BYTES_128") for i, part in enumerate(self.parts)
        }
        if self.normalize:
            tiles |= dict.fromkeys(("Z_operand", "z_operand"), ("[@QK@, @QK@]", "BYTES_64"))
        self.tiles(**tiles)
        if self.normalize:
            self.eighths("64")
        self.w.blank()
        self._start()
        self.w.line(self.loop())
        with self.w.indented():
            self.next_chunk()
            self.hide_addresses()
            self._operands()
            self._queries()
            self._outputs()
            self.copies("in_flight")
            self._results()
        self.final_state(*(["count += stop - start"] if self.normalize else []))

    def _start(self) -> None:
        self.forward_rows()
        self.fetch_first()
        self.print("""
            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, 64, gl.SliceLayout(0, SQUARE))
            zeros = gl.full([CHUNK, 64], 0.0, gl.float32, SQUARE)
        """)
        for n, part in enumerate(self.parts):
            self.print(f"""
                f_{n} = gl.arange(0, {part.columns}, gl.SliceLayout(0, {part.layout}))
                u_{n} = gl.arange(0, VALUES, gl.SliceLayout(1, {part.layout}))@FIRST@
                S_{n} = gl.full([VALUES, {part.columns}], 0.0, gl.float32, {part.layout})
            """)
        if self.normalize:
            self.print("""
                Z = gl.full([@QK@, @QK@], 0.0, gl.float32, PAIRS)
                z = gl.full([@QK@, @QK@], 0.0, gl.float32, PAIRS)
                count = 0.0
                i_sums = gl.arange(0, CHUNK, gl.SliceLayout(1, SUMS))
            """)
        self.first_state()

    # A chunk

    def _operands(self) -> None:
        """What products read on the right, round by round; and products into the state, but the last."""
        if self.order["state"] == "early":
            self._round_state()
        self.keys_and_values()
        self.w.line("low, high = halves(x, LEFT)")
        first, *later = self.rounds
        for part in first:
            self._make(part)
            self._store(part)
        if self.order["state"] == "late":
            self._round_state()
        if self.order["queries"] == "early" and not later:
            self.w.line(LOAD_QUERIES)
        self.show()
        self.copies("shown")
        for before, parts in zip(self.rounds, later, strict=False):
            self._into_state(before)
            self.w.line("low, high = halves(K.load(LEFT), LEFT)")
            for part in parts:
                self._make(part)
            sums = self._sums(before)
            self.print(f"""
                {sums} = warpgroup_mma_wait(0, [{sums}])
                barrier()  # all products have read the features before these
            """)
            for part in parts:
                self._store(part)
            if self.order["queries"] == "early" and parts == later[-1]:
                self.w.line(LOAD_QUERIES)
            self.show()

    def _round_state(self) -> None:
        """The state as what products read, and the normaliser's sums."""
        for n, part in enumerate(self.parts):
            rounded = f"S_{n}"
            if part.weight:
                self.w.line(f"weight = {part.weight.format(f=f'f_{n}')}")
                rounded = f"(S_{n} * weight[None, :])"
            self.w.line(f"S_{n}_operand.store({rounded}.to(gl.bfloat16))")
        if self.normalize:
            self.print("""
                Z_operand.store((Z * 0.5).to(gl.bfloat16))
                z_operand.store(z.to(gl.bfloat16))
            """)

    def _queries(self) -> None:
        """Weights of the chunk's own keys; the last products into the state are under way with them."""
        self.w.blank()
        if self.order["queries"] == "late":
            self.w.line(LOAD_QUERIES)
        self.w.line("low, high = halves(Q, LEFT)")
        if self.normalize:
            self.print("""
                # z has equal rows, so each of them counts as one of as many.
                share = gl.full([CHUNK, @QK@], 1.0 / @QK@, gl.bfloat16, LEFT)
                N = gl.full([CHUNK, @QK@], 0.0, gl.float32, NARROW)
                N = warpgroup_mma(Q, Z_operand, N, use_acc=False, is_async=True)
                N = warpgroup_mma(share, z_operand, N, is_async=True)
            """)
        self._scores("0")
        if self.normalize:
            self.print("""
                N = warpgroup_mma_wait(1, [N])
                N *= gl.convert_layout(in_float32(Q), NARROW, assert_trivial=True)
                N = gl.convert_layout(gl.sum(N, 1), gl.SliceLayout(1, SUMS)) + (count + (t0 - start))
                Z, z = add_sums(K, Z, z, PAIRS)
            """)
        self.w.line("R = warpgroup_mma_wait(0, [R])")
        self._weights("0")
        self._scores("64")
        last = self.rounds[-1]
        self._into_state(last)
        self.w.line(f"R = warpgroup_mma_wait({len(last)}, [R])")
        self._weights("64")

    def _outputs(self) -> None:
        """Older keys through the state, the chunk's own directly."""
        self.w.blank()
        self.print("""
            O = warpgroup_mma(A_0, V.slice(0, 64, 0), zeros, use_acc=False, is_async=True)
            O = warpgroup_mma(A_64, V.slice(64, 64, 0), O, is_async=True)
        """)
        if self.normalize:
            self.print("""
                N_own = gl.full([CHUNK, 8], 0.0, gl.float32, SUMS)
                N_own = warpgroup_mma(A_0, eighths, N_own, use_acc=False, is_async=True)
                N_own = warpgroup_mma(A_64, eighths, N_own, is_async=True)
            """)
        for n, part in enumerate(self.parts):
            for i, piece in enumerate(part.pieces):
                operand = f"S_{n}_operand.slice({64 * i}, 64, 1).permute((1, 0))"
                self.print(f"""
                    P = {piece}
                    O = warpgroup_mma_wait(0, [O])  # frees the features before these
                    O = warpgroup_mma(P, {operand}, O, is_async=True)
                """)

    def _results(self) -> None:
        found = "O, " + ("N_own, " if self.normalize else "") + self._sums(self.rounds[-1])
        self.w.blank()
        self.w.line(f"{found} = warpgroup_mma_wait(0, [{found}])")
        if self.normalize:
            self.w.line("N += gl.sum(N_own, 1)")
            self.divide("i_sums")
        if any(part.tile == 1 for part in self.rounds[-1]):
            self.w.line("barrier()  # all products have read the features whose place outputs take")
        self.w.line("out = as_dtype(K_1.slice(0, VALUES, 1), IO)")
        self.write_outputs()
        self.advance()

    # Pieces of it

    def _make(self, part: Part) -> None:
        """Features of a part, as one tile."""
        join = {1: "{0}", 2: "beside({0}, {1}, LEFT)", 4: "four({0}, {1}, {2}, {3}, LEFT)"}[len(part.pieces)]
        self.w.line(f"X_{self.index[part]} = {join.format(*part.pieces)}")

    def _store(self, part: Part) -> None:
        self.w.line(f"K_{part.tile}.store(X_{self.index[part]})")

    def _sums(self, parts: tuple[Part, ...]) -> str:
        return ", ".join(f"S_{self.index[part]}" for part in parts)

    def _into_state(self, parts: tuple[Part, ...]) -> None:
        """Issue the products that add to these parts."""
        for part in parts:
            n = self.index[part]
            self.w.line(f"S_{n} = warpgroup_mma(V.permute((1, 0)), K_{part.tile}, S_{n}, is_async=True)")

    def _scores(self, first: str) -> None:
        self.print(f"""
            R = warpgroup_mma(
                Q, K.slice({first}, 64, 0).permute((1, 0)), zeros, use_acc=False, is_async=True
            )
        """)

    def _weights(self, first: str) -> None:
        self.print(f"""
            A_{first} = rounded(gl.where(i[:, None] >= j[None, :] + {first}, @SEEN@, 0.0))
            A_{first} = gl.convert_layout(A_{first}, LEFT, assert_trivial=True)
        """)

    # The state

    def load(self, flag: str, prefix: str, index: str, of_queries: bool = False) -> None:
        """Read a stored state, where the flag says so."""
        self.w.line(f"if {flag}:")
        with self.w.indented():
            self.print(f"before = {prefix}state + ({index}) * @ROWS@ * @V@")
            for n, part in enumerate(self.parts):
                self.w.line(f"rows = {part.rows.format(f=f'f_{n}')}")
                self.print(f"S_{n} = load_state(before, rows, u_{n}, @ROWS@, @V@)")
            if self.normalize:
                source = f"{prefix}normalizer + ({index}) * @ROWS@"
                self.print(f"Z, z, count = load_sums({source}, @D@, 1.0, PAIRS, @QK@, @QK@)")

    def store(self, prefix: str, index: str, of_queries: bool = False) -> None:
        """Write the state, and `count`."""
        self.print(f"after = {prefix}state + ({index}) * @ROWS@ * @V@")
        for n, part in enumerate(self.parts):
            self.print(f"""
                f_{n} = afresh(f_{n})
                rows = {part.rows.format(f=f"f_{n}")}
                store_state(after, rows, u_{n}, @ROWS@, @V@, S_{n})
            """)
        if self.normalize:
            self.print(f"store_sums({prefix}normalizer + ({index}) * @ROWS@, Z, z, count, @D@, 1.0, PAIRS)")
