"""Features of 17 to 32 columns: those of two halves, and the products of one half with the other.

A tile of 32 columns is two left operands of 16, `low` and `high`, each of which holds in one lane what
`exchange.py` says.  Products within a half are made there.  Those of both halves are low_c high_{c ^ r}, for
every r below 16: a move between registers or among lanes each, and nothing comes twice.  Where there are no
more than 24 columns, `high` has eight, held twice, and r goes to 8.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .exchange import exchanged, four, neighbours_and_constant, product, row_of_pair, rows_of_narrow


@gluon.jit
def swapped(x):
    """x_{c ^ 1}."""
    return gl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $1, 0x1032;", "=r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def flipped(x):
    """x_{c ^ 8}."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $6; mov.b32 $1, $7; mov.b32 $2, $4; mov.b32 $3, $5;",
        "=&r,=&r,=&r,=&r,r,r,r,r",
        [x],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def doubled(x):
    """x_{c mod 8}."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $4; mov.b32 $1, $5; mov.b32 $2, $4; mov.b32 $3, $5;",
        "=&r,=&r,=&r,=&r,r,r,r,r",
        [x],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def crossed(low, high, R: gl.constexpr, LAYOUT: gl.constexpr):
    """low_c high_{c ^ r} for r = R, ..., R + 3; R is a multiple of four."""
    if R >= 8:
        high = flipped(high)
    DISTANCE: gl.constexpr = R % 8 // 2
    x = high
    if DISTANCE > 0:
        x = exchanged(high, DISTANCE)
    y = exchanged(high, DISTANCE + 1)
    return four(product(low, x), product(low, swapped(x)), product(low, y), product(low, swapped(y)), LAYOUT)


@gluon.jit
def singles(low, high, LAYOUT: gl.constexpr):
    """`narrow` of both halves."""
    return four(neighbours_and_constant(low), low, neighbours_and_constant(high), high, LAYOUT)


@gluon.jit
def rows_of_crossed(f, D: gl.constexpr):
    """The state's rows of the columns f of `crossed`, for r = 0, 1, ..."""
    c = f % 16
    return row_of_pair(c, 16 + (c ^ f // 16) % (D - 16), D)


@gluon.jit
def rows_of_singles(f, D: gl.constexpr):
    """The state's rows of the columns f of `singles`."""
    return gl.where(f < 32, rows_of_narrow(f, D), rows_of_narrow(f - 32, D, 16))
