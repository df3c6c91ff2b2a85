"""Schedules without measurements: rules that are right everywhere and good on Hopper.

Tuning records (`records.py`) override what is chosen here, program by program.
"""

from __future__ import annotations

from ..ir.kernels import ForeignKernel, LaunchPlan, Sized
from ..ir.program import Program
from ..ir.traits import (
    CHUNKS,
    CONVOLVES,
    FEATURES,
    GRADIENTS,
    RECURS,
    RUNNING_SUMS,
    SCANS,
    SOFTMAX,
    SOLVES,
    SPINS,
    STREAMS,
    SUMS_STATES,
    TOKEN,
)
from ..names import RECURRENCE
from ..spec.model import LayerSpec
from . import delta, foreign, lags, modes, orders, parts, streams, tensor_cores
from .legal import (
    ALL_TOKENS,
    DIRECT,
    ONE_TOKEN,
    SAFE_COLUMNS,
    WARPGROUP,
    WARPGROUP_ROWS,
    recurs,
)
from .model import HOST_C, Schedule, Setting
from .sizes import GRAIN, MATRIX_UNIT, STATE_COLUMNS, pick, power_of_two

TILE_OF_TWO_WARPS = 64 * 64
"""The largest float32 accumulator that two warps hold beside their operands without spilling."""
ROWS_OF_TWO_WARPS = 512
"""Rows of a state that two warps go through in a gradient; 165 do compile, 969 do not."""
AT_ONCE = 64 * 128
"""Elements of a state that two warps read at once."""
HALF_OF_SHARED = 113 * 1024
"""Bytes of a Hopper multiprocessor's shared memory for each of two programs."""
REGISTER_ROWS = 192
"""Rows of a state, 64 values wide, that four warps hold in registers beside their operands."""
RESIDENT_PROGRAMS = 264
"""Programs of four full warps that a Hopper GPU runs at once: two on each of 132 multiprocessors."""
FEW = {"LONGEST": 1 << 11, "TOKENS": 1 << 16}
"""Tokens of a sequence, and of all, whose scores are computed faster than a recurrence takes its steps."""
FEWER = {"LONGEST": 1 << 10, "TOKENS": 1 << 14}
"""The same where it exchanges columns, and its steps are short: tokens of one round of programs."""
PACKED_SEGMENT = 2048
"""Tokens of a segment of packed sequences that recur, always where a call is to be `batch_invariant`.

A shorter sequence needs no state before a segment; and states before longer segments cost little beside them.
"""
FEWEST_SEGMENTS = 4
"""Segments below which the launches that find their states cost more than a fuller GPU gains."""
FEWEST_BACKWARD = 3
"""The same for gradients on warpgroups, which take longer."""
SHORTEST_SPAN = 1024
"""Tokens below which a program that walks over states is not worth another launch."""
STATE_ROWS = STATE_COLUMNS
"""Of the block of a state that one program sums."""
THREE_STAGES = ("states", RECURRENCE, orders.SQUARE, orders.HYBRID, "query_states")
"""Printers of kernels on warpgroups whose chunks are small enough that three are in memory at once."""
SCANNED = {"PARTS": 256, "FEATURES": 16}  # numbers of tokens, and rows of a state, summed at once
SCANNED_ALONE = {"PARTS": 4096}
"""The same of a program that goes through all tokens of a head: few loads wait for one another."""
ROWS = 16
"""Tokens that a second look at a window reads at once: few, so that they fit into registers."""
SEARCHED = 32
"""Those among which one at linear attention searches for what is not finite.

Of this ptxas makes a loop in the program itself that is closest to the one without a second look.
"""


