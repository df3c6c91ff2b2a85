"""What a call costs on the host: bounds far above what is measured, for what would be a change of kind.

`pytest -s` prints the measured times; `benchmarks/overhead.py` measures whole calls on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from based_ops import dispatch
from based_ops.variant import Variant

from .inputs import qkv

CALLS = 20
"""Calls in a row: less than a millisecond, which is less than a process is given at a time."""


def microseconds(function: Callable[[], Any]) -> float:
    """Time per call: the best average over so few that other processes seldom come between them."""
    best = float("inf")
    for _ in range(250):
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def test_a_call_without_its_kernel(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks, choice of backend and the operator; 10 µs (forward) and 15 µs (step) where this was written."""
    sequence, token, state = qkv(variant), qkv(variant, length=1), variant.init_state(2, 2)
    kernel = dispatch.kernel(variant.name, "torch", torch.device("cpu"), torch.float32)
    real = variant._ops.kernels[kernel]
    signature = variant.signature
    rest = (*(None for _ in signature.carried), *(False for _ in signature.final[:1]))
    forward, step = real.forward(*sequence, 0.5, *rest), real.step(*token, 0.5, *state, None)
    idle = SimpleNamespace(forward=lambda *_: forward, step=lambda *_: step)
    monkeypatch.setitem(variant._ops.kernels, kernel, idle)
    with torch.no_grad():
        times = (
            microseconds(lambda: variant(*sequence, backend="torch")),
            microseconds(lambda: variant.step(*token, state, backend="torch")),
        )
    print(f"\n{variant.name}: forward {times[0]:.1f} µs, step {times[1]:.1f} µs")
    assert max(times) < 60


def test_a_remembered_launch() -> None:
    """Against Triton's own launch; 11 µs against 27 where this was written, recording both."""
    pytest.importorskip("triton")
    from . import test_launch
    from .fake_triton import LAUNCHES, fake_device

    with fake_device():
        function, arguments = test_launch.kernel(), test_launch.good()

        def timed(through: Any) -> float:
            def run() -> None:
                test_launch.launch(function, arguments, through=through)
                LAUNCHES.clear()

            return microseconds(run)

        own, ours = timed(test_launch.as_triton), timed(test_launch.support.launch)
    print(f"\nlaunch: {ours:.1f} µs, Triton's own {own:.1f} µs")
    assert ours < 0.8 * own
