"""What a call costs on this machine's host, in µs: `python -m based_ops.benchmarks.overhead`.

"call": the whole call in eager mode, allocation and launches included, as it is from the second on.
"operator": the same the long way, through checks, choice of backend and PyTorch's dispatcher; "no kernel":
with kernels that do nothing.  "pass": the generated function alone, with its launches as they are, as Triton
itself makes them, and left out.  "training": forward and backward, beside an `autograd.Function` that does
nothing.  Only what has no kernel runs without a GPU.  Shapes are so small that the device keeps up, and its
time is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import based_ops
from based_ops import dispatch
from based_ops.variant import Variant

VARIANTS = ("taylor2_qk16_v64", "window64_d64")
CALLS, ROUNDS = 100, 20


def host_microseconds(function: Callable[[], Any]) -> float:
    """Time until `function` returns, the best average over `CALLS` calls; the device finishes in between."""
    best = float("inf")
    for _ in range(ROUNDS):
        _wait()
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        best = min(best, time.perf_counter() - start)
    _wait()
    return best / CALLS * 1e6


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def inputs(variant: Variant, length: int, device: str, batch: int = 1, heads: int = 4) -> Any:
    """Random q, k, v."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    widths = (variant.qk, variant.qk, variant.v)
    return tuple(torch.randn(batch, length, heads, width, device=device).to(dtype) for width in widths)


def with_launch(function: FunctionType, launch: Callable[..., None]) -> FunctionType:
    """A function of a generated Triton module with another way to launch."""
    return FunctionType(function.__code__, {**function.__globals__, "launch": launch}, function.__name__)


def triton_launch(kernel: Any, grid: Any, tensors: Any, numbers: Any, settings: dict[str, Any]) -> None:
    """`based_ops.support.triton.launch` as Triton's own."""
    kernel[grid(settings)](*tensors, *numbers, **settings)


def no_launch(*_: Any) -> None:
    """What is left of a pass without its launches: sizes, strides and allocation."""


def forward_arguments(variant: Variant) -> tuple[Any, ...]:
    """What the generated forward takes after q, k, v and the scale: no state, and none asked for."""
    return (None, None, False) if variant.spec.mixer == "linear_attention" else (None,)


@contextmanager
def no_kernels(variant: Variant, kernel: str) -> Iterator[None]:
    """The operators of a variant, with kernels that return at once what was computed before."""
    kernels = variant._ops.kernels
    real: ModuleType = kernels[kernel]
    kept: dict[str, Any] = {}

    def once(which: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if which not in kept:
                kept[which] = getattr(real, which)(*arguments)
            return kept[which]

        return run

    kernels[kernel] = SimpleNamespace(forward=once("forward"), step=once("step"))  # type: ignore[assignment]
    try:
        yield
    finally:
        kernels[kernel] = real


@contextmanager
def the_long_way(variant: Variant) -> Iterator[None]:
    """Calls of a variant of which nothing is remembered."""
    with patch.object(variant, "_key", lambda *_: None):
        yield


class Nothing(torch.autograd.Function):
    """What a differentiable function in Python costs by itself."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(v)

    @staticmethod
    def backward(ctx: Any, d_o: Tensor) -> tuple[Tensor, ...]:
        return ctx.saved_tensors


def training(function: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Forward and backward of a function of q, k and v."""
    leaves = tuple(x.detach().requires_grad_() for x in leaves)
    d_o = torch.randn_like(leaves[2])

    def run() -> Any:
        with torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, d_o)

    return run


def measure(name: str, device: str) -> Iterator[tuple[str, float]]:
    """The rows of a variant."""
    variant: Any = based_ops.get(name)
    sequence, token = inputs(variant, 64, device), inputs(variant, 1, device)
    state = variant.init_state(1, 4, device=device, dtype=token[0].dtype)
    dtype = token[0].dtype
    with the_long_way(variant), no_kernels(variant, dispatch.kernel(name, None, token[0].device, dtype)):
        yield "forward, operator, no kernel", host_microseconds(lambda: variant(*sequence))
        yield "step, operator, no kernel", host_microseconds(lambda: variant.step(*token, state))
    yield "training, nothing", host_microseconds(training(Nothing.apply, sequence))
    if device != "cuda":
        return
    for backend in ("triton", "tilelang"):
        whole = partial(variant, backend=backend)
        calls: dict[str, Callable[[], Any]] = {
            "forward": partial(whole, *sequence),
            "forward from a state": partial(whole, *sequence, initial_state=state, output_final_state=True),
            "step": partial(variant.step, *token, state, backend=backend),
            "training": training(lambda *qkv, whole=whole: whole(*qkv)[0], sequence),
        }
        for which, call in calls.items():
            yield f"{which}, call, {backend}", host_microseconds(call)
            with the_long_way(variant):
                yield f"{which}, operator, {backend}", host_microseconds(call)
    module = variant._ops.kernels[dispatch.kernel(name, "triton", token[0].device, dtype)]
    rest = forward_arguments(variant)
    for launched, launch in (
        ("launches as they are", module.launch),
        ("Triton's own launches", triton_launch),
        ("no launches", no_launch),
    ):
        forward, step = with_launch(module.forward, launch), with_launch(module.step, launch)
        yield (
            f"forward, pass, {launched}",
            host_microseconds(partial(forward, *sequence, 0.25, *rest)),
        )
        yield f"step, pass, {launched}", host_microseconds(partial(step, *token, 0.25, *state))


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in VARIANTS:
            for what, microseconds in measure(name, device):
                print(f"{name:20} {what:40} {microseconds:8.2f} µs", flush=True)


if __name__ == "__main__":
    main()
