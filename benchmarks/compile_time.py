"""What a user waits for before anything runs: generating, importing, and the first call of a kernel.

Everything is timed in new processes.  A first call is timed after the backend and the device have been
started, which is said apart; once with empty caches on disk, once with what that run left there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .ops.results import machine

LAYERS = ("taylor2_qk16_v64", "window64_d64")
TASKS = ("forward", "step", "training")
COLD = {"triton": 3.0, "tilelang": 10.0}
"""Seconds that the first call of a kernel may take, its compilation included."""
WARM = {"triton": 0.3, "tilelang": 1.0}
"""The same where the caches on disk know the kernel."""
GENERATE = 10.0
"""Seconds in which every shipped spec is generated."""
CACHES = ("TRITON_CACHE_DIR", "TILELANG_CACHE_DIR")
TIMEOUT = 300

FIRST_CALL = """
import json, sys, time
name, backend, task = sys.argv[1:]
import torch
import based_ops
from based_ops.record import record
op = based_ops.get(name)
begin = time.perf_counter()
record(name).module(backend)
imported = time.perf_counter() - begin
T = 1 if task == "step" else 64
q, k, v = (
    torch.randn(1, T, 2, width, device="cuda", dtype=torch.bfloat16, requires_grad=task == "training")
    for width in (op.qk, op.qk, op.v)
)
state = op.init_state(1, 2, device="cuda", dtype=torch.bfloat16)
def call():
    if task == "step":
        op.step(q, k, v, state, backend=backend)
    else:
        o = op(q, k, v, backend=backend)[0]
        if task == "training":
            o.sum().backward()
    torch.cuda.synchronize()
torch.cuda.synchronize()
times = []
for _ in range(2):
    begin = time.perf_counter()
    call()
    times.append(time.perf_counter() - begin)
print(json.dumps({"import": imported, "first": times[0], "second": times[1]}))
"""


@dataclass(frozen=True)
class Row:
    """Seconds of one thing, and what it should take at most."""

    what: str
    seconds: float
    target: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.seconds <= self.target

    @property
    def cells(self) -> tuple[str, str, str]:
        verdict = "" if self.target is None else f"{self.target:g} {'met' if self.met else 'MISSED'}"
        return self.what, f"{self.seconds:.3f}", verdict


@dataclass(frozen=True)
class Report:
    """Where, with what, the rows, and what has no number and why."""

    machine: dict[str, Any]
    rows: list[Row]
    missing: list[str]


def measure(say: Callable[[str], None]) -> Report:
    """Everything that can be measured here; first calls need a CUDA device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [
        Row("generate all shipped specs", generate_seconds(), GENERATE),
        Row("import based_ops, after torch", import_seconds()),
    ]
    missing: list[str] = []
    for row in rows:
        say(" | ".join(row.cells))
    if device == "cpu":
        missing.append("first calls of Triton and TileLang kernels: PyTorch sees no CUDA device")
        return Report(machine(device), rows, missing)
    for backend in COLD:
        for name in LAYERS:
            for task in TASKS:
                try:
                    found = first_calls(name, backend, task)
                except (subprocess.SubprocessError, ValueError) as error:
                    missing.append(f"{name}, {backend}, {task}: {error}")
                    say(missing[-1])
                    continue
                rows += found
                for row in found:
                    say(" | ".join(row.cells))
    return Report(machine(device), rows, missing)


def first_calls(name: str, backend: str, task: str) -> list[Row]:
    """The first call of a layer's pass with empty caches, and with those that it filled.

    Targets are for one kernel, which is what a forward of 64 tokens and a step launch; training launches
    several and has none.
    """
    what = f"{name}, {backend}, {'forward + backward' if task == 'training' else task}"
    one = task != "training"
    with tempfile.TemporaryDirectory() as directory:
        caches = {variable: str(Path(directory) / variable.lower()) for variable in CACHES}
        cold, warm = (_first_call((name, backend, task), caches) for _ in range(2))
    return [
        Row(f"{what}: first call, nothing cached", cold["first"], COLD[backend] if one else None),
        Row(f"{what}: first call, cached on disk", warm["first"], WARM[backend] if one else None),
        Row(f"{what}: second call", warm["second"]),
        Row(f"{what}: import of its module and of {backend}", warm["import"]),
    ]


def _first_call(arguments: tuple[str, str, str], caches: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, *arguments],
        env=os.environ | caches,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a message"]
        raise ValueError(lines[-1])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def generate_seconds() -> float:
    """Seconds of `based-ops generate` into an empty directory, Python's start included."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "based_ops", "generate", "--out", str(Path(directory) / "kernels")]
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin


def import_seconds() -> float:
    """Median seconds that `import based_ops` adds to `import torch`."""
    program = (
        "import time, torch; start = time.perf_counter(); "
        "import based_ops; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(5)]
    return statistics.median(map(float, runs))


def write(report: Report, path: Path) -> None:
    """Writes JSON."""
    rows = [{**asdict(row), "met": row.met} for row in report.rows]
    document = {"machine": report.machine, "rows": rows, "missing": report.missing}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
