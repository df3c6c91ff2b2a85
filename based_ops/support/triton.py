"""What generated Triton modules need besides Triton: `launch`, the dtype of operands, plans of sequences."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import itemgetter
from threading import Lock, get_ident
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from based_ops.codegen.schedule.packed import CLEAR, PLAN

from .host import stream_plan


def operand(dtype: tl.dtype) -> tl.dtype:
    """The dtype in which a tile enters a matrix product.

    Triton's interpreter multiplies bfloat16 tiles as the integers that store them (3.7), so under it products
    are taken in float32; on a device the operands are what the schedule says.
    """
    return tl.float32 if triton.knobs.runtime.interpret else dtype


@triton.jit
def dithered(x, DTYPE: tl.constexpr, token, value, place):  # type: ignore[no-untyped-def]
    """x in float32, rounded to DTYPE at random: see `Dithered` in `codegen/ir/nodes.py`.

    What is added to the bits that are cut off carries into those that stay as often as it should.  NaN stays.
    """
    chance = _mixed(token.to(tl.uint32, bitcast=True) ^ 0x2545F491) ^ value.to(tl.uint32, bitcast=True)
    chance = _mixed(chance) + place.to(tl.uint32) * 0x9E3779B9
    CUT: tl.constexpr = 16 if DTYPE == tl.bfloat16 else 13
    bits = (x.to(tl.uint32, bitcast=True) + (chance >> (32 - CUT))) >> CUT << CUT
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _mixed(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


def packed_plan(sequences: Tensor, T: int, SEGMENT: int, LENGTH: int) -> tuple[int, int, Tensor, Tensor]:
    """That of `based_ops.support.host` in one kernel: its many operations take longer than a short call."""
    N = len(sequences)
    count = -(-T // LENGTH) + N
    table = sequences.new_empty(count, 5, dtype=torch.int32)
    bounds = sequences.new_empty(N, 2, dtype=torch.int32)
    numbers = (*sequences.stride(), N, T, LENGTH, count, False)
    launch(plan, lambda c: (-(-count // c["SEGMENTS"]),), (sequences, table, bounds), numbers, PLAN)
    return count, count * LENGTH, table, bounds


def packed_stream_plan(
    sequences: Tensor, T: int, lanes: int, TILED: int, SHORTEST: int, LANES: int
) -> tuple[int, bool, Tensor]:
    """That of `based_ops.support.host` in one kernel too."""
    segments, walks = stream_plan(T, lanes, TILED, SHORTEST, LANES)
    N, length = len(sequences) + 1, -(-T // segments)
    count = -(-T // length) + N
    table = sequences.new_empty(count, 5, dtype=torch.int32)
    numbers = (*sequences.stride(), N, T, length, count, True)
    launch(plan, lambda c: (-(-count // c["SEGMENTS"]),), (sequences, table, None), numbers, PLAN)
    return count, walks, table


@triton.jit(do_not_specialize=["sequences_n", "sequences_e", "N", "T", "LENGTH", "count"])
def plan(  # type: ignore[no-untyped-def]
    sequences, table, bounds, sequences_n, sequences_e, N, T, LENGTH, count, UNTIL_NEXT: tl.constexpr,
    SEGMENTS: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """A tile of segments looks for itself among all sequences, and the first tile says where these begin.

    UNTIL_NEXT, what is before the first sequence counts as one, and each goes on to where the next begins.
    """
    segment = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    begin = tl.full((SEGMENTS,), 0, tl.int32)
    first_token, stop_token, end_token, owner = begin, begin, begin, begin
    found = 0
    for n0 in range(0, N, SEQUENCES):
        n = n0 + tl.arange(0, SEQUENCES)
        place = n.to(tl.int64) * sequences_n
        if UNTIL_NEXT:
            there = (n > 0) & (n < N)
            end = tl.load(sequences + place - sequences_n + sequences_e, mask=there, other=0)
            end = tl.minimum(tl.maximum(end, 0), T).to(tl.int32)
            first = tl.load(sequences + place - sequences_n, mask=there, other=0)
            stop = tl.load(sequences + place, mask=n < N - 1, other=T)
        else:
            first = tl.load(sequences + place, mask=n < N, other=0)
            stop = tl.load(sequences + place + sequences_e, mask=n < N, other=0)
        first = tl.minimum(tl.maximum(first, 0), T).to(tl.int32)
        stop = tl.minimum(tl.maximum(stop, 0), T).to(tl.int32)
        needed = tl.where(stop > first, (stop - first + (LENGTH - 1)) // LENGTH, 0)
        if UNTIL_NEXT:
            needed = tl.where(n < N, needed, 0)
        last = found + tl.cumsum(needed, 0)
        before = last - needed
        if not UNTIL_NEXT and tl.program_id(0) == 0:
            tl.store(bounds + n * 2, tl.minimum(before, count), mask=n < N)
            tl.store(bounds + n * 2 + 1, tl.minimum(last, count), mask=n < N)
        own = (segment[:, None] >= before[None, :]) & (segment[:, None] < last[None, :])
        begin += tl.sum(tl.where(own, (first - before * LENGTH)[None, :], 0), 1)
        first_token += tl.sum(tl.where(own, first[None, :], 0), 1)
        stop_token += tl.sum(tl.where(own, stop[None, :], 0), 1)
        owner += tl.sum(tl.where(own, n[None, :], 0), 1)
        if UNTIL_NEXT:
            end_token += tl.sum(tl.where(own, end[None, :], 0), 1)
        found += tl.sum(needed, 0)
    there = segment < found
    begin = tl.where(there, begin + segment * LENGTH, 0)
    row, inside = table + segment * 5, segment < count
    tl.store(row, begin, mask=inside)
    tl.store(row + 1, tl.minimum(begin + tl.where(there, LENGTH, 0), stop_token), mask=inside)
    tl.store(row + 2, first_token, mask=inside)
    if UNTIL_NEXT:
        tl.store(row + 3, end_token, mask=inside)
        tl.store(row + 4, owner - 1, mask=inside)
    else:
        tl.store(row + 3, stop_token, mask=inside)
        tl.store(row + 4, owner, mask=inside)


def cleared(x: Tensor, sequences: Tensor, axis: int) -> Tensor:
    """That of `based_ops.support.host` in one kernel, which writes nothing if all tokens are somebody's."""
    if x.numel():
        count = x.shape[axis]
        sizes = len(sequences), count, x.shape[:axis].numel(), x.shape[axis + 1 :].numel()
        numbers = (*sequences.stride(), *sizes)
        launch(clear, lambda c: (-(-count // c["TOKENS"]),), (x, sequences), numbers, CLEAR)
    return x


@triton.jit(do_not_specialize=["sequences_n", "sequences_e", "N", "T", "BEFORE", "AFTER"])
def clear(  # type: ignore[no-untyped-def]
    x, sequences, sequences_n, sequences_e, N, T, BEFORE, AFTER,
    TOKENS: tl.constexpr, SEQUENCES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x [BEFORE, T, AFTER]: a tile of tokens looks for itself among all sequences."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    owners = tl.full((TOKENS,), 0, tl.int32)
    for n0 in range(0, N, SEQUENCES):
        n = n0 + tl.arange(0, SEQUENCES)
        place = n.to(tl.int64) * sequences_n
        first = tl.load(sequences + place, mask=n < N, other=0)
        stop = tl.load(sequences + place + sequences_e, mask=n < N, other=0)
        own = (t[:, None] >= first[None, :]) & (t[:, None] < stop[None, :])
        owners += tl.sum(own.to(tl.int32), 1)
    nobodys = (owners == 0) & (t < T)
    if tl.sum(nobodys.to(tl.int32), 0) > 0:
        for i in range(0, BEFORE):
            row = x + (i * T + t).to(tl.int64) * AFTER
            for c0 in range(0, AFTER, COLUMNS):
                c = c0 + tl.arange(0, COLUMNS)
                tl.store(row[:, None] + c[None, :], 0.0, mask=nobodys[:, None] & (c < AFTER)[None, :])


EARLY_VARIABLE = "BASED_OPS_EARLY_LAUNCH"
KEPT = 4096
"""Launches that are remembered: lengths may be new in every call."""

# How `JITFunction.run` hands over to a compiled kernel is no public interface, but the same in these
# versions.  In any other, every launch goes Triton's own way.
_KNOWN = (3, 4) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
_hooks = triton.knobs.runtime
_interpreter = Lock()
"""Triton's interpreter replaces the functions of the language while a kernel runs, so one runs at a time."""
_launches: dict[tuple[Any, ...], tuple[Any, ...]] = {}


def launch(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int]],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    settings: dict[str, Any],
) -> None:
    """``kernel[grid](*tensors, *numbers, **settings)`` on the current device, in a third of the time.

    Triton binds, classifies and hashes all arguments of every launch, which takes longer than the rest of a
    call on the host.  Here a launch like an earlier one goes straight to the kernel that Triton chose then.
    Alike are launches of one kernel on one device, with the same settings (one dictionary, which nobody may
    change), the same tensors absent, the same dtypes, addresses as far from a multiple of 16 bytes, and the
    same `numbers` (strides, sizes, scalars and switches, in the order of the kernel's parameters).  That is
    finer than what Triton specialises on, and `grid`, a function of the settings, may vary with nothing else.

    Triton's own launch serves what is new, the interpreter, and every call while launch hooks are installed.
    """
    if not isinstance(kernel, JITFunction):
        with _interpreter:
            kernel[grid(settings)](*tensors, *numbers, **_completed(kernel, tensors, settings))
        return
    if not _KNOWN:
        kernel[grid(settings)](*tensors, *numbers, **_completed(kernel, tensors, settings))
        return
    active = driver.active
    device = active.get_current_device()
    pointers: list[int | None] = []
    kinds: list[Any] = []
    for tensor in tensors:
        if tensor is None:
            pointers.append(None)
            kinds.append(None)
        else:
            pointer = tensor.data_ptr()
            odd = pointer % 16
            pointers.append(pointer)
            kinds.append((tensor.dtype, odd) if odd else tensor.dtype)
    key = (id(kernel), id(settings), device, numbers, *kinds)
    known = _launches.get(key)
    if known is None or watched():
        _launch_and_remember(key, kernel, grid(settings), tensors, numbers, settings)
    else:
        programs, run, function, metadata, constants, _, _ = known
        stream = active.get_current_stream(device)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *pointers, *numbers, *constants)
    if _records and (record := _records.get(get_ident())) is not None:
        record.append((_launches.get(key), tensors, numbers))


def _launch_and_remember(
    key: tuple[Any, ...],
    kernel: Any,
    grid: tuple[int],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    settings: dict[str, Any],
) -> None:
    arguments = _completed(kernel, tensors, settings)
    compiled = kernel[grid](*tensors, *numbers, **arguments)
    if not isinstance(compiled, CompiledKernel):
        return  # a hook refused it, or it is compiled elsewhere
    constants = [arguments[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]
    if len(_launches) >= KEPT:
        _launches.clear()
    # The kernel and its settings are kept alive, so that nothing else can have their identities.
    entry = (compiled.run, compiled.function, compiled.packed_metadata, constants, kernel, settings)
    _launches[key] = (grid[0], *entry)


def _completed(kernel: Any, tensors: tuple[Tensor | None, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, and what a kernel asks for that is not known before its call."""
    more: dict[str, Any] = {}
    if "OFFSET" in kernel.arg_names:
        more["OFFSET"] = _offset(tensors, settings)
    if "EARLY" in kernel.arg_names:
        more["EARLY"] = isinstance(kernel, JITFunction) and _begins_early(current_device())
        if more["EARLY"]:
            more["launch_pdl"] = True
    return settings | more


def _offset(tensors: tuple[Tensor | None, ...], settings: dict[str, Any]) -> Any:
    """The dtype of an index times its stride.

    64 bits take registers and time, so they are only for tensors that need them.  The first dimension is a
    batch, which kernels count in 64 bits by themselves; the second may be tokens, of which one product has no
    more than a tile.
    """
    tile = max(value for value in settings.values() if type(value) is int)
    far = any(
        (min(size, tile) if axis == 1 else size) * x.stride(axis) >= 2**31
        for x in tensors
        if x is not None
        for axis, size in enumerate(x.shape)
        if axis > 0
    )
    return tl.int64 if far else tl.int32


@cache
def _begins_early(device: int) -> bool:
    """Whether kernels may be launched before those ahead have ended: if that is asked for, from Hopper on.

    It is asked for while nobody has seen on a device that it is right and gains time.
    """
    if os.environ.get(EARLY_VARIABLE) != "1" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


def watched() -> bool:
    """Whether somebody wants to know of launches: a hook, or since Triton 3.5 a chain that is not empty."""
    enter, leave = _hooks.launch_enter_hook, _hooks.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


# Several launches again, with other tensors of the same kinds.

Record = list[tuple[tuple[Any, ...] | None, tuple[Tensor | None, ...], tuple[float, ...]]]
"""Launches: what is remembered of each, if anything is, its tensors and its numbers."""
_records: dict[int, Record] = {}


@contextmanager
def recording() -> Iterator[Record]:
    """Record this thread's launches."""
    record = _records[get_ident()] = []
    try:
        yield record
    finally:
        del _records[get_ident()]


def current_device() -> int:
    """The device on which kernels launch."""
    return driver.active.get_current_device()


def repeated(record: Record, place: Callable[[Tensor | None], int]) -> Callable[[Sequence[int | None]], None]:
    """A function of addresses that repeats launches with them; `place` says where each tensor's stands."""
    launches = []
    for known, tensors, numbers in record:
        assert known is not None
        programs, run, function, metadata, constants, *alive = known
        of_launch = itemgetter(*(place(tensor) for tensor in tensors))
        launches.append((programs, run, function, metadata, of_launch, (*numbers, *constants), alive))
    device = current_device()

    def repeat(addresses: Sequence[int | None]) -> None:
        stream = driver.active.get_current_stream(device)
        for programs, run, function, metadata, of_launch, rest, _ in launches:
            run(programs, 1, 1, stream, function, metadata, None, None, None, *of_launch(addresses), *rest)

    return repeat
