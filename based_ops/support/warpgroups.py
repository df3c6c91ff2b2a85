"""What generated Gluon kernels for Hopper's warpgroups are made of: waits, and rows of tokens.

Gluon is Triton with the layouts in the programmer's hands: which thread holds which element, what is copied
and multiplied in the background, and when to wait.  Features are made in `exchange.py`, the normaliser in
`quadratic.py`.
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
FURTHEST = 2**31 // 128 - 1
"""Elements from one token to the next, of 128 in a tile, that 32 bits can hold."""
WIDEST = 256
"""Elements of a head's row."""
LOG2_E = gl.constexpr(math.log2(math.e))

_INTERPRETED = triton.knobs.runtime.interpret
_HAS_BARRIER = gl.constexpr(hasattr(gl, "barrier"))  # Triton 3.7; before, `thread_barrier`


def on_warpgroups(*tensors: Tensor) -> bool:
    """Whether inputs [B,T,H,D] suit kernels for warpgroups.

    They do on a Hopper GPU, where all rows lie at multiples of 16 bytes, and a tile's so close to each other
    that 32 bits hold the way between them.
    """
    first = tensors[0]
    if _INTERPRETED or not first.is_cuda or not _is_hopper(first.get_device()):
        return False
    if first.shape[2] * WIDEST > FURTHEST:  # results are dense, whatever the inputs are
        return False
    unit = VECTOR.value // first.element_size()
    return not any(x.data_ptr() % VECTOR.value or not _suit(x.stride(), unit) for x in tensors)


@functools.lru_cache(maxsize=4096)
def _suit(strides: tuple[int, ...], unit: int) -> bool:
    return math.gcd(*strides[:-1]) % unit == 0 and strides[1] <= FURTHEST


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


@gluon.jit
def afresh(x, PACK: gl.constexpr = 1):
    """x, hidden from the compiler: what follows from it is calculated there, and not kept from earlier.

    PACK elements are in each register.
    """
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK)


@gluon.jit
def rounded(x):
    """x in bfloat16."""
    return gl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def in_float32(x):
    """x in float32.

    ptxas keeps pairs of bfloat16 apart that it has seen taken apart, and joins them again for every use; of
    these it sees nothing.
    """
    if x.dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=&r,=r,r",
            [x],
            dtype=gl.float32,
            is_pure=True,
            pack=2,
        )
    return x.to(gl.float32)


@gluon.jit
def exponential(x):
    """eˣ, and 0 where that is subnormal: for the sake of those, `gl.exp` takes five instructions, not two."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=r,r", [x * LOG2_E], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def where_bits(x, bits):
    """x where all bits are ones, and 0 where all are zeros; x in bfloat16, `bits` in int16."""
    return gl.inline_asm_elementwise(
        "and.b32 $0, $1, $2;", "=r,r,r", [x, bits], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def in_bfloat16(tile, LEFT: gl.constexpr):
    """A shared tile of float16 rounded to bfloat16 in its place, and the same as a left operand."""
    x = rounded(tile.load(LEFT).to(gl.float32))
    same = as_dtype(tile, gl.bfloat16)
    same.store(x)  # where each warp has read
    return same, x


@gluon.jit
def as_dtype(tile, DTYPE: gl.constexpr):
    """A shared tile's memory for numbers of another dtype, of as many bytes."""
    return tile._reinterpret(DTYPE, tile.shape, tile.layout)


@gluon.jit
def multiplied_alone(x, y, onto):
    """`onto` with the product of x and y, on instructions of single warps; all of it is there at once."""
    return mma_v2(x, y, onto)


# Tiles of rows on their way from and to global memory.  Where a row begins is calculated each time: kept for
# every tile, it takes more registers than there are.


@gluon.jit
def _rows(tile, rows, t0, stride, LAYOUT: gl.constexpr):
    """A shared tile's tokens and columns, and where those of the tokens t0, ... lie."""
    t = afresh(gl.arange(0, tile.shape[0], gl.SliceLayout(1, LAYOUT)))
    c = gl.arange(0, tile.shape[1], gl.SliceLayout(0, LAYOUT))
    pointers = rows + gl.cast(t0, gl.int64) * stride + (t[:, None] * stride + c[None, :])
    # `on_warpgroups` has seen to that; of strides that are 8 times an odd number Triton knows nothing.
    return t, c, gl.multiple_of(pointers, (1, VECTOR))


@gluon.jit
def fetch(tile, rows, t0, stride, stop, columns, LAYOUT: gl.constexpr):
    """Copy the tokens t0, ... into a shared tile, in the background; 0 for those from `stop` on."""
    t, c, pointers = _rows(tile, rows, t0, stride, LAYOUT)
    inside = (t < stop - t0)[:, None] & (c < columns)[None, :]
    async_copy.async_copy_global_to_shared(tile, pointers, mask=inside)


@gluon.jit
def fetch_existing(tile, rows, t0, stride, first, columns, LAYOUT: gl.constexpr):
    """The same; 0 for those before `first`."""
    t, c, pointers = _rows(tile, rows, t0, stride, LAYOUT)
    inside = (t >= first - t0)[:, None] & (c < columns)[None, :]
    async_copy.async_copy_global_to_shared(tile, pointers, mask=inside)


@gluon.jit
def fetch_numbers(tile, numbers, t0, stop, LAYOUT: gl.constexpr):
    """The same for one number a token, side by side."""
    t = gl.arange(0, tile.shape[0], LAYOUT)
    async_copy.async_copy_global_to_shared(tile, numbers + t0 + t, mask=t < stop - t0)


@gluon.jit
def fetch_apart(tile, numbers, t0, stride, stop, LAYOUT: gl.constexpr):
    """The same for numbers that lie `stride` apart; 0 for those from `stop` on."""
    t = gl.arange(0, tile.shape[0], LAYOUT)
    pointers = numbers + gl.cast(t0, gl.int64) * stride + t * stride
    async_copy.async_copy_global_to_shared(tile, pointers, mask=t < stop - t0)


@gluon.jit
def running_sum(x):
    """The sums of a vector's elements up to each of them."""
    return gl.associative_scan(x, 0, _plus)


@gluon.jit
def _plus(x, y):
    return x + y


@gluon.jit
def read(tile, rows, t0, stride, stop, columns, LAYOUT: gl.constexpr):
    """The tokens t0, ... in registers, as many as a shared tile has; 0 for those from `stop` on."""
    t, c, pointers = _rows(tile, rows, t0, stride, LAYOUT)
    inside = (t < stop - t0)[:, None] & (c < columns)[None, :]
    return gl.load(pointers, mask=inside, other=0.0)


@gluon.jit
def write(tile, rows, t0, stride, stop, columns, LAYOUT: gl.constexpr):
    """Write a shared tile to the tokens t0, ...; nothing to those from `stop` on."""
    t, c, pointers = _rows(tile, rows, t0, stride, LAYOUT)
    inside = (t < stop - t0)[:, None] & (c < columns)[None, :]
    gl.store(pointers, tile.load(LAYOUT), mask=inside)
