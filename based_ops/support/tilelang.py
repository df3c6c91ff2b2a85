"""What generated TileLang modules for CUDA need besides TileLang.

A generated kernel is a function of its tile sizes that returns a TileLang ``prim_func``.  `kernel` makes it
callable: ``states(k, v, ..., **settings)`` compiles it on first use, for these settings, and launches it on
the current stream.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TILELANG_PRINT_ON_COMPILATION", "0")  # read at import

import tilelang  # noqa: E402
import tilelang.language as tl  # noqa: E402
import torch  # noqa: E402
from torch import Tensor

# Two layers may share a kernel; TileLang advises against compiling what it finds in its cache.
logging.getLogger("tilelang.cache.kernel_cache").setLevel(logging.ERROR)

PASSES = {"tl.disable_warp_specialized": True, "tl.disable_tma_lower": True}
"""Tiles are moved by ordinary loads, because inputs may have any strides, and by all warps alike."""

VECTOR = 16
"""Bytes that one thread moves at once where addresses allow it."""


def tensor(dims: Sequence[Any], dtype: str, present: bool = True) -> Any:
    """The type of a tensor parameter: any strides but a dense last dimension, 64-bit offsets.

    A tensor that is not `present` is a placeholder of one element, whatever the call passes.
    """
    if not present:
        return tl.Tensor((1,) * len(dims), dtype)
    strides = [tl.dynamic("stride", "int64") for _ in dims[:-1]]
    return tl.StridedTensor(tuple(dims), (*strides, 1), dtype)


def aligned(on: bool, *tensors: Any) -> None:
    """Tell the compiler, where it is true, that the rows of these tensors start at multiples of 16 bytes."""
    if on:
        for buffer in tensors:
            for stride in buffer.strides[:-1] if _is_present(buffer) else ():
                tl.evaluate(tl.assume(stride % (VECTOR * 8 // tl.dtype(buffer.dtype).bits) == 0))


def coordinates(program: Any, grid: Sequence[Any]) -> tuple[Any, ...]:
    """The position of a program in a grid that is counted with the last axis fastest."""
    result = []
    for extent in reversed(grid[1:]):
        result.append(tl.alloc_var("int32", init=tl.truncmod(program, extent)))
        program = tl.truncdiv(program, extent)
    return (tl.alloc_var("int32", init=program), *reversed(result))


def slot_of(on: bool, indices: Any, entry: Any, slots: Any) -> tuple[Any, Any]:
    """Where in a pool an entry of the batch is, and whether it has a slot; if not `on`, it is its own."""
    if not on:
        return entry, True
    slot = tl.alloc_var("int32", init=indices[entry])
    return slot, tl.And(slot[0] >= 0, slot[0] < slots)


def head_of(grouped: bool, head: Any, own: Any, heads: Any, every: Any = None, member: Any = 0) -> Any:
    """Which of the `heads` heads of a tensor goes with a program's: see `Head` in `codegen/ir/nodes.py`."""
    if not grouped:
        return head
    if every is None:
        return tl.truncdiv(head, tl.truncdiv(own, heads))
    return tl.truncdiv(head * tl.truncdiv(every, own) + member, tl.truncdiv(every, heads))


def ahead(rounds: int, *bounds: Any) -> Any:
    """``tl.serial`` for a loop whose rounds may load before earlier ones store.

    nvcc writes out so many rounds, and takes their loads together, since no buffers overlap.
    """
    return tl.unroll(*bounds, annotations={"pragma_unroll_factor": rounds})


def gathering(*extents: Any) -> Any:
    """``tl.Parallel`` for a loop that gathers from a shared tile: one element at a time, no vectors.

    TileLang 0.1.15 moves the loads of a vector in front of the condition that keeps them inside the tile.
    """
    return tl.Parallel(*extents, coalesced_width=tl.int32(1))


@tl.macro
def dot(x, y, acc, transpose_x=False, transpose_y=False, clear=False):  # type: ignore[no-untyped-def]
    """Add the matrix product of two shared tiles to `acc`, or set `acc` to it.

    The matrix units would round float32 operands to 10 bits, so their products are taken one by one.
    """
    if x.dtype == "float32":
        if clear:
            tl.clear(acc)
        for k in tl.serial(x.shape[0] if transpose_x else x.shape[1]):
            for i, j in tl.Parallel(acc.shape[0], acc.shape[1]):
                acc[i, j] += (x[k, i] if transpose_x else x[i, k]) * (y[j, k] if transpose_y else y[k, j])
    else:
        tl.gemm(x, y, acc, transpose_A=transpose_x, transpose_B=transpose_y, clear_accum=clear)


