"""The normaliser of a second-order Taylor layer as a quadratic form: n = count + z·q + qᵀ Z q / 2.

Z = Σ k kᵀ and z = Σ k stay in registers, the same in every warp, z in every row of a tile.  Mirrored, for the
gradients of keys, they are Σ e q qᵀ and Σ e q, and the count Σ e.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from .exchange import row_of_pair
from .warpgroups import afresh, in_float32


@gluon.jit
def load_sums(
    normalizer,
    D: gl.constexpr,
    SQUARES: gl.constexpr,
    PAIRS: gl.constexpr,
    QK: gl.constexpr = 16,
    ROWS: gl.constexpr = 64,
):
    """Z, z in ROWS equal rows, and the count, from a stored normaliser in which squares weigh SQUARES."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    a = gl.arange(0, QK, gl.SliceLayout(1, PAIRS))[:, None]
    c = gl.arange(0, QK, gl.SliceLayout(0, PAIRS))[None, :]
    t = gl.arange(0, ROWS, gl.SliceLayout(1, PAIRS))[:, None]
    Z = gl.load(normalizer + row_of_pair(a, c, D), mask=(a < D) & (c < D), other=0.0).to(gl.float32)
    z = gl.load(normalizer + (PRODUCTS + c + 0 * t), mask=(c < D) & (t >= 0), other=0.0).to(gl.float32)
    Z = gl.where(a == c, Z / SQUARES, Z)
    return Z, z, gl.load(normalizer + PRODUCTS + D).to(gl.float32)


@gluon.jit
def store_sums(normalizer, Z, z, count, D: gl.constexpr, SQUARES: gl.constexpr, PAIRS: gl.constexpr):
    """The same the other way."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    a = afresh(gl.arange(0, Z.shape[0], gl.SliceLayout(1, PAIRS)))[:, None]
    c = afresh(gl.arange(0, Z.shape[0], gl.SliceLayout(0, PAIRS)))[None, :]
    t = gl.arange(0, z.shape[0], gl.SliceLayout(1, PAIRS))[:, None]
    gl.store(normalizer + row_of_pair(a, c, D), gl.where(a == c, Z * SQUARES, Z), mask=(a <= c) & (c < D))
    gl.store(normalizer + (PRODUCTS + c + 0 * t), z, mask=(c < D) & (t < 1))
    gl.store(normalizer + PRODUCTS + D, count)


@gluon.jit
def _times(x, Z, PAIRS: gl.constexpr):
    """x Z."""
    LEFT: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, PAIRS, 2)
    # Z is its own transpose, and that lies in registers as a right operand does.
    matrix = gl.convert_layout(gl.permute(Z.to(gl.bfloat16), (1, 0)), RIGHT)
    zeros = gl.full([64, 16], 0.0, gl.float32, PAIRS)
    return mma_v2(gl.convert_layout(x, LEFT, assert_trivial=True), matrix, zeros)


@gluon.jit
def quadratic_form(x, Z, z, PAIRS: gl.constexpr):
    """z·x + xᵀ Z x / 2 of each row."""
    rows = gl.convert_layout(in_float32(x), PAIRS, assert_trivial=True)
    return gl.sum(rows * (_times(x, Z, PAIRS) * 0.5 + z), 1)


@gluon.jit
def quadratic_form_back(x, Z, z, PAIRS: gl.constexpr):
    """Its gradient, z + Z x."""
    return _times(x, Z, PAIRS) + z


@gluon.jit
def _add(tile, columns, Z, z, PAIRS: gl.constexpr):
    LEFT: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    ones = gl.full([z.shape[0], tile.shape[0]], 1.0, gl.bfloat16, LEFT)
    return mma_v2(tile.permute((1, 0)).load(LEFT), columns, Z), mma_v2(ones, columns, z)


@gluon.jit
def add_sums(tile, Z, z, PAIRS: gl.constexpr):
    """Z and z with the rows of a tile in shared memory."""
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, PAIRS, 2)
    return _add(tile, tile.load(RIGHT), Z, z, PAIRS)


@gluon.jit
def add_weighted_sums(tile, factors, Z, z, PAIRS: gl.constexpr):
    """The same with a factor for each row."""
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, PAIRS, 2)
    rows = tile.load(RIGHT).to(gl.float32) * factors.load(gl.SliceLayout(1, RIGHT))[:, None]
    return _add(tile, rows.to(gl.bfloat16), Z, z, PAIRS)
