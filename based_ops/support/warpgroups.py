"""What generated Gluon kernels for Hopper's warpgroups are made of.

Gluon is Triton with the layouts in the programmer's hands: which thread holds which element, what is copied
and multiplied in the background, and when to wait.

*The features of a second-order Taylor map by exchange.*  A warpgroup's product reads its left operand from
registers, where lane l of a warp holds the columns 2 (l mod 4), 2 (l mod 4) + 1 and those plus 8 of two
rows.  So the tile x[:, c ^ r] is, for every r below 16, a move between registers or among four neighbouring
lanes, and r = 0, ..., 15 pair every column with every other.  A pair comes up twice, from either side; as
r and r + 1 (r even) share their highest bit b, a tile takes r where bit b of c is 0 and r + 1 where it is 1,
and so has each pair once.

=================  =====================================================================================
column f of        holds, with c = f mod 16,
=================  =====================================================================================
`wide`, 128        x_c x_{c ^ r}: f < 16: r = 0; else r = 2 (f div 16), or one more where the bit is 1
`narrow`, f < 16   even f: x_f x_{f + 1}; f = 1: 1; other odd f: 0
`narrow`, f >= 16  x_{f - 16}
=================  =====================================================================================

160 columns for 153 features, made by 12 shuffles and 40 packed products in each thread for 64 rows.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mma_v2

VECTOR = gl.constexpr(16)
"""Bytes that one asynchronous copy moves."""

_INTERPRETED = triton.knobs.runtime.interpret
_HAS_BARRIER = gl.constexpr(hasattr(gl, "barrier"))  # Triton 3.7; before, `thread_barrier`


def on_warpgroups(*tensors: Tensor) -> bool:
    """Whether inputs suit kernels for warpgroups: on a Hopper GPU, all rows at multiples of 16 bytes."""
    first = tensors[0]
    if _INTERPRETED or not first.is_cuda or not _is_hopper(first.get_device()):
        return False
    unit = VECTOR.value // first.element_size()
    return not any(x.data_ptr() % VECTOR.value or math.gcd(*x.stride()[:-1]) % unit for x in tensors)


@functools.cache
def _is_hopper(device: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


@gluon.jit
def barrier():
    """Wait for all threads of the block."""
    if _HAS_BARRIER:
        gl.barrier()
    else:
        gl.thread_barrier()


# Elementwise on registers: two bfloat16 in each, as PTX has them.


@gluon.jit
def rounded(x):
    """x in bfloat16."""
    return gl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.constexpr_function
def _shuffle(distance):
    return f"shfl.sync.bfly.b32 $0, $1, {distance}, 0x1f, 0xffffffff;"


@gluon.jit
def exchanged(x, DISTANCE: gl.constexpr):
    """x[:, c ^ 2 DISTANCE]."""
    return gl.inline_asm_elementwise(_shuffle(DISTANCE), "=r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2)


@gluon.constexpr_function
def _times_neighbour_where(bit):
    return f"""{{
        .reg .b32 lane, order, swapped;
        .reg .pred odd;
        mov.u32 lane, %laneid;
        and.b32 lane, lane, {bit};
        setp.ne.u32 odd, lane, 0;
        selp.b32 order, 0x1032, 0x3210, odd;
        prmt.b32 swapped, $2, $2, order;
        mul.bf16x2 $0, $1, swapped;
        }}"""


@gluon.jit
def pairs_by_lane(x, y, BIT: gl.constexpr):
    """x_c y_c where bit BIT of the lane is 0, and x_c y_{c ^ 1} where it is 1."""
    return gl.inline_asm_elementwise(
        _times_neighbour_where(BIT), "=r,r,r", [x, y], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def squares(x):
    """x_c²."""
    return gl.inline_asm_elementwise(
        "mul.bf16x2 $0, $1, $1;", "=r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def pairs_of_halves(x, y):
    """x_c y_{c ^ 8} for c < 8, and x_c y_{c ^ 9} for c >= 8."""
    return gl.inline_asm_elementwise(
        """{
        .reg .b32 first, second;
        prmt.b32 first, $8, $8, 0x1032;
        prmt.b32 second, $9, $9, 0x1032;
        mul.bf16x2 $0, $4, $10;
        mul.bf16x2 $1, $5, $11;
        mul.bf16x2 $2, $6, first;
        mul.bf16x2 $3, $7, second;
        }""",
        "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r",
        [x, y],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def neighbours_and_constant(x):
    """x_c x_{c + 1} for even c, 1 for c = 1, and 0 for other odd c."""
    return gl.inline_asm_elementwise(
        """{
        .reg .b32 lane, one, swapped, product;
        .reg .pred first;
        mov.u32 lane, %laneid;
        and.b32 lane, lane, 3;
        setp.eq.u32 first, lane, 0;
        selp.b32 one, 0x3f80, 0, first;
        prmt.b32 swapped, $4, $4, 0x1032;
        mul.bf16x2 product, swapped, $4;
        prmt.b32 $0, product, one, 0x5410;
        prmt.b32 swapped, $5, $5, 0x1032;
        mul.bf16x2 product, swapped, $5;
        prmt.b32 $1, product, one, 0x5410;
        prmt.b32 swapped, $6, $6, 0x1032;
        mul.bf16x2 product, swapped, $6;
        and.b32 $2, product, 0xffff;
        prmt.b32 swapped, $7, $7, 0x1032;
        mul.bf16x2 product, swapped, $7;
        and.b32 $3, product, 0xffff;
        }""",
        "=&r,=&r,=&r,=&r,r,r,r,r",
        [x],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def beside(x, y, LAYOUT: gl.constexpr):
    """The columns of x, then those of y; in an operand's layout that moves nothing."""
    joined = gl.reshape(gl.permute(gl.join(x, y), (0, 2, 1)), [x.shape[0], 2 * x.shape[1]])
    return gl.convert_layout(joined, LAYOUT, assert_trivial=True)


