"""Features of a second-order Taylor map, and their gradients, by exchange of columns among lanes.

A warpgroup's product reads its left operand from registers, where lane l of a warp holds the columns
2 (l mod 4), 2 (l mod 4) + 1 and those plus 8 of two rows.  So the tile x[:, c ^ r] is, for every r below 16,
a move between registers or among four neighbouring lanes, and r = 0, ..., 15 pair every column with every
other.  A pair comes up twice, from either side; as r and r + 1 (r even) share their highest bit b, a tile
takes r where bit b of c is 0 and r + 1 where it is 1, and so has each pair once.

=================  =====================================================================================
column f of        holds, with c = f mod 16,
=================  =====================================================================================
`wide`, 128        x_c x_{c ^ r}: f < 16: r = 0; else r = 2 (f div 16), or one more where the bit is 1
`narrow`, f < 16   even f: x_f x_{f + 1}; f = 1: 1; other odd f: 0
`narrow`, f >= 16  x_{f - 16}
=================  =====================================================================================

160 columns for 153 features, made by 12 shuffles and 40 packed products in each thread for 64 rows.

The gradient of x takes the same ways back: what feature f owes to x_c stays where it is, and what it owes to
the partner goes there by the inverse exchange, summed beforehand over the features that go to the same lane.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .warpgroups import in_float32

# Elementwise on registers, two bfloat16 in each, as PTX has them; gradients are float32.


@gluon.constexpr_function
def _shuffle(distance):
    return f"shfl.sync.bfly.b32 $0, $1, {distance}, 0x1f, 0xffffffff;"


@gluon.jit
def exchanged(x, DISTANCE: gl.constexpr, PACK: gl.constexpr = 2):
    """x[:, c ^ 2 DISTANCE], of PACK elements in each register."""
    return gl.inline_asm_elementwise(_shuffle(DISTANCE), "=r,r", [x], dtype=x.dtype, is_pure=True, pack=PACK)


@gluon.constexpr_function
def _neighbour_where(bit):
    return f"""{{
        .reg .b32 lane, order;
        .reg .pred odd;
        mov.u32 lane, %laneid;
        and.b32 lane, lane, {bit};
        setp.ne.u32 odd, lane, 0;
        selp.b32 order, 0x1032, 0x3210, odd;
        prmt.b32 $0, $1, $1, order;
        }}"""


@gluon.jit
def partners_by_lane(y, BIT: gl.constexpr):
    """y_c where bit BIT of the lane is 0, and y_{c ^ 1} where it is 1."""
    return gl.inline_asm_elementwise(
        _neighbour_where(BIT), "=r,r", [y], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def partners_of_halves(y):
    """y_{c ^ 8} for c < 8, and y_{c ^ 9} for c >= 8."""
    return gl.inline_asm_elementwise(
        """{
        mov.b32 $0, $6;
        mov.b32 $1, $7;
        prmt.b32 $2, $4, $4, 0x1032;
        prmt.b32 $3, $5, $5, 0x1032;
        }""",
        "=&r,=&r,=&r,=&r,r,r,r,r",
        [y],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def product(x, y):
    """x_c y_c."""
    return gl.inline_asm_elementwise(
        "mul.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=gl.bfloat16, is_pure=True, pack=2
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
def four(a, b, c, d, LAYOUT: gl.constexpr):
    """Four tiles beside each other."""
    return beside(beside(a, b, LAYOUT), beside(c, d, LAYOUT), LAYOUT)


@gluon.jit
def left_of_wide(x, LAYOUT: gl.constexpr):
    """The first 64 columns of `wide`."""
    x_1 = exchanged(x, 1)
    x_2 = exchanged(x, 2)
    x_3 = exchanged(x, 3)
    return beside(
        beside(product(x, x), product(x, partners_by_lane(x_1, 1)), LAYOUT),
        beside(product(x, partners_by_lane(x_2, 2)), product(x, partners_by_lane(x_3, 2)), LAYOUT),
        LAYOUT,
    )


@gluon.jit
def right_of_wide(x, LAYOUT: gl.constexpr):
    """The other 64."""
    x_1 = exchanged(x, 1)
    x_2 = exchanged(x, 2)
    x_3 = exchanged(x, 3)
    return beside(
        beside(product(x, partners_of_halves(x)), product(x, partners_of_halves(x_1)), LAYOUT),
        beside(product(x, partners_of_halves(x_2)), product(x, partners_of_halves(x_3)), LAYOUT),
        LAYOUT,
    )


@gluon.jit
def wide_features(x, LAYOUT: gl.constexpr):
    """`wide` by exchange; x is a left operand in registers."""
    return beside(left_of_wide(x, LAYOUT), right_of_wide(x, LAYOUT), LAYOUT)


@gluon.jit
def narrow_features(x, LAYOUT: gl.constexpr):
    """`narrow` likewise."""
    return beside(neighbours_and_constant(x), x, LAYOUT)


@gluon.jit
def features(x, LAYOUT: gl.constexpr):
    """Φ(x), without weights: both."""
    return wide_features(x, LAYOUT), narrow_features(x, LAYOUT)


# The way back.


@gluon.jit
def halves(x, LAYOUT: gl.constexpr):
    """The left and the right half of the columns; in a product's layout that moves nothing."""
    apart = gl.permute(gl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1))
    left, right = gl.split(apart)
    return gl.convert_layout(left, LAYOUT, assert_trivial=True), gl.convert_layout(
        right, LAYOUT, assert_trivial=True
    )


