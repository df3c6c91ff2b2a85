"""How one pass of one candidate is timed: on which inputs, for how long, and against which limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..variant import Variant
from ..verify import domain

REPEATS = 3
"""Runs that must agree bit for bit."""
CPU_SECONDS = 0.2
COPIED = {"cuda": 2**30, "cpu": 2**26}
"""Bytes of the buffer whose copying shows the memory's speed."""
PREFIX = 16
"""Tokens that went before a single step; of a window, so many that its ring is full."""


class Unsteady(Exception):
    """Runs on the same inputs differ."""


class Shape(NamedTuple):
    """Batch, heads and tokens of a representative call."""

    batch: int
    heads: int
    length: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} T{self.length}"


SHAPES = {
    ("linear_attention", "forward"): Shape(16, 16, 8192),
    ("linear_attention", "backward"): Shape(8, 16, 2048),
    ("linear_attention", "step"): Shape(128, 16, 1),
    ("sliding_window", "forward"): Shape(8, 16, 2048),
    ("sliding_window", "backward"): Shape(8, 16, 2048),
    ("sliding_window", "step"): Shape(128, 16, 1),
}
"""What is measured on a GPU unless a shape is given."""
ON_A_CPU = Shape(1, 4, 1024)
PLANNED = {
    "cuda": tuple(
        Shape(batch, heads, length)
        for batch, heads in ((1, 1), (1, 16), (4, 16), (16, 16))
        for length in (512, 2048, 8192, 32768)
        if batch * heads * length <= 2**21
    ),
    "cpu": tuple(Shape(1, heads, length) for heads in (1, 8) for length in (256, 1024, 4096)),
}
"""What launch plans are judged at unless shapes are given: few rows and many, of short sequences and long."""


def default_shape(mixer: str, which: str, device: str) -> Shape:
    """The representative call of one pass of a mixer."""
    shape = SHAPES[mixer, which] if device == "cuda" else ON_A_CPU
    return Shape(shape.batch, shape.heads, 1) if which == "step" else shape


def time_pass(
    variant: Variant,
    module: ModuleType,
    backend: str,
    which: str,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
) -> tuple[float, int]:
    """Median milliseconds of the generated function, and the bytes that it has to read and write at least.

    Raises `Unsteady` if `REPEATS` runs on the same inputs differ in any bit.
    """
    function: Callable[..., Any] = getattr(module, which)
    arguments = captured(variant, module, backend, which, shape, dtype, device)
    runs = [_run(function, arguments) for _ in range(REPEATS)]
    if not all(_same(runs[0], run) for run in runs[1:]):
        raise Unsteady(f"{REPEATS} runs of {which} at {shape} differ")
    inputs = [x for x in arguments if isinstance(x, Tensor)]
    results, after = runs[0][: -len(inputs)], runs[0][-len(inputs) :]
    written = [new for old, new in zip(inputs, after, strict=True) if not _same([old], [new])]
    size = sum(x.nbytes for x in (*inputs, *results, *written))
    return median_ms(lambda: function(*arguments), device), size


def captured(
    variant: Variant,
    module: ModuleType,
    backend: str,
    which: str,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
) -> tuple[Any, ...]:
    """The arguments with which the operator calls the generated function `which`."""
    found: list[tuple[Any, ...]] = []
    function = getattr(module, which)

    def record(*arguments: Any) -> Any:
        found.append(tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments))
        return function(*arguments)

    setattr(module, which, record)
    try:
        _call(variant, backend, which, shape, dtype, device)
    finally:
        setattr(module, which, function)
    return found[-1]


def _call(variant: Variant, backend: str, which: str, shape: Shape, dtype: torch.dtype, device: str) -> None:
    """Run one pass of the public object."""
    draw = domain(variant).draw
    generator = torch.Generator(device).manual_seed(0)

    def inputs(length: int) -> list[Tensor]:
        size = (shape.batch, length, shape.heads)
        widths = (variant.qk, variant.qk, variant.v)
        made = [torch.randn(*size, n, generator=generator, device=device, dtype=dtype) for n in widths]
        return [draw(made[0]), draw(made[1]), made[2]]

    if which == "step":
        with torch.no_grad():
            q, k, v = inputs(getattr(variant.spec, "window", PREFIX))
            state = variant(q, k, v, output_final_state=True, backend=backend)[1]
            q, k, v = inputs(1)
            variant.step(q, k, v, state, backend=backend)
        return
    q, k, v = (x.requires_grad_(which == "backward") for x in inputs(shape.length))
    o, _ = variant(q, k, v, backend=backend)
    if which == "backward":
        torch.autograd.grad(
            o, [q, k, v], torch.randn(o.shape, generator=generator, device=device, dtype=dtype)
        )


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """What a call returns, followed by its tensor arguments as it leaves them."""
    fresh = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
    result = function(*fresh)
    results = result if isinstance(result, tuple) else (result,)
    return [x for x in (*results, *fresh) if isinstance(x, Tensor)]


def _same(xs: list[Tensor], ys: list[Tensor]) -> bool:
    """Whether tensors agree in every bit."""
    pairs = zip(xs, ys, strict=True)
    return all(torch.equal(_bits(x), _bits(y)) for x, y in pairs)


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().flatten().view(torch.uint8)


def bandwidth(device: str) -> float:
    """Bytes a second that a plain copy reads and writes."""
    source = torch.zeros(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source), device) / 1e3)


def median_ms(run: Callable[[], Any], device: str) -> float:
    """Median milliseconds of a call: on a GPU between events of the device, on a CPU by the clock."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=25, rep=100, return_mode="median"))
    run()
    times: list[float] = []
    end = time.perf_counter() + CPU_SECONDS
    while len(times) < REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
