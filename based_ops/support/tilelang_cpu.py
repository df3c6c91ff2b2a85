"""What generated TileLang modules for the host need besides TileLang: kernels compiled through C.

The C target computes in float32 on dense tensors; others are converted at the call, and back if the kernel
writes them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import tilelang
import tilelang.language as tl
import torch
from torch import Tensor

from .tilelang import Parameters, coordinates, dithered, head_of, slot_of

__all__ = ["coordinates", "dithered", "dot", "head_of", "kernel", "slot_of", "tensor"]


def tensor(dims: Sequence[Any], dtype: str, present: bool = True) -> Any:
    """The type of a tensor parameter; one that is not `present` is a placeholder of one element."""
    return tl.Tensor(tuple(dims) if present else (1,) * len(dims), dtype)


@tl.macro
def dot(x, y, acc, transpose_x=False, transpose_y=False, clear=False):  # type: ignore[no-untyped-def]
    """Add the matrix product of two tiles to `acc`, or set `acc` to it."""
    tl.gemm(x, y, acc, transpose_A=transpose_x, transpose_B=transpose_y, clear_accum=clear)


@tl.macro
def running_sum(x, out):  # type: ignore[no-untyped-def]
    """Set `out` to the sums of a vector up to each of its elements."""
    out[0] = x[0]
    for i in tl.serial(x.shape[0] - 1):
        out[i + 1] = out[i] + x[i + 1]


class Kernel:
    """A kernel of a generated module, compiled once for each combination of its settings."""

    def __init__(self, factory: Callable[..., Any], stores: Sequence[str]) -> None:
        self.factory, self.stores = factory, tuple(stores)
        self.__name__, self.__doc__ = factory.__name__, factory.__doc__
        self._compiled: dict[tuple[Any, ...], tuple[Callable[..., None], Parameters]] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any, **settings: Any) -> None:
        compiled, known = self._get(tuple(settings.values()), settings)
        if known.nothing_to_do(arguments):
            return
        absent = known.absent
        passed = [
            torch.empty((1,) * absent[i][0], dtype=absent[i][1]) if i in absent else _dense(x)
            for i, x in enumerate(arguments)
        ]
        compiled(*passed)
        for i in known.stored:
            if passed[i] is not arguments[i]:
                arguments[i].copy_(passed[i])

    def _get(self, key: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Callable[..., None], Parameters]:
        with self._lock:
            if key not in self._compiled:
                function = self.factory(**settings)
                compiled = tilelang.compile(function, target="c")
                self._compiled[key] = compiled, Parameters.of(function, self.stores)
            return self._compiled[key]


def kernel(stores: Sequence[str]) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a kernel of a function of its settings; `stores` names the tensors that it writes."""
    return functools.partial(Kernel, stores=stores)


def _dense(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    narrow = x.is_floating_point() and x.dtype != torch.float64
    return (x.float() if narrow else x).contiguous()
