"""Print the recurrence of a second-order Taylor layer for Hopper's warpgroups, in Gluon.

The algorithm is that of `lower/linear_attention_recurrence.py`.  It is written out here, because all that
makes it fast is places and times, of which a tile program says nothing:

* features of queries and keys are made in registers, by exchange (`based_ops/support/warpgroups.py`); those
  of queries enter products from there, those of keys through shared memory;
* the state is kept transposed in registers, and rounded once a chunk into shared memory;
* the normaliser of older keys is a quadratic form, on instructions of single warps, done before the chunk's
  own products are under way;
* keys come before queries, and all products on the state, on the chunk and into the state are issued in a
  row after them, so that few tiles are alive at once.  Nothing that changes in the loop may spill: 44 bytes
  took 20 % more time, 124 bytes 55 %.
"""

from __future__ import annotations

from dataclasses import replace
from textwrap import dedent

from ..ir.nodes import Program, Var, wrap
from ..ir.printer import text
from ..lower.feature_maps import feature_map
from ..names import ON_WARPGROUPS, RECURRENCE
from ..schedule.legal import EXCHANGED, WARPGROUP_TILES, exchanges
from ..spec.model import LayerSpec, LinearAttention
from .layer import ScheduledProgram
from .writer import Writer

HELPERS = (
    "add_sums",
    "afresh",
    "barrier",
    "features",
    "fetch",
    "load_state",
    "load_sums",
    "on_warpgroups",
    "quadratic_form",
    "rounded",
    "rows_of_narrow",
    "rows_of_wide",
    "store_state",
    "store_sums",
    "write",
)
"""What a kernel may call of `based_ops.support.warpgroups`."""
IMPORTS = (
    "from triton.experimental import gluon",
    "from triton.experimental.gluon import language as gl",
    "from triton.experimental.gluon.language.nvidia.hopper import (",
    "    async_copy, fence_async_shared, warpgroup_mma, warpgroup_mma_wait,",
    ")",
)
"""What it needs of Triton."""


def program(spec: LayerSpec, programs: tuple[Program, ...]) -> Program | None:
    """The recurrence as a program without a body, whose text is printed here; None for other layers."""
    if not any(exchanges(spec, dtype) for dtype in spec.dtypes):
        return None
    return replace(
        next(p for p in programs if p.name == RECURRENCE),
        name=ON_WARPGROUPS,
        summary="The outputs of one segment, with the state in registers, on Hopper's warpgroups.",
        constants=("SEGMENT", "CHUNK", "VALUES"),
        body=(),
        bounds=WARPGROUP_TILES,
    )


