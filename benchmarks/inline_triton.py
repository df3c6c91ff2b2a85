"""Whether Inductor should see into the operators: `python -m based_ops.benchmarks.inline_triton`, on a GPU.

Compiled code calls the operators as they are, opaque.  Here the same generated passes are compiled with their
kernels in sight (`torch.library.wrap_triton`), so that Inductor launches them itself, without an operator and
without Python of ours; only Triton's, since Inductor compiles no Gluon.  Both are compared with eager mode
for equality, and timed: on the host until the call returns, and until the device has finished too, with and
without CUDA graphs (mode "reduce-overhead").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.library import wrap_triton

import based_ops
from based_ops import dispatch
from based_ops.variant import Variant

from .overhead import CALLS, VARIANTS, forward_arguments, host_microseconds, inputs, with_launch

SHAPES = {"step": ((1, 1, 16), (128, 1, 16)), "forward": ((1, 128, 16), (8, 2048, 16))}
"""B, T, H: one that waits for the host, and one that waits for the device."""
MODES = ("default", "reduce-overhead")


def inlined_launch(kernel: Any, grid: Any, tensors: Any, numbers: Any, settings: dict[str, Any]) -> None:
    """`based_ops.support.triton.launch`, for Dynamo to see through."""
    wrap_triton(kernel)[grid(settings)](*tensors, *numbers, **settings)


def opaque(variant: Variant, which: str) -> Callable[..., torch.Tensor]:
    """A pass through its operator, with work of Inductor's own on either side."""

    def step(q: Any, k: Any, v: Any, state: Any) -> torch.Tensor:
        return variant.step(q * 2, k, v, state, backend="triton") + 1

    def forward(q: Any, k: Any, v: Any) -> torch.Tensor:
        return variant(q * 2, k, v, backend="triton")[0] + 1

    return step if which == "step" else forward


def inlined(variant: Variant, which: str) -> Callable[..., torch.Tensor]:
    """The same pass with its kernels in sight."""
    kernel = dispatch.kernel(variant.name, "triton", torch.device("cuda"), torch.bfloat16)
    module = variant._ops.kernels[kernel]
    run = with_launch(getattr(module, which), inlined_launch)
    run.__globals__["on_warpgroups"] = lambda *_: False  # Inductor compiles no Gluon
    scale, rest = variant.default_scale, forward_arguments(variant)

    def step(q: Any, k: Any, v: Any, state: Any) -> torch.Tensor:
        return run(q * 2, k, v, scale, *state) + 1

    def forward(q: Any, k: Any, v: Any) -> torch.Tensor:
        return run(q * 2, k, v, scale, *rest)[0] + 1

    return step if which == "step" else forward


def device_microseconds(function: Callable[[], Any]) -> float:
    """Time per call until the device has finished, the best of a few rounds."""
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def compare(variant: Variant, which: str, shape: tuple[int, int, int], mode: str) -> None:
    batch, length, heads = shape
    qkv = inputs(variant, length, "cuda", batch, heads)
    outcomes, state = {}, None
    for kind, build in (("eager", opaque), ("opaque", opaque), ("inlined", inlined)):
        torch._dynamo.reset()
        function: Any = build(variant, which)
        if kind != "eager":
            function = torch.compile(function, fullgraph=True, mode=mode)
        arguments: tuple[Any, ...] = qkv
        if which == "step":
            state = variant.init_state(batch, heads, device="cuda", dtype=qkv[0].dtype)
            for part in state:
                torch._dynamo.mark_static_address(part)  # CUDA graphs may write to inputs that stay in place
            arguments = (*qkv, state)

        def call(function: Any = function, arguments: Any = arguments) -> torch.Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return function(*arguments)

        for _ in range(5):
            result = call()
        kept = [result, *(state or ())] if which == "step" else [result]
        outcomes[kind] = [x.clone() for x in kept]
        host, device = host_microseconds(call), device_microseconds(call)
        name = f"{variant.name} {which} B{batch} T{length} H{heads}"
        print(f"{name:42} {mode:16} {kind:8} host {host:8.2f} µs   device {device:8.2f} µs", flush=True)
    for kind in ("opaque", "inlined"):
        for got, want in zip(outcomes[kind], outcomes["eager"], strict=True):
            torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def main() -> None:
    with torch.no_grad():
        for name in VARIANTS:
            for which, shapes in SHAPES.items():
                for shape in shapes:
                    for mode in MODES:
                        compare(based_ops.get(name), which, shape, mode)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device, and PyTorch sees none")
    main()
