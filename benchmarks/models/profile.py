"""Where the time of a step goes: its kernels, as PyTorch's profiler sees them while the step is repeated."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from .clock import blocks_compiled, made, ms_of
from .worker import attention, make

REPEATS = 8
"""Steps that are looked at."""
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Kernel:
    """Launches of a step that are alike: of a name and of a grid."""

    name: str
    grid: str
    """Programs and the threads of each; empty for what runs on a CPU."""
    launches: float
    """Of one step."""
    us: float
    """Of all of them."""
    waited_us: float
    """Of all of them: from the end of the kernel before to their beginning."""


@dataclass(frozen=True)
class Profile:
    """A step: its time when nobody looks, and its kernels in the order in which they first run."""

    ms: float
    kernels: list[Kernel]

    @property
    def us(self) -> float:
        """Of all kernels."""
        return sum(x.us for x in self.kernels)


@torch.no_grad()
def profile(model: str, device: str, batch: int, prompt: int, way: str) -> Profile:
    """Where the time of a step goes that gives `batch` sequences the token after `prompt` others.

    The profiler slows down what it looks at, so its times add up to more than `ms`, which is measured before.
    """
    contender = make(model, device)
    with attention(contender, way), blocks_compiled(contender, "step", way, batch):
        run = made(contender.step(batch, prompt + 1)[0], way, batch)
        ms = ms_of(run, contender.device)
        return Profile(ms, alike(_outermost(_events(run, contender.device)), REPEATS))


def alike(events: Iterable[dict[str, Any]], repeats: int) -> list[Kernel]:
    """Events of `repeats` steps, one after the other, as the kernels of one."""
    found: dict[tuple[str, str], list[float]] = {}
    end: float | None = None
    for event in events:
        sums = found.setdefault((event["name"], _grid(event.get("args", {}))), [0.0, 0.0, 0.0])
        waited = 0.0 if end is None else max(0.0, event["ts"] - end)
        end = event["ts"] + event["dur"]
        for i, x in enumerate((1.0, event["dur"], waited)):
            sums[i] += x / repeats
    return [Kernel(*key, *sums) for key, sums in found.items()]


def _grid(args: dict[str, Any]) -> str:
    if not args.get("grid"):
        return ""
    programs = "×".join(str(x) for x in args["grid"] if x > 1)
    return f"{programs or 1}:{math.prod(args['block'])}"


def _events(run: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """What the profiler writes down of some steps, by time."""
    cuda = device.type == "cuda"
    run()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        for _ in range(REPEATS):
            run()
        if cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        seen.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ON_DEVICE if cuda else ("cpu_op",)
    return sorted((x for x in trace if x.get("cat") in kinds), key=lambda x: (x["ts"], -x["dur"]))


def _outermost(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those that do not run inside of another: on a CPU operators call operators."""
    end = float("-inf")
    for event in events:
        if event["ts"] + event["dur"] > end:
            end = event["ts"] + event["dur"]
            yield event


COLUMNS = ("kernel", "grid", "launches", "µs", "µs each", "waited µs", "% of kernels")


def cells(kernel: Kernel, of: Profile) -> list[str]:
    """A kernel as a row of a table."""
    numbers = kernel.us, kernel.us / kernel.launches, kernel.waited_us, 100 * kernel.us / of.us
    return [kernel.name[:100], kernel.grid, f"{kernel.launches:.0f}", *(f"{x:.2f}" for x in numbers)]


def summary(found: Profile) -> str:
    """The sums of it."""
    launches, waited = (sum(getattr(x, key) for x in found.kernels) for key in ("launches", "waited_us"))
    what = f"{launches:.0f} kernels of {found.us:.0f} µs and {waited:.0f} µs between them"
    return f"a step takes {1000 * found.ms:.0f} µs; under the profiler {what}"