@tl.macro
def running_sum(x, out):  # type: ignore[no-untyped-def]
    """Set `out` to the sums of a shared vector up to each of its elements."""
    tl.cumsum(x, out, dim=0)


def dithered(x: Any, dtype: str, token: Any, value: Any, place: Any) -> Any:
    """x in float32, rounded to `dtype` at random: see `Dithered` in `codegen/ir/nodes.py`.

    What is added to the bits that are cut off carries into those that stay as often as it should.  NaN stays.
    """

    def bits(x: Any) -> Any:
        return tl.reinterpret(x, "uint32")

    def mixed(x: Any) -> Any:
        x = (x ^ (x >> number(16))) * number(0x7FEB352D)
        x = (x ^ (x >> number(15))) * number(0x846CA68B)
        return x ^ (x >> number(16))

    def number(value: int) -> Any:
        return tl.uint32(value)

    chance = mixed(mixed(bits(token) ^ number(0x2545F491)) ^ bits(value))
    chance = chance + tl.cast(place, "uint32") * number(0x9E3779B9)
    cut = 16 if dtype == "bfloat16" else 13
    rounded = (bits(x) + (chance >> number(32 - cut))) >> number(cut) << number(cut)
    # By its bits: TVM takes x == x for true.
    number_or_infinite = (bits(x) & number(0x7FFFFFFF)) <= number(0x7F800000)
    return tl.if_then_else(number_or_infinite, tl.reinterpret(rounded, "float32"), x)


@dataclass(frozen=True)
class Parameters:
    """What a launch has to know of a ``prim_func``'s parameters, by position."""

    absent: dict[int, tuple[int, torch.dtype]]
    """Tensors that are not there: rank and dtype of their placeholders."""
    stored: tuple[int, ...]
    """Tensors that the kernel writes."""

    @staticmethod
    def of(function: Any, stores: Sequence[str]) -> Parameters:
        absent, stored = {}, []
        for i, parameter in enumerate(function.params):
            buffer = function.buffer_map.get(parameter)
            if buffer is None:
                continue
            if not _is_present(buffer):
                absent[i] = len(buffer.shape), getattr(torch, str(buffer.dtype))
            elif buffer.name in stores:
                stored.append(i)
        return Parameters(absent, tuple(stored))

    def nothing_to_do(self, arguments: Sequence[Any]) -> bool:
        """Whether every tensor to be written is empty; then the grid is, and may not be launched."""
        return all(arguments[i].numel() == 0 for i in self.stored)


class Kernel:
    """A kernel of a generated module, compiled once for each combination of its settings."""

    def __init__(self, factory: Callable[..., Any], stores: Sequence[str]) -> None:
        self.factory, self.stores = factory, tuple(stores)
        self.__name__, self.__doc__ = factory.__name__, factory.__doc__
        self._compiled: dict[tuple[Any, ...], tuple[Callable[..., None], Parameters]] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Tensor | float | None, **settings: Any) -> None:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        device = tensors[0].device
        with_vectors = all(map(_aligned, tensors))
        compiled, known = self._get((with_vectors, *settings.values()), {"ALIGNED": with_vectors, **settings})
        if known.nothing_to_do(arguments):
            return
        absent = known.absent
        passed = [_placeholder(absent[i], device) if i in absent else x for i, x in enumerate(arguments)]
        if device.index == torch.cuda.current_device():
            compiled(*passed)
        else:
            with torch.cuda.device(device):
                compiled(*passed)

    def _get(self, key: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Callable[..., None], Parameters]:
        found = self._compiled.get(key)
        if found is None:
            with self._lock:
                if key not in self._compiled:
                    function = self.factory(**settings)
                    compiled = tilelang.compile(function, target="cuda", pass_configs=PASSES)
                    self._compiled[key] = compiled, Parameters.of(function, self.stores)
                found = self._compiled[key]
        return found


def kernel(stores: Sequence[str]) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a kernel of a function of its settings; `stores` names the tensors that it writes."""
    return functools.partial(Kernel, stores=stores)


def _is_present(buffer: Any) -> bool:
    return any(getattr(extent, "value", None) != 1 for extent in buffer.shape)


@functools.cache
def _placeholder(kind: tuple[int, torch.dtype], device: torch.device) -> Tensor:
    rank, dtype = kind
    return torch.empty((1,) * rank, dtype=dtype, device=device)


def _aligned(x: Tensor) -> bool:
    """Whether every row of the tensor starts at a multiple of 16 bytes, if `aligned` may ask for it."""
    if x.dim() == 0 or x.shape[-1] % 8:
        return True
    unit = VECTOR // x.element_size()
    return x.data_ptr() % VECTOR == 0 and math.gcd(*x.stride()[:-1]) % unit == 0
