"""Measures point by point, each model in a process of its own: what fails costs its own number alone."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ..ops.measure import Ceilings
from . import hub
from .points import Point, of_one_model
from .results import Line, Missing, Report

Say = Callable[[str], None]
PATIENCE = 300.0
"""Seconds without a word after which a process is ended; compiling a whole model is the longest silence."""
COMMAND = [sys.executable, "-m", "based_ops.benchmarks.models.worker"]


def run(
    points: Sequence[Point],
    device: str,
    minutes: float,
    say: Say,
    save: Callable[[Report], None] = lambda report: None,
    earlier: Report | None = None,
) -> Report:
    """Measures the points that can be begun within `minutes`; `save` gets what there is after each.

    What `earlier` has is kept, but what failed is tried again; `ValueError` unless it is of this machine and
    this code.
    """
    begin = time.monotonic()
    until = time.time() + 60 * minutes
    job = {"device": device, "until": until, "points": []}
    start: dict[str, Any] = next(_words(job), {"missing": "the process that measures has ended"})
    if "machine" not in start:
        raise RuntimeError(f"nothing can be measured: {start.get('missing')}")
    about, ceilings = start["machine"], Ceilings(**start["ceilings"])
    lines: dict[Point, Line] = {}
    missing: dict[Point, Missing] = {}
    spent = 0.0
    if earlier is not None:
        _require_same(earlier, points[0].task, about)
        about = {**about, **{key: x for key, x in earlier.machine.items() if x is not None}}
        ceilings, spent = earlier.ceilings, earlier.seconds
        lines = {line.point: line for line in earlier.lines}
        missing = {x.point: x for x in earlier.missing if x.final}
    product = f"{ceilings.matmul_dtype} product {ceilings.matmul_tflop_s:.1f} TFLOP/s"
    say(f"copy {ceilings.copy_gb_s:.0f} GB/s, {product}")

    def report() -> Report:
        left = [str(point) for point in points if point not in lines and point not in missing]
        seconds = spent + time.monotonic() - begin
        return Report(
            points[0].task, about, ceilings, list(lines.values()), list(missing.values()), left, seconds
        )

    def leave_out(point: Point, reason: str, final: bool) -> None:
        missing[point] = Missing(point, reason, final)
        say(f"{point} | {reason}")

    for model, group in of_one_model(points):
        waiting = [point for point in group if point not in lines and point not in missing]
        if waiting and (reason := hub.missing(model)):
            for point in waiting:
                leave_out(point, reason, final=False)
            save(report())
            continue
        while waiting and time.time() < until:
            job = {"device": device, "model": model, "until": until, "ceilings": asdict(ceilings)}
            for found in _words(job | {"points": [asdict(point) for point in waiting]}):
                if "begin" in found:
                    continue
                point = waiting.pop(0)
                if "line" in found:
                    lines[point] = line = _line(found["line"])
                    rate = f"{line.tokens_per_second:.0f} tokens/s"
                    say(f"{point} | {line.ms:.3f} ms | {rate} | {line.percent:.0f} % of limit")
                else:
                    leave_out(point, found["missing"], found["final"])
                save(report())
    return report()


def _line(fields: dict[str, Any]) -> Line:
    return Line(**{**fields, "point": Point(**fields["point"])})


def _words(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a process says of a job.  If it ends or falls silent, the point that it had begun is missing."""
    with subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        heard: queue.Queue[str | None] = queue.Queue()

        def listen(stdout: Any) -> None:
            for text in stdout:
                heard.put(text)
            heard.put(None)

        threading.Thread(target=listen, args=(process.stdout,), daemon=True).start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job))
                process.stdin.close()
            begun = spoken = False
            while True:
                try:
                    text = heard.get(timeout=PATIENCE)
                except queue.Empty:
                    yield {"missing": f"no answer for {PATIENCE:.0f} s", "final": False}
                    return
                if text is None:
                    break
                if text.startswith("{"):  # compilers speak too
                    found = json.loads(text)
                    begun, spoken = "begin" in found, True
                    yield found
            if begun or (process.wait() != 0 and not spoken):
                yield {"missing": f"its process ended with {process.wait()}", "final": False}
        finally:
            with suppress(ProcessLookupError):  # and whatever it has started
                os.killpg(process.pid, signal.SIGKILL)


def _require_same(earlier: Report, task: str, now: dict[str, Any]) -> None:
    """Raises `ValueError` where something but the date differs from an earlier run.

    A package that it did not have took no part in it, so that it may be there now.
    """
    if earlier.task != task:
        raise ValueError(f"a result of bench {earlier.task}")
    for key in dict.fromkeys((*earlier.machine, *now)):
        if key != "date" and earlier.machine.get(key) not in (None, now.get(key)):
            what = f"{key} {earlier.machine.get(key)}, here {now.get(key)}"
            raise ValueError(f"a run of other code or of another machine: {what}")
