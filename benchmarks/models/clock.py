"""How a call is made and timed: as PyTorch runs it, compiled, in a CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from based_ops.models.inference import compiled, room_to_compile

from .contenders import Call, Contender

SECONDS = 0.4
"""Of timed calls, at least."""
FEWEST, MOST = 3, 1024
WARM = 3
"""Calls before a graph is captured: what a first one compiles or chooses may not be captured."""
CHUNKS = 5
"""Of calls in a row; their time is the median of the chunks' means."""
BACKEND = "inductor"
"""Of `torch.compile`; tests take one that needs no compiler."""


@contextmanager
def blocks_compiled(contender: Contender, what: str, way: str, rows: int) -> Iterator[None]:
    """Each block compiled by itself for so many tokens, where a way says so."""
    found = list(contender.blocks(what)) if way.endswith("blocks") else []
    with room_to_compile():
        for module, method in found:
            setattr(module, method, compiled(getattr(module, method), rows, BACKEND))
        try:
            yield
        finally:
            for module, method in found:
                delattr(module, method)  # the class has its own


def made(call: Call, way: str, rows: int) -> Callable[[], object]:
    """What is called again and again: as a way says, compiled as a whole, or the replay of a graph."""
    if way.endswith("whole"):
        call = compiled(call, rows, BACKEND)
    return _graph(call).replay if way.startswith("graph") else call


def ms_of(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call among many in a row, each of which waits for the one before."""
    for _ in range(WARM):
        once = _ms(run, 1, device)
    count = min(MOST, max(FEWEST, round(1000 * SECONDS / once / CHUNKS)))
    chunks = CHUNKS if CHUNKS * count * once < 10_000 else 1
    return statistics.median(_ms(run, count, device) for _ in range(chunks))


def _graph(call: Call) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what warming up held is not the graph's to use
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _ms(run: Callable[[], object], count: int, device: torch.device) -> float:
    """The mean of `count` calls."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(count):
            run()
        return 1000 * (time.perf_counter() - start) / count
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / count
