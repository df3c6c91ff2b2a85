"""Print sliding-window attention, `lower/sliding_window*.py`, for Hopper's warpgroups.

A program goes through a segment of the sequence, chunk by chunk.  Keys and values stay in shared memory for
the chunks after theirs, so each is read once, and later ones are on their way meanwhile.

A window is a ring.  Of a chunk's own keys a query sees those up to its own, of the oldest tile in reach
those after it: never both in one place.  So the two tiles of products become one tile of scores, and 64 keys
take 64 exponentials, not 128.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from math import log

from ...ir.kernels import ForeignKernel
from ...ir.nodes import Var
from ...ir.program import GROUPED, Axis, Program
from ...lower.sliding_window_parts import BATCH_AXES
from ...memory.window import HIDDEN, LEAST, LOG2_E
from ...mixers.sliding_window import SlidingWindow
from ...schedule.foreign import SQUARE_TILES
from ..layer import ScheduledForeign
from .kernel import Numbers, Stream, WarpgroupKernel

QUERIES = Stream("queries", "q_rows", "q_t", "@D@", "ROWS_64", width="QK")
GRADIENTS = Stream("gradients", "do_rows", "do_t", "@V@", "ROWS_64")
LOGARITHMS = Numbers("logarithms", "lse_row")
KEYS = Stream("keys", "k_rows", "k_tk", "@D@", "ROWS_64", width="QK", slots="SLOTS")
VALUES = Stream("values", "v_rows", "v_tk", "@V@", "ROWS_64", slots="SLOTS")


def window(program: Program, kernel: ForeignKernel) -> ForeignKernel:
    """The launch of a kernel that goes through segments, in place of a program of chunks."""
    return replace(
        kernel,
        summary=f"The {program.name} of a segment, chunk by chunk, on Hopper's warpgroups.",
        grid=(*BATCH_AXES, Axis("segment", Var("segments"))),
        sizes=(*kernel.sizes, "segments"),
        flags=("PADDED", GROUPED),
        constants=tuple(SQUARE_TILES),
    )


class _WindowKernel(WarpgroupKernel):
    """What both have in common."""

    grain = "CHUNK"
    operand = "IO"
    kept = (KEYS, VALUES)
    """Streams whose tiles stay for the chunks after theirs."""
    earliest = "0"
    """The first token that has a key."""

    def __init__(self, spec: SlidingWindow, scheduled: ScheduledForeign) -> None:
        chunk, self.window = SQUARE_TILES["CHUNK"], spec.window
        self.older = -(-spec.window // chunk)  # tiles before the own
        self.short = spec.window < chunk
        facts = {
            "D": str(spec.head_dims.qk),
            "V": str(spec.head_dims.v),
            "W": str(spec.window),
            "BEFORE": str(spec.window - 1),
            "EARLIEST": self.earliest,
            "OLDER": str(self.older),
            "RING": str(self.older * chunk - 1),
            "LOG2_E": repr(LOG2_E),
            "LN_2": repr(log(2.0)),
            "HIDDEN": repr(HIDDEN),
            "LEAST": repr(LEAST),
        }
        super().__init__(scheduled, facts)
        facts["WHOLE"] = self.whole

    def tiles(self, **tiles: tuple[str, str]) -> None:
        self.print(
            "SLOTS: gl.constexpr = STAGES + @OLDER@  # keys and values stay while a query may see them"
        )
        super().tiles(**tiles)

    def start(self, stop: str) -> None:
        """All that stands between the tiles and the loop; rows are copied up to `stop`."""
        self.print("""
            first_key = 0
            if PADDED:
                first_key = gl.load(first + @WHOLE@)
            for i in gl.static_range(@OLDER@):
                t = start + (i - @OLDER@) * CHUNK
                fetch_existing(keys.index(i), k_rows, t, k_tk, @EARLIEST@, @D@, ROWS_64)
                fetch_existing(values.index(i), v_rows, t, v_tk, @EARLIEST@, @V@, ROWS_64)
        """)
        self.w.line("for i in gl.static_range(STAGES - 1):")
        with self.w.indented():
            self.w.line("t = start + i * CHUNK")
            self._copy("i", "i + @OLDER@", "t", stop)
        self.print("""
            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, CHUNK, gl.SliceLayout(0, SQUARE))
            zeros = gl.full([CHUNK, CHUNK], 0.0, gl.float32, SQUARE)
            nothing = gl.full([CHUNK, CHUNK], 0.0, IO, SQUARE)
            slot, own = 0, @OLDER@
        """)

    def wait(self, stop: str) -> None:
        """The next chunk is there, and a later one on its way."""
        self.print("""
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            barrier()  # this chunk has arrived, and all warps are done with the one before it
            ahead = t0 + (STAGES - 1) * CHUNK
            free = gl.where(slot == 0, STAGES - 1, slot - 1)
            oldest = gl.where(own < @OLDER@, own + SLOTS - @OLDER@, own - @OLDER@)
            free_keys = gl.where(oldest == 0, SLOTS - 1, oldest - 1)
        """)
        self._copy("free", "free_keys", "ahead", stop)
        self.hide_addresses()

    def _copy(self, slot: str, kept_slot: str, t: str, stop: str) -> None:
        for stream in self.streams:
            self.print(stream.fetch(kept_slot if stream in self.kept else slot, t, stop))
        self.w.line("async_copy.commit_group()")

    def masked(self, condition: str, lines: list[str]) -> None:
        """Lines that hide keys: under the condition, where otherwise every place of the ring is seen."""
        full = self.window == self.older * SQUARE_TILES["CHUNK"]
        if full:
            self.print(f"if {condition}:  # otherwise every place of the ring is seen")
        with self.w.indented() if full else nullcontext():
            for line in lines:
                self.print(line)

    def seen(self, limit: str) -> None:
        """Which places a query sees of its own tile and of the older one, in a window shorter than a tile."""
        self.print(f"""
            hidden = i - {limit}  # the last of its own tile's keys that is too old
            own_seen = is_own & (j[None, :] > hidden[:, None])
            old_seen = j[None, :] > (hidden + CHUNK)[:, None]
        """)

    def advance(self) -> None:
        super().advance()
        self.w.line("own = gl.where(own == SLOTS - 1, 0, own + 1)")


class WindowOutputs(_WindowKernel):
    """o and lse."""

    streams = (QUERIES, KEYS, VALUES)
    earliest = "-past"

    def body(self) -> None:
        self.tiles(out=("[CHUNK, VALUES]", "BYTES_128"))
        self.w.blank()
        self.print("""
            past = Tk - T  # keys before the first query
            q_rows = q + b * q_b + @HEAD_Q@ * q_h
            k_rows = k + b * k_b + @HEAD_K@ * k_h + gl.cast(past, gl.int64) * k_tk
            v_rows = v + b * v_b + @HEAD_V@ * v_h + gl.cast(past, gl.int64) * v_tk
            o_rows = o + (b * T * H + h) * @V@
            lse_row = lse + (b * H + h) * T
        """)
        self.start("stop")
        self.w.line("for t0 in range(start, stop, CHUNK):")
        with self.w.indented():
            self.wait("stop")
            self._scores()
            self._results()
            self.advance()
        self.w.line("async_copy.wait_group(0)")

    def _scores(self) -> None:
        between = self.older > 1
        self.print("""
            Q = queries.index(slot)
            R = warpgroup_mma(Q, keys.index(own).permute((1, 0)), zeros, use_acc=False, is_async=True)
            R_old = warpgroup_mma(Q, keys.index(oldest).permute((1, 0)), zeros, use_acc=False, is_async=True)
        """)
        if between:
            self.print("""
                between = gl.where(own == 0, SLOTS - 1, own - 1)
                K_between = keys.index(between)
                R_between = warpgroup_mma(Q, K_between.permute((1, 0)), zeros, use_acc=False, is_async=True)
            """)
        names = "R, R_old, R_between" if between else "R, R_old"
        self.print(f"""
            {names} = warpgroup_mma_wait(0, [{names}])

            # Keys up to the query's own, and the oldest in the places of later ones.
            is_own = i[:, None] >= j[None, :]
            scores = gl.where(is_own, R, R_old) * (scale * @LOG2_E@)
        """)
        if between:
            self.print("scores_between = R_between * (scale * @LOG2_E@)")
        self.w.line("place = t0 + past - first_key")
        limit = "gl.minimum(@W@, place + i + 1)"
        if self.short:
            self.seen(limit)
            self.print("scores = gl.where(own_seen | old_seen, scores, @HIDDEN@)")
        else:
            masks = [
                f"limit = {limit}",
                "back = i[:, None] - j[None, :]",
                "scores = gl.where((back & @RING@) < limit[:, None], scores, @HIDDEN@)",
            ]
            if between:
                masks.append(
                    "scores_between = gl.where(back + CHUNK < limit[:, None], scores_between, @HIDDEN@)"
                )
            self.masked("place < @BEFORE@", masks)
        self.print("top = gl.maximum(gl.max(scores, 1), @LEAST@)")
        if between:
            self.w.line("top = gl.maximum(top, gl.max(scores_between, 1))")

    def _results(self) -> None:
        self.print("""
            P = gl.exp2(scores - top[:, None])
            total = gl.sum(P, 1)
            A = P.to(IO)
            A_own = gl.convert_layout(gl.where(is_own, A, nothing), LEFT, assert_trivial=True)
            A_old = gl.convert_layout(gl.where(is_own, nothing, A), LEFT, assert_trivial=True)
            O = warpgroup_mma(A_own, values.index(own), zeros, use_acc=False, is_async=True)
            O = warpgroup_mma(A_old, values.index(oldest), O, is_async=True)
        """)
        if self.older > 1:
            self.print("""
                P_between = gl.exp2(scores_between - top[:, None])
                total += gl.sum(P_between, 1)
                A_between = gl.convert_layout(P_between.to(IO), LEFT, assert_trivial=True)
                O = warpgroup_mma(A_between, values.index(between), O, is_async=True)
            """)
        self.print("""
            logarithm = (top + gl.log2(total)) * @LN_2@
            gl.store(lse_row + t0 + i, logarithm, mask=i < stop - t0)
            O = warpgroup_mma_wait(0, [O])
            out.store((O * (1.0 / total)[:, None]).to(IO))
            barrier()
            write(out, o_rows, t0, H * @V@, stop, @V@, ROWS_64)
        """)


class WindowGradients(_WindowKernel):
    """dq, dk and dv, where a window reaches no further back than one tile.

    The gradients of a chunk's keys and values wait in registers for the queries of the next chunk.  A segment
    ends with the chunk after it, for the sake of its own last keys.
    """

    streams = (QUERIES, GRADIENTS, LOGARITHMS, KEYS, VALUES)

    def body(self) -> None:
        pairs = ("[CHUNK, CHUNK]", "BYTES_128")
        self.tiles(P_own=pairs, P_old=pairs, dS_own=pairs, dS_old=pairs)
        self.w.blank()
        self.print("""
            end = gl.minimum(stop + CHUNK, T)  # of the queries that see the segment's keys
            q_rows = q + b * q_b + @HEAD_Q@ * q_h
            k_rows = k + b * k_b + @HEAD_K@ * k_h
            v_rows = v + b * v_b + @HEAD_V@ * v_h
            do_rows = do + b * do_b + h * do_h
            o_rows = o + (b * T * H + h) * @V@
            lse_row = lse + (b * H + h) * T
            dq_rows = dq + (b * T * H + h) * @D@
            dk_rows = dk + (b * T * H + h) * @D@
            dv_rows = dv + (b * T * H + h) * @V@
        """)
        self.start("end")
        self.print("""
            dK_old, dV_old = zeros, zeros
            for t0 in range(start, stop + CHUNK, CHUNK):
        """)
        with self.w.indented():
            self.wait("end")
            self._pairs()
            self._sums()
            self.advance()
        self.w.line("async_copy.wait_group(0)")

    def _pairs(self) -> None:
        """P and dS as matrix operands, own keys and older ones apart."""
        self.print("""
            Q = queries.index(slot)
            dO = gradients.index(slot)
            K = keys.index(own)
            K_old = keys.index(oldest)
            O = read(dO, o_rows, t0, H * @V@, end, @V@, ROWS_64)
            R = warpgroup_mma(Q, K.permute((1, 0)), zeros, use_acc=False, is_async=True)
            R_old = warpgroup_mma(Q, K_old.permute((1, 0)), zeros, use_acc=False, is_async=True)
            R, R_old = warpgroup_mma_wait(0, [R, R_old])

            # Keys up to the query's own, and the oldest in the places of later ones.
            is_own = i[:, None] >= j[None, :]
            scores = gl.where(is_own, R, R_old) * (scale * @LOG2_E@)
            dP = warpgroup_mma(dO, values.index(own).permute((1, 0)), zeros, use_acc=False, is_async=True)
            dP_old = warpgroup_mma(
                dO, values.index(oldest).permute((1, 0)), zeros, use_acc=False, is_async=True
            )
            logarithm = logarithms.index(slot).load(gl.SliceLayout(1, SQUARE)) * @LOG2_E@
            P = gl.exp2(scores - logarithm[:, None])
            place = t0 - first_key
        """)
        limit = "gl.where(i < end - t0, gl.minimum(@W@, place + {} + 1), 0)"
        own, old = "is_own, {}, nothing", "is_own, nothing, {}"
        if self.short:
            own, old = "own_seen, {}, nothing", "old_seen, {}, nothing"
            self.seen(limit.format("i"))
        else:
            masks = [
                f"limit = {limit.format('afresh(i)')}",  # kept, i + 1 would make others spill
                "P = gl.where(((i[:, None] - j[None, :]) & @RING@) < limit[:, None], P, 0.0)",
            ]
            self.masked("(place < @BEFORE@) | (t0 + CHUNK > end)", masks)
        self.print(f"""
            A = P.to(IO)
            P_own.store(gl.where({own.format("A")}))
            P_old.store(gl.where({old.format("A")}))
            delta = gl.sum(O.to(gl.float32) * dO.load(ROWS_64).to(gl.float32), 1)
            delta = gl.convert_layout(delta, gl.SliceLayout(1, SQUARE))
            dP, dP_old = warpgroup_mma_wait(0, [dP, dP_old])
            dS = (P * (gl.where(is_own, dP, dP_old) - delta[:, None])).to(IO)
            left_own = gl.where({own.format("dS")})
            left_old = gl.where({old.format("dS")})
            dS_own.store(left_own)
            dS_old.store(left_old)
        """)
        self.show()

    def _sums(self) -> None:
        """The products with them; what is complete is written, through tiles that nothing reads any more."""
        self.print("""
            left_own = gl.convert_layout(left_own, LEFT, assert_trivial=True)
            left_old = gl.convert_layout(left_old, LEFT, assert_trivial=True)
            dK_old = warpgroup_mma(dS_old.permute((1, 0)), Q, dK_old, is_async=True)
            dV_old = warpgroup_mma(P_old.permute((1, 0)), dO, dV_old, is_async=True)
            dQ = warpgroup_mma(left_own, K, zeros, use_acc=False, is_async=True)
            dQ = warpgroup_mma(left_old, K_old, dQ, is_async=True)
            dK_old, dV_old, dQ = warpgroup_mma_wait(0, [dK_old, dV_old, dQ])
            dK_done, dV_done = (dK_old * scale).to(IO), dV_old.to(IO)
            dQ_done = (dQ * scale).to(IO)
            dK = warpgroup_mma(dS_own.permute((1, 0)), Q, zeros, use_acc=False, is_async=True)
            dV = warpgroup_mma(P_own.permute((1, 0)), dO, zeros, use_acc=False, is_async=True)
            barrier()  # all warps have multiplied what is overwritten now
            dS_old.store(dK_done)
            P_old.store(dV_done)
            dK_old, dV_old = warpgroup_mma_wait(0, [dK, dV])
            barrier()
            P_own.store(dQ_done)
            if t0 > start:
                write(dS_old, dk_rows, t0 - CHUNK, H * @D@, stop, @D@, ROWS_64)
                write(P_old, dv_rows, t0 - CHUNK, H * @V@, stop, @V@, ROWS_64)
            barrier()
            write(P_own, dq_rows, t0, H * @D@, stop, @D@, ROWS_64)
        """)