def policy(spec: LayerSpec, subject: Sized, backend: str) -> Schedule:
    """The schedule of one kernel or plan."""
    match subject:
        case LaunchPlan(kernel=ForeignKernel(printer=printer)):
            setting = _plan_on_warpgroups(spec, subject, printer)
            settings = dict.fromkeys(foreign.dtypes(spec, printer), setting)
            return Schedule(subject.name, backend, settings)
        case ForeignKernel(printer=printer):
            settings = dict.fromkeys(foreign.dtypes(spec, printer), _on_warpgroups(subject))
            return Schedule(subject.name, backend, settings, orders.measured(subject))
    dtypes = (*spec.dtypes, "float64") if backend == "torch" else spec.dtypes
    if isinstance(subject, LaunchPlan):
        if subject.function in modes.PLANS:
            chosen = {dtype: modes.launch_plan(spec, subject, backend, dtype) for dtype in dtypes}
            return Schedule(subject.name, backend, chosen)
        if subject.function in lags.PLANS:
            setting = lags.launch_plan(spec, subject, backend)
            return Schedule(subject.name, backend, dict.fromkeys(dtypes, setting))
        if subject.function in ("stream_plan", "packed_stream_plan"):
            return Schedule(
                subject.name, backend, dict.fromkeys(dtypes, streams.launch_plan(subject, backend))
            )
        if subject.function == "segment_plan" and subject.kernel is None:
            return Schedule(subject.name, backend, dict.fromkeys(dtypes, parts.launch_plan(subject, backend)))
        settings = {dtype: _launch_plan(spec, subject, backend, dtype) for dtype in dtypes}
        return Schedule(subject.name, backend, settings)
    if FEATURES in subject.does:
        settings = {dtype: parts.tiles(subject, backend, dtype) for dtype in dtypes}
        return Schedule(subject.name, backend, settings)
    rewrites = ("gather_by_product",) if backend in ("triton", "torch") else ()
    if SOLVES in subject.does:
        settings = {x: delta.tiles(spec, subject, backend, x, _grain(backend, x)) for x in dtypes}
        turned = ("turn",) if delta.turns(spec, subject, backend) else ()
        return Schedule(subject.name, backend, settings, (*rewrites, *turned))
    if STREAMS in subject.does:
        return Schedule(subject.name, backend, dict.fromkeys(dtypes, streams.tiles(spec, subject, backend)))
    if CONVOLVES in subject.does:
        return Schedule(subject.name, backend, dict.fromkeys(dtypes, lags.tiles(spec, subject, backend)))
    if CHUNKS in subject.does:
        settings = {dtype: modes.chunk_tiles(spec, subject, backend, dtype) for dtype in dtypes}
        return Schedule(subject.name, backend, settings)
    if SPINS in subject.does:
        return Schedule(subject.name, backend, dict.fromkeys(dtypes, modes.tiles(spec, subject, backend)))
    if SCANS in subject.does:
        settings = {dtype: _scan(spec, subject, backend, dtype) for dtype in dtypes}
        return Schedule(subject.name, backend, settings)
    choose = {"triton": _warps, "tilelang": tensor_cores.tiles, "torch": _whole, HOST_C: _small}[backend]
    if RECURS in subject.does:
        dtypes = tuple(dtype for dtype in dtypes if recurs(backend, dtype))
    settings = {dtype: choose(spec, subject, dtype) for dtype in dtypes}
    return Schedule(subject.name, backend, settings, rewrites)


def _scan(spec: LayerSpec, program: Program, backend: str, dtype: str) -> Setting:
    """Tiles of what adds up numbers of tokens."""
    values, grain = power_of_two(spec.extents["VALUES"]), _grain(backend, dtype)
    sizes = SCANNED | {"VALUES": values, "SEGMENT": grain, "SCAN": grain}
    if backend == "triton" and "PARTS" in program.constants and "SCAN" not in program.constants:
        return Setting(pick(program, sizes | SCANNED_ALONE), warps=8, stages=1)
    return Setting(pick(program, sizes), warps=1, stages=1)