@gluon.jit
def features(x, LAYOUT: gl.constexpr):
    """Φ(x) by exchange, without weights: `wide` and `narrow`; x is a left operand in registers."""
    x_1 = exchanged(x, 1)
    x_2 = exchanged(x, 2)
    x_3 = exchanged(x, 3)
    by_lane = beside(
        beside(squares(x), pairs_by_lane(x, x_1, 1), LAYOUT),
        beside(pairs_by_lane(x, x_2, 2), pairs_by_lane(x, x_3, 2), LAYOUT),
        LAYOUT,
    )
    of_halves = beside(
        beside(pairs_of_halves(x, x), pairs_of_halves(x, x_1), LAYOUT),
        beside(pairs_of_halves(x, x_2), pairs_of_halves(x, x_3), LAYOUT),
        LAYOUT,
    )
    return beside(by_lane, of_halves, LAYOUT), beside(neighbours_and_constant(x), x, LAYOUT)


# Where a column's sums stand in the state that users see (`Taylor` in codegen/lower/feature_maps.py): first
# the products of D columns by rotation, then the columns, then the constant.  Columns of x past D are 0, and
# their sums stand nowhere.


@gluon.jit
def row_of_pair(a, c, D: gl.constexpr):
    """The state's row of x_a x_c; a row past the last where there is none."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    rotation = (c - a + D) % D
    forward = rotation * D + a
    row = gl.where(forward < PRODUCTS, forward, (D - rotation) % D * D + c)
    return gl.where((a < D) & (c < D), row, PRODUCTS + D + 1)


@gluon.jit
def rows_of_wide(f, D: gl.constexpr):
    """The state's rows of the columns f of `wide`."""
    c = f % 16
    tile = f // 16
    bit = gl.where(tile < 2, c // 2, gl.where(tile < 4, c // 4, c // 8)) % 2
    return row_of_pair(c, c ^ gl.where(tile == 0, 0, 2 * tile + bit), D)


@gluon.jit
def rows_of_narrow(f, D: gl.constexpr):
    """The state's rows of the columns f of `narrow`."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    NONE: gl.constexpr = PRODUCTS + D + 1
    neighbours = gl.where(f % 2 == 0, row_of_pair(f % 16, f % 16 ^ 1, D), gl.where(f == 1, NONE - 1, NONE))
    return gl.where(f < 16, neighbours, gl.where(f < 16 + D, PRODUCTS + f - 16, NONE))


@gluon.jit
def afresh(x):
    """x, hidden from the compiler: what follows from it is calculated there, and not kept from earlier."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1)


@gluon.jit
def load_state(state, rows, u, ROWS: gl.constexpr, VALUES: gl.constexpr):
    """A block of a stored state, transposed: [u, rows]; 0 outside of it."""
    inside = (rows < ROWS)[None, :] & (u < VALUES)[:, None]
    return gl.load(state + (rows[None, :] * VALUES + u[:, None]), mask=inside, other=0.0).to(gl.float32)


@gluon.jit
def store_state(state, rows, u, ROWS: gl.constexpr, VALUES: gl.constexpr, block):
    """The same the other way."""
    inside = (rows < ROWS)[None, :] & (u < VALUES)[:, None]
    gl.store(state + (rows[None, :] * VALUES + u[:, None]), block, mask=inside)


# The normaliser of older keys as a quadratic form, n = count + z·q + qᵀ Z q / 2: Z = Σ k kᵀ and z = Σ k stay
# in registers, the same in every warp, z in every row of a tile.


@gluon.jit
def load_sums(normalizer, D: gl.constexpr, PAIRS: gl.constexpr):
    """Z, z and the count from a stored normaliser."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    a = gl.arange(0, 16, gl.SliceLayout(1, PAIRS))[:, None]
    c = gl.arange(0, 16, gl.SliceLayout(0, PAIRS))[None, :]
    t = gl.arange(0, 64, gl.SliceLayout(1, PAIRS))[:, None]
    Z = gl.load(normalizer + row_of_pair(a, c, D), mask=(a < D) & (c < D), other=0.0)
    z = gl.load(normalizer + (PRODUCTS + c + 0 * t), mask=(c < D) & (t >= 0), other=0.0)
    return Z.to(gl.float32), z.to(gl.float32), gl.load(normalizer + PRODUCTS + D).to(gl.float32)


@gluon.jit
def store_sums(normalizer, Z, z, count, D: gl.constexpr, PAIRS: gl.constexpr):
    """The same the other way."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    a = afresh(gl.arange(0, 16, gl.SliceLayout(1, PAIRS)))[:, None]
    c = afresh(gl.arange(0, 16, gl.SliceLayout(0, PAIRS)))[None, :]
    t = gl.arange(0, 64, gl.SliceLayout(1, PAIRS))[:, None]
    gl.store(normalizer + row_of_pair(a, c, D), Z, mask=(a <= c) & (c < D))
    gl.store(normalizer + (PRODUCTS + c + 0 * t), z, mask=(c < D) & (t < 1))
    gl.store(normalizer + PRODUCTS + D, count)


@gluon.jit
def quadratic_form(Q, Z, z, PAIRS: gl.constexpr):
    """z·q + qᵀ Z q / 2 of each row."""
    LEFT: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, PAIRS, 2)
    # Z is its own transpose, and that lies in registers as a right operand does.
    matrix = gl.convert_layout(gl.permute(Z.to(gl.bfloat16), (1, 0)), RIGHT)
    product = mma_v2(
        gl.convert_layout(Q, LEFT, assert_trivial=True), matrix, gl.full([64, 16], 0.0, gl.float32, PAIRS)
    )
    rows = gl.convert_layout(Q, PAIRS, assert_trivial=True).to(gl.float32)
    return gl.sum(rows * (product * 0.5 + z), 1)


