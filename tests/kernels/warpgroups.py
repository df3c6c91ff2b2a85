"""Passes of generated modules whose kernels for warpgroups run as Python: see `gluon.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

from tests.kernels.gluon import run
from tests.layers import import_text


def passes(module: ModuleType, segments: int) -> tuple[Any, Any]:
    """forward and backward of a generated module, with this many segments."""

    def launch(kernel: Any, grid: Any, tensors: Any, numbers: Any, settings: dict[str, int]) -> None:
        if kernel.is_gluon():
            constants = [value for name, value in settings.items() if name != "num_warps"]
            contiguous = [None if x is None else x.contiguous() for x in tensors]
            assert all(x is y for x, y in zip(tensors, contiguous, strict=True))
            run(kernel, grid(settings)[0], contiguous, *numbers, *constants)
        else:
            running_sums(kernel.fn.__name__ == "suffix", *tensors, *numbers[-2:])

    names = vars(module) | {
        "launch": launch,
        "on_warpgroups": lambda *tensors: True,
        "forward_plan": lambda *sizes, **plan: (segments, True),
        "window_plan": lambda *sizes, **plan: segments,
        "segment_plan": lambda *sizes, **plan: segments,
    }
    for name in ("backward_warpgroups", "forward", "backward"):
        if name in names:
            names[name] = FunctionType(names[name].__code__, names, name)
    return names["forward"], names["backward"]


def running_sums(mirrored: bool, *arguments: Any) -> None:
    """`prefix` and `suffix`, which are portable: the state before (or after) each segment, and the total."""
    *tensors, has_initial, total = arguments
    half = len(tensors) // 4  # a state, and its normaliser if there is one
    for i in range(half):
        initial, sums, before, final = tensors[i::half]
        count, running = sums.shape[2], torch.zeros_like(sums[:, :, 0])
        if has_initial:
            running += initial
        for segment in reversed(range(count)) if mirrored else range(count):
            before[:, :, segment] = running
            running += sums[:, :, segment]
        if total:
            final.copy_(running)


WAITS = re.compile(r"\b(barrier|fence_async_shared|async_copy.wait_group|warpgroup_mma_wait)\(")


def fails_without_any_wait(
    module: ModuleType, kernel: str, least: int, compute: Callable[[ModuleType], None]
) -> None:
    """Without any one barrier, fence or wait of its loop a kernel must fail here: so they are all seen.

    There are `least` at least.
    """
    lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"def {kernel}("))
    end = next(i for i, line in enumerate(lines[begin:], begin) if "async_copy.wait_group(0)" in line)
    waits = [i for i in range(begin, end) if WAITS.search(lines[i]) and "frees" not in lines[i]]
    assert len(waits) >= least
    for i in waits:
        without = WAITS.sub("(lambda *_: None)(", lines[i])
        if "warpgroup_mma_wait" in lines[i]:
            without = re.sub(r"wait\((\d)", lambda found: f"wait({int(found[1]) + 1}", lines[i])
        mutant = import_text("\n".join([*lines[:i], without, *lines[i + 1 :]]) + "\n", "mutant")
        with pytest.raises((AssertionError, AttributeError, TypeError)):  # products in flight are no tensors
            compute(mutant)
            pytest.fail(f"nothing is missed without line {i + 1}: {lines[i].strip()}")
