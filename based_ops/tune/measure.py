"""How one pass of one candidate is timed: on which inputs, for how long, and against which limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..inputs import draw, filled, units
from ..variant import Variant
from ..verify import domain

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec

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
    """Batch, heads (or so many times 64 channels) and tokens of a representative call."""

    batch: int
    heads: int
    length: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} T{self.length}"


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


def default_shape(spec: LayerSpec, which: str, device: str) -> Shape:
    """The representative call of one pass of a layer."""
    shape = Shape(*spec.calls[which]) if device == "cuda" else ON_A_CPU
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
    weighs = domain(variant).draw
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    def inputs(length: int) -> tuple[Tensor, ...]:
        count = units(variant.signature, shape.heads)
        return draw(variant, shape.batch, length, count, normal, weighs)

    if which == "step":
        with torch.no_grad():
            past = filled(variant, inputs(variant.spec.extents.get("KEYS", PREFIX)))
            state = variant._call(past, None, None, True, backend)[1]
            variant._step(filled(variant, inputs(1)), None, state, backend)
        return
    leaves = [x.requires_grad_(which == "backward") for x in inputs(shape.length)]
    o, _ = variant._call(filled(variant, leaves), None, None, False, backend)
    if which == "backward":
        torch.autograd.grad(o, leaves, normal(o.shape))


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