class Kernel:
    """Prints the kernel."""

    def __init__(self, w: Writer, spec: LinearAttention, scheduled: ScheduledProgram) -> None:
        self.w, self.kernel, self.normalize = w, scheduled.program, spec.normalize
        (values,) = scheduled.schedule.values("VALUES")
        features = feature_map(spec)
        v = spec.head_dims.v
        self.facts = {
            "V": str(v),
            "D": str(spec.head_dims.qk),
            "QK": str(EXCHANGED),
            "ROWS": str(features.rows),
            "EPS": repr(spec.eps),
            "COLUMNS": "VALUES" if v % values == 0 else f"{v} - value_block * VALUES",
            "SEEN": text(features.kernel(Var("R"), wrap(1.0))),
        }

    def emit(self, parameters: list[str]) -> None:
        """The function; `parameters` are tensors, strides, sizes and scalars, as in other kernels."""
        w, kernel = self.w, self.kernel
        w.line(f"@gluon.jit(do_not_specialize={list(kernel.sizes)!r})".replace("'", '"'))
        constants = (*kernel.flags, *kernel.constants, "STAGES")
        w.call(f"def {kernel.name}(", [*parameters, *(f"{name}: gl.constexpr" for name in constants)], "):")
        with w.indented():
            w.line(f'"""{kernel.summary}"""')
            self._setting()
            self._start()
            w.line("for t0 in range(start, stop, CHUNK):")
            with w.indented():
                self._keys()
                self._queries()
                self._results()
            self._end()

    def _setting(self) -> None:
        self._print("""
            scale = gl.cast(scale, gl.float32)  # compilers of callers may pass 64 bits
            program = gl.program_id(0)
            value_block = program % gl.cdiv(@V@, VALUES)
            program = program // gl.cdiv(@V@, VALUES)
            segment = program % segments
            program = program // segments
            h = (program % H).to(gl.int64)
            b = (program // H).to(gl.int64)
            length = gl.cdiv(gl.cdiv(T, SEGMENT), segments) * SEGMENT
            start = segment * length
            stop = gl.minimum(start + length, T)

            # Results of products, their left operands, shared tiles by the bytes of a row, rows to copy.
            SQUARE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
            WIDE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
            NARROW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16])
            LEFT: gl.constexpr = gl.DotOperandLayout(0, SQUARE, 2)
            BYTES_128: gl.constexpr = gl.NVMMASharedLayout(128, 16)
            BYTES_64: gl.constexpr = gl.NVMMASharedLayout(64, 16)
            BYTES_32: gl.constexpr = gl.NVMMASharedLayout(32, 16)
            QK_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])
            VALUE_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        """)
        if self.normalize:
            self._print("""
                SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
                PAIRS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8])
                ONES: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, 1], [1, 0])
            """)
        self._print("""
            IO: gl.constexpr = q.dtype.element_ty
            queries = gl.allocate_shared_memory(IO, [STAGES, CHUNK, @QK@], BYTES_32)
            keys = gl.allocate_shared_memory(IO, [STAGES, CHUNK, @QK@], BYTES_32)
            values = gl.allocate_shared_memory(IO, [STAGES, CHUNK, VALUES], BYTES_128)
            if IO == gl.float16:
                K_operand = gl.allocate_shared_memory(gl.bfloat16, [CHUNK, @QK@], BYTES_32)
                V_operand = gl.allocate_shared_memory(gl.bfloat16, [CHUNK, VALUES], BYTES_128)
            K_wide = gl.allocate_shared_memory(gl.bfloat16, [CHUNK, 128], BYTES_128)
            K_narrow = gl.allocate_shared_memory(gl.bfloat16, [CHUNK, 32], BYTES_64)
            S_wide_operand = gl.allocate_shared_memory(gl.bfloat16, [VALUES, 128], BYTES_128)
            S_narrow_operand = gl.allocate_shared_memory(gl.bfloat16, [VALUES, 32], BYTES_64)
            out = gl.allocate_shared_memory(IO, [CHUNK, VALUES], BYTES_128)
        """)
        if self.normalize:
            self._print("""
                # A row's sum as a product: eight equal columns, an eighth of it each.
                PLAIN: gl.constexpr = gl.NVMMASharedLayout(0, 16)
                eighth = gl.full([CHUNK, 8], 0.125, gl.bfloat16, ONES)
                eighths = gl.allocate_shared_memory(gl.bfloat16, [CHUNK, 8], PLAIN, eighth)
            """)
        self.w.blank()

    def _start(self) -> None:
        self._print("""
            q_rows = q + b * q_b + h * q_h
            k_rows = k + b * k_b + h * k_h
            v_rows = v + b * v_b + h * v_h + value_block * VALUES
            o_rows = o + (b * T * H + h) * @V@ + value_block * VALUES
            for i in gl.static_range(STAGES - 1):
                t = start + i * CHUNK
                fetch(queries.index(i), q_rows, t, q_t, stop, @D@, QK_ROWS)
                fetch(keys.index(i), k_rows, t, k_t, stop, @D@, QK_ROWS)
                fetch(values.index(i), v_rows, t, v_t, stop, @COLUMNS@, VALUE_ROWS)
                async_copy.commit_group()

            i = gl.arange(0, CHUNK, gl.SliceLayout(1, SQUARE))
            j = gl.arange(0, CHUNK, gl.SliceLayout(0, SQUARE))
            f_wide = gl.arange(0, 128, gl.SliceLayout(0, WIDE))
            f_narrow = gl.arange(0, 32, gl.SliceLayout(0, NARROW))
            u_wide = value_block * VALUES + gl.arange(0, VALUES, gl.SliceLayout(1, WIDE))
            u_narrow = value_block * VALUES + gl.arange(0, VALUES, gl.SliceLayout(1, NARROW))
            weight = gl.where(f_wide < @QK@, 0.5, 1.0)  # squares come once
            zeros = gl.full([CHUNK, CHUNK], 0.0, gl.float32, SQUARE)
            S_wide = gl.full([VALUES, 128], 0.0, gl.float32, WIDE)
            S_narrow = gl.full([VALUES, 32], 0.0, gl.float32, NARROW)
        """)
        if self.normalize:
            self._print("""
                Z = gl.full([@QK@, @QK@], 0.0, gl.float32, PAIRS)
                z = gl.full([CHUNK, @QK@], 0.0, gl.float32, PAIRS)
                count = 0.0
                i_pairs = gl.arange(0, CHUNK, gl.SliceLayout(1, PAIRS))
            """)
        for flag, source, index in (
            ("INITIAL", "initial_", "b * H + h"),
            ("SEGMENTED", "", "(b * H + h) * segments + segment"),
        ):
            self.w.line(f"if {flag}:")
            with self.w.indented():
                self._print(f"""
                    before = {source}state + ({index}) * @ROWS@ * @V@
                    S_wide = load_state(before, rows_of_wide(f_wide, @D@), u_wide, @ROWS@, @V@)
                    S_narrow = load_state(before, rows_of_narrow(f_narrow, @D@), u_narrow, @ROWS@, @V@)
                """)
                if self.normalize:
                    self._print(
                        f"Z, z, count = load_sums({source}normalizer + ({index}) * @ROWS@, @D@, PAIRS)"
                    )
        self.w.line("slot = 0")

    def _keys(self) -> None:
        self._print("""
            async_copy.wait_group(STAGES - 2)
            barrier()  # this chunk has arrived, and all warps are done with the one before it
            ahead = t0 + (STAGES - 1) * CHUNK
            free = gl.where(slot == 0, STAGES - 1, slot - 1)
            fetch(queries.index(free), q_rows, ahead, q_t, stop, @D@, QK_ROWS)
            fetch(keys.index(free), k_rows, ahead, k_t, stop, @D@, QK_ROWS)
            fetch(values.index(free), v_rows, ahead, v_t, stop, @COLUMNS@, VALUE_ROWS)
            async_copy.commit_group()

            K = keys.index(slot)
            V = values.index(slot)
            x = K.load(LEFT)
            if IO == gl.float16:  # sums leave its range, so products are of bfloat16
                x = rounded(x.to(gl.float32))
                K_operand.store(x)
                V_operand.store(rounded(V.load(LEFT).to(gl.float32)))
                K = K_operand
                V = V_operand
            wide, narrow = features(x, LEFT)
            K_wide.store(wide)
            K_narrow.store(narrow)
            S_wide_operand.store((S_wide * weight[None, :]).to(gl.bfloat16))
            S_narrow_operand.store(S_narrow.to(gl.bfloat16))
            fence_async_shared()
            barrier()  # products see what has been stored
        """)

    def _queries(self) -> None:
        self._print("Q = rounded(queries.index(slot).load(LEFT).to(gl.float32) * scale)")
        if self.normalize:
            self._print("""
                N = quadratic_form(Q, Z, z, PAIRS) + (count + (t0 - start))
                Z, z = add_sums(K, Z, z, PAIRS)
            """)
        self._print("""
            R = warpgroup_mma(Q, K.permute((1, 0)), zeros, use_acc=False, is_async=True)
            wide, narrow = features(Q, LEFT)
            R = warpgroup_mma_wait(0, [R])
            A = rounded(gl.where(i[:, None] >= j[None, :], @SEEN@, 0.0))
            A = gl.convert_layout(A, LEFT, assert_trivial=True)

            # Older keys through the state, the chunk's own directly; then these enter the state.
            O = warpgroup_mma(wide, S_wide_operand.permute((1, 0)), zeros, use_acc=False, is_async=True)
            O = warpgroup_mma(narrow, S_narrow_operand.permute((1, 0)), O, is_async=True)
            O = warpgroup_mma(A, V, O, is_async=True)
        """)
        if self.normalize:
            self._print("""
                N_own = gl.full([CHUNK, 8], 0.0, gl.float32, SUMS)
                N_own = warpgroup_mma(A, eighths, N_own, use_acc=False, is_async=True)
            """)
        self._print("""
            S_wide = warpgroup_mma(V.permute((1, 0)), K_wide, S_wide, is_async=True)
            S_narrow = warpgroup_mma(V.permute((1, 0)), K_narrow, S_narrow, is_async=True)
        """)

    def _results(self) -> None:
        if self.normalize:
            self._print("""
                O, N_own = warpgroup_mma_wait(2, [O, N_own])
                N += gl.convert_layout(gl.sum(N_own, 1), gl.SliceLayout(1, PAIRS))
                n_rows = n + b * T * H + gl.cast(t0, gl.int64) * H + h
                gl.store(n_rows + i_pairs * H, N, mask=i_pairs < stop - t0)
                O = O * (1.0 / (gl.convert_layout(N, gl.SliceLayout(1, SQUARE)) + @EPS@))[:, None]
            """)
        else:
            self._print("O = warpgroup_mma_wait(2, [O])")
        self._print("""
            out.store(O.to(IO))
            barrier()
            write(out, o_rows, t0, H * @V@, stop, @COLUMNS@, VALUE_ROWS)
            S_wide, S_narrow = warpgroup_mma_wait(0, [S_wide, S_narrow])
            slot = gl.where(slot == STAGES - 1, 0, slot + 1)
        """)

    def _end(self) -> None:
        self._print("""
            async_copy.wait_group(0)
            if FINAL:
                after = final_state + (b * H + h) * @ROWS@ * @V@
                store_state(after, rows_of_wide(afresh(f_wide), @D@), u_wide, @ROWS@, @V@, S_wide)
                store_state(after, rows_of_narrow(afresh(f_narrow), @D@), u_narrow, @ROWS@, @V@, S_narrow)
        """)
        if self.normalize:
            with self.w.indented():
                self._print("""
                    count += stop - start
                    store_sums(final_normalizer + (b * H + h) * @ROWS@, Z, z, count, @D@, PAIRS)
                """)

    def _print(self, text: str) -> None:
        for name, value in self.facts.items():
            text = text.replace(f"@{name}@", value)
        for line in dedent(text).strip("\n").rstrip().splitlines():
            self.w.line(line)
