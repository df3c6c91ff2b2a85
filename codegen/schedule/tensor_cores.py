"""Tiles for TileLang on a GPU: the warps of a block share out every product, and all tiles have layouts."""

from __future__ import annotations

from ..ir.check import check
from ..ir.program import Program
from ..ir.traits import RECURS, ROW_SUMS, RUNNING_SUMS, SOFTMAX, TOKEN
from ..spec.model import LayerSpec
from .legal import COLUMNS_OF_A_WARP, WARPGROUP, shares_out
from .model import Setting
from .sizes import GRAIN, MATRIX_UNIT, STATE_COLUMNS, pick, power_of_two

ROWS_LAID_OUT = 64
"""Keys of a window that TileLang lays out at any width."""


def tiles(spec: LayerSpec, program: Program, dtype: str) -> Setting:
    """Tiles for TileLang on a GPU: as few values as the warps of a block can share out.

    Tiles to which no product gives a layout have powers of two as sides, so that the threads divide their
    rows evenly; and those of sums along rows, for which TileLang finds no layout at every width.
    """
    v = spec.extents["VALUES"]
    groups = 2 if v > 128 else 1
    whole = max(groups * MATRIX_UNIT, power_of_two(v))
    if not _laid_out(spec, program, dtype):
        return _blocks_of_warpgroups(spec, program, dtype, groups, whole)
    least = whole if RECURS in program.does else _multiple(v, groups)  # a state that stays is such a tile too
    widths = (least, whole, WARPGROUP * groups * COLUMNS_OF_A_WARP)
    settings = [_blocks_of_warpgroups(spec, program, dtype, groups, width) for width in widths]
    types = check(program)
    return next(setting for setting in settings if shares_out(program, types, setting))


def _laid_out(spec: LayerSpec, program: Program, dtype: str) -> bool:
    """Whether products on tensor cores give the program's tiles their layouts.

    Not where a window is longer than `ROWS_LAID_OUT`: then rows that are done again sum several tiles of it.
    Nor where such rows have a width, up to that of four warps, that threads cannot share evenly.
    """
    widths = [spec.extents[name] for name in ("QK", "VALUES") if name in program.constants]
    if "ROWS" in program.constants and any(x != power_of_two(x) for x in widths if x <= WARPGROUP * 32):
        return False
    alone = program.does.isdisjoint({TOKEN, ROW_SUMS, RUNNING_SUMS})
    short = SOFTMAX not in program.does or spec.extents["KEYS"] <= ROWS_LAID_OUT
    return dtype != "float32" and alone and short


def _multiple(columns: int, groups: int) -> int:
    """Columns of a product; a multiple of 16 for each warpgroup, or TileLang leaves their instructions."""
    unit = groups * MATRIX_UNIT
    return -(-columns // unit) * unit


def _blocks_of_warpgroups(spec: LayerSpec, program: Program, dtype: str, groups: int, v: int) -> Setting:
    """Tiles for TileLang on a GPU, `v` values wide: blocks of one warpgroup, or of two.

    A window's queries and keys go to products as they are loaded; those of a map are worked on before.
    """
    wide = dtype == "float32"  # twice the bytes, and products that run on the ordinary units
    qk = spec.extents["QK"]
    loaded = _laid_out(spec, program, dtype) and SOFTMAX in program.does
    qk = _multiple(qk, groups) if loaded else max(groups * MATRIX_UNIT, power_of_two(qk))
    values = v if "VALUES" in program.bounds else min(v, STATE_COLUMNS)
    chunk = 32 if wide else 64
    sizes = {
        "QK": qk,
        "VALUES": values,
        "FEATURES": 32 if wide else 64,
        "CHUNK": chunk,
        "KEYS": chunk,
        "QUERIES": chunk,
        "SEGMENT": GRAIN,
        "ROWS": chunk,
        "WINDOW_QK": max(groups * MATRIX_UNIT, power_of_two(spec.extents.get("WINDOW_QK", 1))),
    }
    if RUNNING_SUMS in program.does:
        sizes |= {"FEATURES": max(1, 1024 // values)}
        return Setting(pick(program, sizes), warps=4 * groups, stages=4)
    if TOKEN in program.does:
        rows = max(MATRIX_UNIT, min(64, 4096 // values))
        sizes |= {"FEATURES": rows, "KEYS": rows, "RING": rows}
    return Setting(pick(program, sizes), warps=4 * groups, stages=1)
