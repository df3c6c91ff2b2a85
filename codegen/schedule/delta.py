"""The policy of the delta rule's own programs: inverses of chunks, walks from chunk to chunk, and a step."""

from __future__ import annotations

from ..ir.program import Program
from ..ir.traits import GRADIENTS, HOLDS, STREAMS, TOKEN
from ..spec.model import LayerSpec
from .budget import WARP
from .legal import WARPGROUP
from .model import HOST_C, Setting
from .sizes import MATRIX_UNIT, pick, power_of_two

BLOCK = 16
"""Rows of an inverse that are found one after the other; the rest are products."""
CHUNK = {"triton": 32, "tilelang": 64, "torch": 64, HOST_C: 16}
"""Tokens that are corrected at once: an inverse takes their square, and of products their cube."""
TURNED = 96
"""What a thread of a lone warp holds of 16 columns of a state, beside its operands: see `turns`."""
FEATURES = {"triton": 32, "tilelang": 64}
"""Rows of a block of the state; blocks are written out."""
HELD = {False: 5 * 1024, True: 5 * 512}
"""Numbers of a state that a program holds in registers, by whether products run on the ordinary units."""
OF_A_WARPGROUP = 8 * 1024
"""The same of four warps on Triton, where keys are their own features and nothing else is as large."""
STEPPED = 8 * 1024
"""The same of a step, whose two warps have little else."""

NUMBERS, MOST_WARPS = 128, 16
"""What a thread holds of a state at most, and the largest blocks: for states larger than those shipped."""


def tiles(spec: LayerSpec, program: Program, backend: str, dtype: str, grain: int) -> Setting:
    """Tiles of one program; `grain` are the tokens of which segments are made."""
    qk, v, rows = (spec.extents[name] for name in ("QK", "VALUES", "FEATURES"))
    wide = dtype == "float32"
    few = wide and backend in FEATURES or _of_monomials(spec, backend)
    chunk = MATRIX_UNIT if few else CHUNK[backend]
    sizes = {"QK": qk, "VALUES": v, "FEATURES": rows, "SEGMENT": grain}
    sizes |= {"CHUNK": chunk, "BLOCK": min(BLOCK, chunk // 2)}
    if backend == "torch":
        return Setting(pick(program, sizes))
    if backend == HOST_C:
        return Setting(pick(program, sizes | {"FEATURES": min(32, rows)}))
    sizes |= {"QK": max(MATRIX_UNIT, power_of_two(qk)), "VALUES": max(MATRIX_UNIT, power_of_two(v))}
    sizes["FEATURES"] = FEATURES[backend]
    if STREAMS in program.does:
        return Setting(pick(program, sizes | {"CHUNK": MATRIX_UNIT}), warps=4, stages=1)
    block = sizes["FEATURES"] if "FEATURES" in program.constants else sizes["QK"]
    held = -(-rows // block) * block
    if TOKEN in program.does:
        sizes["VALUES"] = _columns(STEPPED // held, sizes["VALUES"])
        return Setting(pick(program, sizes), _warps(2, held * sizes["VALUES"]), stages=1)
    if turns(spec, program, backend):
        sizes |= dict.fromkeys(("FEATURES", "VALUES"), MATRIX_UNIT)
        return Setting(pick(program, sizes), warps=8 if wide else 1, stages=2)
    few_held = backend == "triton" and block >= held and not wide and GRADIENTS not in program.does
    if HOLDS in program.does:
        most = OF_A_WARPGROUP if few_held else HELD[wide]
        sizes["VALUES"] = _columns(most // held, sizes["VALUES"])
    elif backend == "triton":  # an inverse, whose rounds are sums along both axes
        return Setting(pick(program, sizes), warps=1, stages=2)
    # Two warps issue no products of warpgroups, which Triton miscompiles if they are narrow (`legal.py`).
    warps = 8 if wide else 4 if backend == "tilelang" or "FEATURES" in program.constants else 2
    if HOLDS in program.does:
        least = WARPGROUP if few_held and held * sizes["VALUES"] > HELD[wide] else warps
        warps = _warps(least, held * sizes["VALUES"])
    return Setting(pick(program, sizes), warps, stages=2)


def turns(spec: LayerSpec, program: Program, backend: str) -> bool:
    """Whether a walk holds its state with columns of values along rows, 16 of them by one warp.

    Then all operands come from the warp's own registers, and no warp waits for another.  With monomials for
    features that takes fewer instructions.  Keys that are their own features are operands as they are loaded,
    and several warps share them.
    """
    return HOLDS in program.does and _of_monomials(spec, backend)


def _of_monomials(spec: LayerSpec, backend: str) -> bool:
    """Whether features are monomials, few enough for a warp on Triton."""
    rows = spec.extents["FEATURES"]
    return backend == "triton" and spec.extents["QK"] < rows <= TURNED * WARP // MATRIX_UNIT


def _warps(least: int, numbers: int) -> int:
    """Warps of a block of which no thread holds more than `NUMBERS` numbers of a state, if that can be."""
    return max(least, min(MOST_WARPS, power_of_two(-(-numbers // (WARP * NUMBERS)))))


def _columns(most: int, all_of_them: int) -> int:
    """Columns of a state: a power of two, as many as are wanted but no fewer than a product takes."""
    return max(MATRIX_UNIT, min(all_of_them, power_of_two(most + 1) // 2))