def _on_warpgroups(kernel: ForeignKernel) -> Setting:
    """A warpgroup for its rows of a chunk, and as many chunks ahead as let two programs share a
    multiprocessor's memory.
    """
    sizes = {"SEGMENT": GRAIN} | kernel.bounds
    stages = 3 if kernel.printer in THREE_STAGES else 2
    return Setting(pick(kernel, sizes), WARPGROUP * sizes["CHUNK"] // WARPGROUP_ROWS, stages)


def _plan_on_warpgroups(spec: LayerSpec, plan: LaunchPlan, printer: str) -> Setting:
    """By what a pass on warpgroups chooses what it launches."""
    sizes = {
        "CHUNK": foreign.PRINTERS[printer].tiles["CHUNK"],
        "SHORTEST": GRAIN,
        "PROGRAMS": RESIDENT_PROGRAMS,
        "FEWEST": FEWEST_BACKWARD,
        "SEGMENT": GRAIN,
        "LENGTH": PACKED_SEGMENT,
    }
    if printer == orders.WIDE:  # one program fills a multiprocessor
        sizes = _recurrent_plan(spec, RESIDENT_PROGRAMS // 2, _segment(spec))
    elif printer in orders.GRADIENTS:
        sizes["PROGRAMS"] //= -(-spec.extents["VALUES"] // STATE_COLUMNS)
    elif printer in (orders.SQUARE, orders.OBLONG):
        sizes = _recurrent_plan(spec, RESIDENT_PROGRAMS, FEW["LONGEST"]) | {"LONGEST": ONE_TOKEN}
    return Setting(pick(plan, sizes))


def _recurrent_plan(spec: LayerSpec, programs: int, length: int) -> dict[str, int]:
    """A forward pass that recurs, `programs` at once; few scores are computed directly, in such lengths."""
    return {
        **FEW,
        "LENGTH": length,
        "SHORTEST": GRAIN,
        "PROGRAMS": programs // -(-spec.extents["VALUES"] // STATE_COLUMNS),
        "FEWEST": FEWEST_SEGMENTS,
    }


def _launch_plan(spec: LayerSpec, plan: LaunchPlan, backend: str, dtype: str) -> Setting:
    """By what a pass of linear attention chooses what it launches."""
    if plan.function == "kept_plan":
        return Setting(pick(plan, {"LENGTH": _kept(spec)}))
    value_blocks = -(-spec.extents["VALUES"] // STATE_COLUMNS)
    if plan.function == "backward_plan":
        blocks = -(-_rows(spec) // STATE_ROWS) * value_blocks
        sizes = {
            "SEGMENT": _grain(backend, dtype),
            "LENGTH": _kept(spec),
            "SHORTEST": SHORTEST_SPAN,
            "PROGRAMS": RESIDENT_PROGRAMS // blocks if backend in ("triton", "tilelang") else 1,
        }
        return Setting(pick(plan, sizes))
    length = {"torch": 128, HOST_C: 64}.get(backend, _segment(spec))
    sizes = dict.fromkeys(DIRECT, ALL_TOKENS) | {
        "SEGMENT": _grain(backend, dtype),
        "LENGTH": length,
        "SHORTEST": GRAIN,
        "PROGRAMS": RESIDENT_PROGRAMS // value_blocks,
        "FEWEST": FEWEST_SEGMENTS,
    }
    if "FEWEST" in plan.constants and _recurs_well(spec, backend, dtype):
        few = FEWER if backend == "triton" and foreign.exchanges(spec, dtype) else FEW
        sizes |= few | {"LENGTH": FEW["LONGEST"]}
    if plan.function == "packed_forward_plan" and _recurs_well(spec, backend, dtype):
        sizes |= {"LENGTH": PACKED_SEGMENT, "LONGEST": ONE_TOKEN}
    return Setting(pick(plan, sizes))


def _recurs_well(spec: LayerSpec, backend: str, dtype: str) -> bool:
    """Whether long sequences run as a recurrence: on a GPU, where the state fits its registers."""
    return backend in ("triton", "tilelang") and recurs(backend, dtype) and _rows(spec) <= REGISTER_ROWS


def _warps(spec: LayerSpec, program: Program, dtype: str) -> Setting:
    """Tiles for Triton: blocks of two warps, or of one warpgroup where every product has 64 columns.

    Two warps are below the four that make a warpgroup, so products stay on the instructions that a single
    warp issues.  For the gradients of linear attention that is deliberate: Triton 3.6 and 3.7 miscompile
    several small warpgroup products in one kernel (wrong sums, illegal addresses: triton-lang/triton 10486
    and 11366), and with 64 columns too where a transposed operand is computed in the kernel.  Recurrences,
    states and windows have wide products of loaded tiles; there warpgroups are right, and faster.
    """
    wide = dtype == "float32"  # twice the bytes, and products that run on the ordinary units
    all_values = max(MATRIX_UNIT, power_of_two(spec.extents["VALUES"]))
    values = all_values if "VALUES" in program.bounds else min(all_values, STATE_COLUMNS)
    qk = max(MATRIX_UNIT, power_of_two(spec.extents["QK"]))
    if SOFTMAX in program.does and TOKEN not in program.does:
        return _warpgroup(program, qk, values, wide)
    gradients, states = GRADIENTS in program.does, SUMS_STATES in program.does
    own = max(MATRIX_UNIT, power_of_two(spec.extents.get("WINDOW_QK", 1)))
    widths = (qk, values, own) if "WINDOW_QK" in program.constants else (qk, values)
    held = sum(widths) if gradients or states else max(widths)  # columns summed at once
    chunk = 32 if wide or 64 * held >= 2 * TILE_OF_TWO_WARPS else 64
    sizes = {
        "QK": qk,
        "VALUES": values,
        "FEATURES": 32,
        "CHUNK": chunk,
        "KEYS": 32 if gradients or spec.mixer == "hybrid" else chunk,  # weights of two kinds at once
        "QUERIES": 32,
        "SEGMENT": _grain("triton", dtype),
        "ROWS": SEARCHED,
        "WINDOW_QK": own,
    }
    if RECURS in program.does or states and not wide:
        # Products are 64 wide throughout, which keeps clear of the fault named above.
        sizes |= {"FEATURES": 64, "CHUNK": 64, "VALUES": 64}
        columns = qk * (2 if RECURS in program.does else 1) + 64
        copied = 2 * columns * (sizes["CHUNK"] if "CHUNK" in program.constants else sizes["SEGMENT"])
        stages = max(2, min(3, HALF_OF_SHARED // copied))
        # Two warpgroups share out 128 rows or more; a chunk of 64 they would have to cut in columns.
        return Setting(pick(program, sizes), warps=8 if states and qk >= 128 else 4, stages=stages)
    if RUNNING_SUMS in program.does:
        return Setting(pick(program, sizes | {"FEATURES": max(1, 128 // values)}), warps=1, stages=8)
    if TOKEN in program.does:
        return _step(spec, program, sizes)
    alone = {"FEATURES", "WINDOW_QK"}.isdisjoint(program.constants)
    if alone and not wide and not gradients and qk == all_values == 2 * STATE_COLUMNS:
        # A warpgroup, whose products all have as many columns as are compiled right.
        sizes |= {"CHUNK": WARPGROUP_ROWS, "KEYS": SAFE_COLUMNS, "VALUES": all_values}
        return Setting(pick(program, sizes), WARPGROUP, stages=2)
    crowded = wide or 32 * max(widths) > TILE_OF_TWO_WARPS or 32 * held > TILE_OF_TWO_WARPS * 3 // 2
    # Triton 3.6 fails to compile gradients of more rows for two warps (LLVM's vectorizer aborts).
    crowded |= gradients and spec.extents.get("FEATURES", 1) > ROWS_OF_TWO_WARPS
    warps = 8 if 32 * held * (1 + wide) >= 4 * TILE_OF_TWO_WARPS else 4 if crowded else 2
    return Setting(pick(program, sizes), warps, stages=2 if gradients else 3)


def _step(spec: LayerSpec, program: Program, sizes: dict[str, int]) -> Setting:
    """Tiles of a step for Triton, which waits for memory alone: all of a state at once, as registers allow.

    Where rows fill no power of two, a state is read in rounds of two warps, of which one is on its way while
    another is summed: measured, that hides what the lanes without a column cost.
    """
    qk, values = sizes["QK"], sizes["VALUES"]
    has_ring = not {"KEYS", "RING"}.isdisjoint(program.constants)
    width = max(qk, values) if has_ring else values
    whole = all(spec.extents[name] == sizes[name] for name in ("QK", "VALUES") if name in program.constants)
    crowded = 1 + (spec.kept_dtype in ("bfloat16", "float16"))  # what rounds at random takes registers
    keys = power_of_two(max(1, spec.extents.get("KEYS", spec.extents.get("RING", 1)) - 1))
    rows = power_of_two(spec.extents["FEATURES"]) if "FEATURES" in program.constants else 1
    if whole:
        keys, rows = min(keys, 2 * AT_ONCE // width), min(rows, 256)
    else:
        keys, rows = min(keys // 2, AT_ONCE // width), min(rows, AT_ONCE // values // crowded)
    keys = max(MATRIX_UNIT, keys)
    sizes = sizes | {"FEATURES": max(MATRIX_UNIT, rows), "KEYS": keys, "RING": keys}
    columns = qk if program.bounds.get("QK") and "KEYS" not in program.constants else 0
    of_sums = min(4, max(rows, columns) * values // 4096) * crowded
    warps = max(keys * width // 2048, of_sums, 1)
    if "RING" in program.constants and not whole:  # its state is read, and seldom written: warps alone
        return Setting(pick(program, sizes | {"FEATURES": 2 * MATRIX_UNIT}), warps=1, stages=2)
    return Setting(pick(program, sizes), warps if whole else min(2, warps), stages=2)


def _warpgroup(program: Program, qk: int, values: int, wide: bool) -> Setting:
    """Tiles of softmax attention for Triton: blocks of four warps, with all that they load in flight at once.

    A tile of weights stays in the registers in which the next product reads it: that is what a warpgroup's
    products are for.  Triton miscompiles those with fewer than 64 columns, and those of a tile that was
    computed and then transposed.  The window's programs have none of the latter; heads for which 64 rows and
    columns do not suit get 32 rows, and with them the products of single warps.  Products in float32, whose
    operands all stand in registers, need the smallest tiles and more threads.
    """
    fits = GRADIENTS not in program.does or max(qk, values) <= 64
    tile = 16 if wide else 64 if fits and min(qk, values) >= 64 else 32
    sizes = {"QK": qk, "VALUES": values, "ROWS": ROWS} | dict.fromkeys(("CHUNK", "KEYS", "QUERIES"), tile)
    return Setting(pick(program, sizes), warps=8 if wide else 4, stages=1)


def _whole(spec: LayerSpec, program: Program, dtype: str) -> Setting:
    """Tiles for batched PyTorch expressions: no padding, few and large, and as long as a query's window."""
    chunk = max(64, min(256, power_of_two(spec.extents.get("KEYS", 128))))
    if "SEGMENT" in program.constants:  # which are made of whole chunks
        chunk = min(chunk, _grain("torch", dtype))
    sizes = spec.extents | dict.fromkeys(("CHUNK", "KEYS", "QUERIES"), chunk)
    if TOKEN in program.does:
        sizes |= spec.extents  # a step reads all keys at once
    return Setting(pick(program, sizes | {"SEGMENT": _grain("torch", dtype)}))


def _small(spec: LayerSpec, program: Program, dtype: str) -> Setting:
    """Tiles that fit a host thread's stack and first-level cache."""
    sizes = spec.extents | dict.fromkeys(("CHUNK", "KEYS", "QUERIES"), 16)
    sizes |= {"FEATURES": min(32, sizes.get("FEATURES", 32)), "SEGMENT": _grain(HOST_C, dtype)}
    sizes |= {"ROWS": ROWS}
    return Setting(pick(program, sizes))


def _segment(spec: LayerSpec) -> int:
    """Segments about as long as the state has rows.

    A token's direct part costs half a segment of keys, its part of the state the state's rows, read as matrix
    operands: longer segments lose on the one side what they gain on the other.
    """
    return min(4096, max(256, power_of_two(_rows(spec))))


def _grain(backend: str, dtype: str) -> int:
    """Tokens that a walk over the sequence adds to a state at once: segments are made of them.

    In float32 Triton's products keep their operands in registers, and more tokens spill kilobytes a thread.
    """
    if backend == HOST_C:
        return 64
    return 32 if (backend, dtype) == ("triton", "float32") else GRAIN


def _kept(spec: LayerSpec) -> int:
    """Tokens between two states that a backward pass keeps: the largest power of two up to the state's rows.

    So states take less than twice the bytes of the values, however wide the queries are, and a token meets
    directly, on average, at most half as many keys as the state has rows.
    """
    return max(GRAIN, power_of_two(_rows(spec) + 1) // 2)


def _rows(spec: LayerSpec) -> int:
    """Rows of a state."""
    return spec.extents["FEATURES"]
