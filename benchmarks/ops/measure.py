"""Clocks: medians of times on the device, in a CUDA graph and on the host; ceilings; peak memory.

On a GPU the clock is `triton.testing.do_bench`, which empties the second-level cache before every run, so
that inputs come from memory.  A CUDA graph holds many calls on different inputs, more than the cache holds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """Milliseconds of warming up and of repeating."""

    warmup: float
    repeat: float


TABLE = Effort(25, 100)
SWEEP = Effort(10, 50)
CALLS = 200
"""Calls in a row by which the host's time is taken."""


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: a copy, read and written bytes together, and a square matrix product."""

    copy_gb_s: float
    matmul_tflop_s: float
    matmul_dtype: str


def ceilings(device: str) -> Ceilings:
    """Measures both, on tensors that no cache holds: bfloat16 on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    copy = _copy_gb_s(2**31 if device == "cuda" else 2**27, device)
    product = _matmul_tflop_s(8192 if device == "cuda" else 1024, dtype, device)
    return Ceilings(copy, product, str(dtype).removeprefix("torch."))


def _copy_gb_s(size: int, device: str) -> float:
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / device_ms(lambda: target.copy_(source), device, TABLE) / 1e6


def _matmul_tflop_s(size: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)  # the first product of a process waits for its library, and no clock is told
    return 2 * size**3 / device_ms(lambda: a @ b, device, TABLE) / 1e9


def device_ms(run: Call, device: str, effort: Effort) -> float:
    """Median milliseconds of the device for one call; on a CPU of the call."""
    if device == "cpu":
        return _wall_ms(run, effort)
    from triton.testing import do_bench

    if (once := _once_ms(run)) > effort.warmup + effort.repeat:
        return once  # `do_bench` would call it seven times more
    return float(do_bench(run, warmup=effort.warmup, rep=effort.repeat, return_mode="median"))


def graph_ms(calls: Sequence[Call], effort: Effort) -> float:
    """Median milliseconds of one call within a CUDA graph of all `calls`, which go to different inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in (calls[0], *calls):  # what a first call compiles or chooses may not be captured
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in calls:
            run()
    return device_ms(graph.replay, "cuda", effort) / len(calls)


def host_ms(run: Call, device: str, effort: Effort) -> float:
    """Median milliseconds until a call returns, over batches of calls that nothing waits for."""
    batches: list[float] = []
    deadline = time.perf_counter() + (effort.warmup + effort.repeat) / 1000
    while len(batches) < 5 or time.perf_counter() < deadline:
        _wait(device)
        begin = time.perf_counter()
        for _ in range(CALLS):
            run()
        batches.append((time.perf_counter() - begin) / CALLS)
    _wait(device)
    return 1000 * statistics.median(batches[1:])


def peak_mib(run: Call, device: str) -> float | None:
    """MiB that a call allocates on the device on top of what is there before it; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def copies_beyond_cache(size: int) -> int:
    """How many inputs of `size` bytes the second-level cache cannot hold: twice its size, at least two."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    return min(256, max(2, math.ceil(2 * cache / max(size, 1))))


def _once_ms(run: Call) -> float:
    """Milliseconds of the device for one call, now."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def _wall_ms(run: Call, effort: Effort) -> float:
    run()
    times: list[float] = []
    deadline = time.perf_counter() + (effort.warmup + effort.repeat) / 1000
    while len(times) < 3 or time.perf_counter() < deadline:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
