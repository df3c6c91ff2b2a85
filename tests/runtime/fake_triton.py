"""A Triton driver without a device: kernels are chosen as for a GPU, and their launches only recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

LAUNCHES: list[dict[str, Any]] = []
"""What reached the device: kernel, programs, stream, hooks, and the arguments that the kernel still has."""


class Compiled(CompiledKernel):
    """A kernel as Triton would have compiled it for these arguments, that records its launches."""

    def __init__(self, src: Any) -> None:
        self.src = src
        self.function, self.packed_metadata = object(), ()

    @property
    def run(self) -> Any:
        return self._record

    def launch_metadata(self, *_: Any) -> None:
        return None

    def _record(
        self, x: int, y: int, z: int, stream: int, function: Any, _packed: Any, _metadata: Any, *rest: Any
    ) -> None:
        enter, leave, *arguments = rest
        assert function is self.function and (y, z) == (1, 1)
        left = [
            value.data_ptr() if isinstance(value, torch.Tensor) else value
            for value, kind in zip(arguments, self.src.signature.values(), strict=True)
            if kind != "constexpr"
        ]
        hooks = [hook for hook in (enter, leave) if getattr(hook, "calls", hook)]
        LAUNCHES.append({"kernel": self, "programs": x, "stream": stream, "hooks": hooks, "arguments": left})


class Driver:
    """What Triton and the launcher ask of a driver."""

    device = 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 100 + device


@contextmanager
def fake_device() -> Iterator[Driver]:
    """Triton with a fake driver and a compiler that compiles nothing."""
    fake = Driver()
    LAUNCHES.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", fake)
        patch.setattr(triton.compiler, "compile", lambda src, **_: Compiled(src))
        yield fake