@gluon.jit
def add_sums(keys, Z, z, PAIRS: gl.constexpr):
    """Z and z with the keys of a tile in shared memory."""
    LEFT: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, PAIRS, 2)
    columns = keys.load(RIGHT)
    ones = gl.full([64, 64], 1.0, gl.bfloat16, LEFT)
    return mma_v2(keys.permute((1, 0)).load(LEFT), columns, Z), mma_v2(ones, columns, z)


# Tiles of rows on their way from and to global memory.


@gluon.jit
def fetch(tile, rows, t0, stride, stop, columns, LAYOUT: gl.constexpr):
    """Copy the tokens t0, ... into a shared tile, in the background; 0 for those from `stop` on."""
    t = gl.arange(0, tile.shape[0], gl.SliceLayout(1, LAYOUT))
    c = gl.arange(0, tile.shape[1], gl.SliceLayout(0, LAYOUT))
    pointers = rows + gl.cast(t0, gl.int64) * stride + (t[:, None] * stride + c[None, :])
    inside = (t < stop - t0)[:, None] & (c < columns)[None, :]
    # `on_warpgroups` has seen to that; of strides that are 8 times an odd number Triton knows nothing.
    pointers = gl.multiple_of(pointers, (1, VECTOR))
    async_copy.async_copy_global_to_shared(tile, pointers, mask=inside)


@gluon.jit
def write(tile, rows, t0, stride, stop, columns, LAYOUT: gl.constexpr):
    """Write a shared tile to the tokens t0, ...; nothing to those from `stop` on."""
    t = gl.arange(0, tile.shape[0], gl.SliceLayout(1, LAYOUT))
    c = gl.arange(0, tile.shape[1], gl.SliceLayout(0, LAYOUT))
    pointers = rows + gl.cast(t0, gl.int64) * stride + (t[:, None] * stride + c[None, :])
    inside = (t < stop - t0)[:, None] & (c < columns)[None, :]
    gl.store(pointers, tile.load(LAYOUT), mask=inside)
