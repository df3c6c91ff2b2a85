"""Compiling ahead: every kernel that a run will need, in processes side by side, into the caches on disk.

    python -m based_ops.benchmarks.ops.warm < job.json

runs one job, `{"by": NAME of a contender, "works": [...]}`: each work once.  What fails here fails again, and
is reported, where it is measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict

import torch

from . import ours
from .contender import forget_compiled
from .inputs import make
from .peers import peers
from .works import Entry, Work

LARGEST = 2**22
"""Tokens times heads of the largest work that runs here; processes share the memory of one device."""
Job = tuple[str, list[Work]]


def compile_ahead(entries: Sequence[Entry], seconds: float, say: Callable[[str], None]) -> None:
    """Runs all jobs, as many at once as there are cores but two, and ends those that are not done in time."""
    end = time.monotonic() + seconds
    waiting = jobs(entries)
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 2)) as pool:
        done = list(pool.map(lambda job: _run_apart(job, end), waiting))
    say(f"compiled ahead: {sum(done)} of {len(waiting)} jobs in {seconds - (end - time.monotonic()):.0f} s")


def jobs(entries: Sequence[Entry]) -> list[Job]:
    """One job for each contender and kernel, the long ones first; works that differ in size share kernels."""
    found: dict[tuple[str, ...], list[Work]] = defaultdict(list)
    for entry in entries:
        work = entry.work
        if work.rows * work.length > LARGEST:
            continue
        for contender in (*ours.backends(), *peers(work, "cuda")):
            if contender.compiles and contender.by != "torch" and contender.why_not(entry, "cuda") is None:
                found[contender.by, work.variant, work.task, work.dtype].append(work)
    order = sorted(found, key=lambda key: (key[2] != "training", key[0] != "tilelang"))
    return [(key[0], found[key]) for key in order]


def _run_apart(job: Job, end: float) -> bool:
    """Whether the job was done, in a process of its own, before `end`."""
    by, works = job
    left = end - time.monotonic()
    text = json.dumps({"by": by, "works": [asdict(work) for work in works]})
    return left > 0 and ended_well([sys.executable, "-m", __name__], text, left)


def ended_well(command: Sequence[str], text: str, seconds: float) -> bool:
    """Whether a command that reads `text` succeeds in time.  Nothing that it started goes on after it.

    Compilers start others; those of a job that is given up would run beside what is measured.
    """
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=pipe, stdout=nowhere, stderr=nowhere, text=True, start_new_session=True
    ) as process:
        try:
            process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode == 0


def run_job(text: str) -> bool:
    """Prepares and calls every work of a job once, on the GPU; whether all of them could be."""
    job = json.loads(text)
    return all([_done(Work(**fields), job["by"]) for fields in job["works"]])


def _done(work: Work, by: str) -> bool:
    contender = next(x for x in (*ours.backends(), *peers(work, "cuda")) if x.by == by)
    forget_compiled()
    try:
        contender.prepare(work, make(work, "cuda"))()
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{work}, {by}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    torch.cuda.empty_cache()
    return True


if __name__ == "__main__":
    sys.exit(0 if run_job(sys.stdin.read()) else 1)
