"""The process that checks and times candidates: one JSON task a line in, one JSON answer a line out.

    python -m based_ops.tune.worker

A kernel that crashes, hangs or spoils the device takes this process with it, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from based_ops.codegen.schedule.legal import ALL_TOKENS, ONE_TOKEN

from ..jit import import_package
from ..record import Record, record
from ..registry import get
from ..variant import Variant, dtype_named
from ..verify import ALL, Case, measure
from .measure import Shape, bandwidth, time_pass

CASES = {"cpu": ALL, "cuda": (*ALL, Case(1, 2049, 2, 129, "dense"))}
"""On which a candidate is compared with float64; the long one has several segments."""
CHECKS = {"forward": ("forward", "pieces"), "backward": ("backward",), "step": ("step",)}
"""What `based_ops.verify` measures of each pass."""

Task = dict[str, Any]


def machine(task: Task) -> dict[str, Any]:
    """What the measurements of this machine depend on, and the speed of its memory."""
    device = task["device"]
    found: dict[str, Any] = {"bandwidth": bandwidth(device), "torch": torch.__version__}
    for package in ("triton", "tilelang"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return found | {"device": torch.cuda.get_device_name(), "architecture": f"sm_{major}{minor}"}
    return found | {"device": platform.machine(), "architecture": "cpu"}


def check(task: Task) -> dict[str, Any]:
    """Compare the passes of a candidate with float64 mathematics; raises `ValueError` if one is wrong."""
    torch.set_num_threads(1)  # other candidates are on the other cores
    dtype, device = dtype_named(task["dtype"]), task["device"]
    for part in _forms(task):
        variant, _ = _variant(part)
        passes = [check for which in part["passes"] for check in CHECKS[which]]
        for found in measure(variant, task["backend"], device, dtype, CASES[device], passes=passes):
            if not found.fine:
                error = f"error {found.found.norm:.1e}, allowed {found.allowed.norm:.0e}"
                raise ValueError(f"wrong: {found.which} {found.tensor} at {found.case}: {error}")
    return {}


def _forms(task: Task) -> list[Task]:
    """What a check consists of: the task, and a forward pass that recurs where only longer ones would.

    The cases are short, and short sequences are computed directly.
    """
    forward = task["plans"].get("forward", {})
    if "forward" not in task["passes"] or forward.get("LONGEST", ALL_TOKENS) == ALL_TOKENS:
        return [task]
    plans = task["plans"] | {"forward": forward | {"LONGEST": ONE_TOKEN}}
    return [task, task | {"plans": plans, "passes": ["forward"]}]


def clock(task: Task) -> dict[str, Any]:
    """Time one pass of a candidate; see `measure.time_pass`."""
    variant, known = _variant(task)
    module = known.module(task["backend"])
    dtype, shape = dtype_named(task["dtype"]), Shape(*task["shape"])
    ms, size = time_pass(variant, module, task["backend"], task["pass"], shape, dtype, task["device"])
    return {"ms": ms, "bytes": size}


TASKS = {"machine": machine, "check": check, "clock": clock}


def _variant(task: Task) -> tuple[Variant, Record]:
    """The candidate as a registered variant: a package of its own with one backend's module.

    Its launch plans are set anew, so that candidates that differ in these alone share their kernels; and what
    it remembers of calls by other plans is forgotten.
    """
    name, directory = task["name"], Path(task["directory"])
    for path, text in task["files"].items():
        file = directory / path
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            # Another worker may write the same file at this moment.
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_text(text, encoding="utf-8")
            part.replace(file)
    package = f"based_ops_jit_{name}"
    if package not in sys.modules:
        import_package(name, directory)
    known = record(name)
    for plan, constants in task["plans"].items():
        known.module(task["backend"]).SCHEDULE[plan][dtype_named(task["dtype"])] = constants
    variant = get(name).core
    variant._replays.forget()
    return variant, known


def main() -> None:
    """Answer tasks until there are no more, or until the device is lost."""
    # What kernels and compilers print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.getLogger("tilelang.jit.kernel").setLevel(logging.WARNING)
    for line in sys.stdin:
        task = json.loads(line)
        lost = False
        try:
            answer = TASKS[task["do"]](task)
        except Exception as error:  # a candidate fails in every way there is
            lines = str(error).strip().splitlines() or [""]
            answer = {"why": f"{type(error).__name__}: {lines[-1]}"}
            lost = task["device"] == "cuda" and not _device_works()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if lost:
            return


def _device_works() -> bool:
    """Whether the device still answers; after an illegal access it never does in this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