@gluon.jit
def neighbours(x, LAYOUT: gl.constexpr):
    """x_{c ^ 1}."""
    even, odd = gl.split(gl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    return gl.convert_layout(gl.reshape(gl.join(odd, even), x.shape), LAYOUT, assert_trivial=True)


@gluon.jit
def back_by_lane(x, BIT: gl.constexpr, LAYOUT: gl.constexpr):
    """What `partners_by_lane` took from its place, put there."""
    c = gl.arange(0, x.shape[1], gl.SliceLayout(0, LAYOUT))
    return gl.where((c & (2 * BIT) != 0)[None, :], neighbours(x, LAYOUT), x)


@gluon.jit
def back_of_halves(x, LAYOUT: gl.constexpr):
    """What `partners_of_halves` took from its place, put there."""
    left, _ = gl.split(gl.permute(gl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))
    swapped = neighbours(x, LAYOUT)
    _, right = gl.split(gl.permute(gl.reshape(swapped, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))
    both = gl.reshape(gl.permute(gl.join(right, left), (0, 2, 1)), x.shape)
    return gl.convert_layout(both, LAYOUT, assert_trivial=True)


@gluon.jit
def wider(x, LAYOUT: gl.constexpr):
    """x in float32, in a product's layout."""
    return gl.convert_layout(in_float32(x), LAYOUT, assert_trivial=True)


@gluon.jit
def features_back(lower, narrow, x, LAYOUT: gl.constexpr, PAIR: gl.constexpr):
    """The gradient of x from those of `narrow` and of the left half of `wide`, as the four parts of a sum.

    The first is where it belongs, the others go to the lanes 1, 2 and 3 away.  LAYOUT is that of a product of
    16 columns, PAIR that of one of 32.
    """
    plain = wider(x, LAYOUT)
    left, right = halves(lower, PAIR)
    d, d_1 = halves(left, LAYOUT)
    d_2, d_3 = halves(right, LAYOUT)
    here = 2.0 * d * plain
    here += d_1 * wider(partners_by_lane(exchanged(x, 1), 1), LAYOUT)
    here += d_2 * wider(partners_by_lane(exchanged(x, 2), 2), LAYOUT)
    here += d_3 * wider(partners_by_lane(exchanged(x, 3), 2), LAYOUT)
    there_1 = back_by_lane(d_1 * plain, 1, LAYOUT)
    there_2 = back_by_lane(d_2 * plain, 2, LAYOUT)
    there_3 = back_by_lane(d_3 * plain, 2, LAYOUT)
    beside_each_other, single = halves(narrow, LAYOUT)
    c = gl.arange(0, 16, gl.SliceLayout(0, LAYOUT))
    of_pair = gl.where((c % 2 == 0)[None, :], beside_each_other, neighbours(beside_each_other, LAYOUT))
    return here + single + of_pair * neighbours(plain, LAYOUT), there_1, there_2, there_3


@gluon.jit
def features_back_rest(upper, x, parts, LAYOUT: gl.constexpr, PAIR: gl.constexpr):
    """The whole gradient of x, from that of the right half of `wide` and what `features_back` found."""
    here, there_1, there_2, there_3 = parts
    plain = wider(x, LAYOUT)
    left, right = halves(upper, PAIR)
    d, d_1 = halves(left, LAYOUT)
    d_2, d_3 = halves(right, LAYOUT)
    here += d * wider(partners_of_halves(x), LAYOUT) + back_of_halves(d * plain, LAYOUT)
    here += d_1 * wider(partners_of_halves(exchanged(x, 1)), LAYOUT)
    here += d_2 * wider(partners_of_halves(exchanged(x, 2)), LAYOUT)
    here += d_3 * wider(partners_of_halves(exchanged(x, 3)), LAYOUT)
    there_1 += back_of_halves(d_1 * plain, LAYOUT)
    there_2 += back_of_halves(d_2 * plain, LAYOUT)
    there_3 += back_of_halves(d_3 * plain, LAYOUT)
    return here + exchanged(there_1, 1, 1) + exchanged(there_2, 2, 1) + exchanged(there_3, 3, 1)


# Where a column's sums stand in the state that users see (`Rotations` in codegen/lower/monomials.py): first
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
def rows_of_wide(f, D: gl.constexpr, FIRST: gl.constexpr = 0):
    """The state's rows of the columns f of `wide`, made of the 16 columns from FIRST on."""
    c = f % 16
    tile = f // 16
    bit = gl.where(tile < 2, c // 2, gl.where(tile < 4, c // 4, c // 8)) % 2
    return row_of_pair(FIRST + c, FIRST + (c ^ gl.where(tile == 0, 0, 2 * tile + bit)), D)


@gluon.jit
def rows_of_narrow(f, D: gl.constexpr, FIRST: gl.constexpr = 0):
    """The state's rows of the columns f of `narrow`; the constant's is there once."""
    PRODUCTS: gl.constexpr = D * (D + 1) // 2
    NONE: gl.constexpr = PRODUCTS + D + 1
    CONSTANT: gl.constexpr = NONE - 1 if FIRST == 0 else NONE
    c = FIRST + f % 16
    neighbours = gl.where(f % 2 == 0, row_of_pair(c, c ^ 1, D), gl.where(f == 1, CONSTANT, NONE))
    return gl.where(f < 16, neighbours, gl.where(c < D, PRODUCTS + c, NONE))


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
