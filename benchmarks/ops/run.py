"""Measures line by line; what fails costs its own number, and time running out costs the lines not begun."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from based_ops.inputs import taken

from . import measure, ours
from .contender import Contender, Results, forget_compiled
from .floors import floor
from .inputs import Inputs, another, another_state, make
from .measure import SWEEP, TABLE, Ceilings
from .peers import peers, too_long
from .results import Line, Report, Time, machine, with_speedups
from .works import Entry, Target, Work

Say = Callable[[str], None]
SHARE_OF_COMPILING = 0.4
"""Of the time that is given, what compiling ahead may take."""


class DeviceLost(Exception):
    """The device answers nothing any more, so nothing after this can be measured in this process."""


def run(
    entries: Sequence[Entry],
    device: str,
    minutes: float,
    say: Say,
    save: Callable[[Report], None] = lambda report: None,
    earlier: Report | None = None,
) -> Report:
    """Measures the entries that can be begun within `minutes`; `save` gets what there is after each line.

    The lines of `earlier`, a run that ran out of time, are kept; `ValueError` unless it is of this machine
    and this code.
    """
    begin, spent = time.monotonic(), 0.0
    end = begin + 60 * minutes
    about = machine(device)
    lines: dict[Work, Line] = {}
    if earlier is not None:
        _require_same(earlier.machine, about)
        about, spent = earlier.machine, earlier.seconds
        lines = {line.work: line for line in earlier.lines}
    waiting = [entry for entry in entries if entry.work not in lines]
    if device == "cuda":
        from .warm import compile_ahead

        say("compiling ahead")
        compile_ahead(waiting, 60 * minutes * SHARE_OF_COMPILING, say)
    found = measure.ceilings(device) if earlier is None else earlier.ceilings
    say(f"copy {found.copy_gb_s:.0f} GB/s, {found.matmul_dtype} product {found.matmul_tflop_s:.1f} TFLOP/s")
    lost = False

    def report() -> Report:
        left = [str(entry.work) for entry in entries if entry.work not in lines]
        seconds = spent + time.monotonic() - begin
        return Report(about, found, judged(lines, entries, found), left, seconds)

    for entry in waiting:
        if time.monotonic() > end or lost:
            break
        try:
            lines[entry.work] = measure_line(entry, device, found, say)
        except DeviceLost as error:
            say(f"{entry.work}: the device is lost: {error}")
            lost = True
        save(report())
    return report()


def _require_same(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `ValueError` where something but the date differs between the machines of two runs."""
    for key in dict.fromkeys((*earlier, *now)):
        if key != "date" and earlier.get(key) != now.get(key):
            raise ValueError(
                f"a run of other code or of another machine: {key} {earlier.get(key)}, here {now.get(key)}"
            )


def measure_line(entry: Entry, device: str, ceilings: Ceilings, say: Say) -> Line:
    """Everybody's time on one piece of work."""
    work = entry.work
    least = floor(work)
    limit = least.limit_ms(ceilings.copy_gb_s, ceilings.matmul_tflop_s)
    times: list[Time] = []
    missing: dict[str, str] = {}

    def leave_out(who: str, reason: str) -> None:
        missing[who] = reason
        say(f"{work} | {who} | {reason}")

    forget_compiled()
    own = ours.backends()
    everybody: Sequence[Contender] = (*own, *peers(work, device))
    try:
        inputs = make(work, device)
        exact = ours.expected(work, inputs)
    except Exception as error:  # memory, most likely
        leave_out("everybody, for want of inputs or of a reference", _in_one_line(error))
        everybody = ()
        _still_there(device)
    for contender in everybody:
        long = too_long(contender, work, device, ceilings.matmul_tflop_s)
        reason = contender.why_not(entry, device) or long
        if reason is not None:
            leave_out(contender.by, reason)
            continue
        try:
            ms, peak = _measure(contender, entry, device, inputs, exact)
        except Exception as error:  # another library's limits, memory, a kernel that is wrong
            leave_out(contender.by, _in_one_line(error))
            _still_there(device)
            continue
        found = Time(contender.by, contender in own, contender.same, ms, peak_mib=peak)
        if contender.same and work.clock != "host":
            rates = least.bytes / ms / 1e6, least.flops / ms / 1e9
            found = replace(found, gb_s=rates[0], tflop_s=rates[1], percent=100 * limit / ms)
        times.append(found)
        share = "" if found.percent is None else f" | {found.percent:.0f} % of limit"
        say(f"{work} | {contender.by} | {ms:.4f} ms{share}")
    if device == "cuda":
        torch.cuda.empty_cache()
    return Line(
        entry.group,
        entry.sweep,
        work,
        least.bytes,
        least.flops,
        limit,
        ours.default(work, device),
        with_speedups(times),
        missing,
    )


def _measure(
    contender: Contender, entry: Entry, device: str, inputs: Inputs, exact: Results
) -> tuple[float, float | None]:
    """Milliseconds and peak memory of one contender, whose results are looked at first."""
    work = entry.work
    effort = SWEEP if entry.sweep else TABLE
    # A step changes its state, which the others still need.
    own_inputs = another_state(inputs) if work.task == "step" else inputs
    call = contender.prepare(work, own_inputs)
    results = call()
    if isinstance(contender, ours.Ours):
        fault = ours.fault(work, results, exact)
        if fault is not None:
            raise WrongResult(fault)
    elif contender.same:
        _same_sizes(results, work)
    del results
    peak = measure.peak_mib(call, device)
    if work.clock == "host":
        return measure.host_ms(call, device, effort), peak
    if work.clock == "graph":
        count = measure.copies_beyond_cache(inputs.bytes)
        calls = [contender.prepare(work, another(inputs)) for _ in range(count)]
        return measure.graph_ms(calls, effort), peak
    return measure.device_ms(call, device, effort), peak


class WrongResult(Exception):
    """A contender computes something else."""


def _same_sizes(results: Results, work: Work) -> None:
    """Peers are held to sizes alone; their accuracy is their own affair."""
    kinds = taken(work.op) if work.task == "training" else [work.op.signature.output]
    got = [x.numel() for x in results]
    must = [math.prod(work.shape(kind)) for kind in kinds]
    if got != must:
        raise WrongResult(f"wrong: results of {got} numbers, must be of {must}")


def judged(lines: dict[Work, Line], entries: Sequence[Entry], ceilings: Ceilings) -> list[Line]:
    """The lines with targets in milliseconds, as far as what those refer to has been measured."""
    targets = {entry.work: entry.target for entry in entries}
    return [
        replace(line, target_ms=target_ms(line, targets[work], lines, ceilings)) if work in targets else line
        for work, line in lines.items()
    ]


def target_ms(line: Line, target: Target | None, lines: dict[Work, Line], ceilings: Ceilings) -> float | None:
    """A target as milliseconds; None if there is none, or if it hangs on a line without a time."""
    if target is None or target.ms is not None:
        return None if target is None else target.ms
    if target.copy_share is not None:
        return line.bytes / (target.copy_share * ceilings.copy_gb_s * 1e6)
    others = [lines[work] for work in target.of if work in lines]
    owns = [other.own.ms for other in others if other.own is not None]
    if not owns or len(owns) < len(target.of) or target.times is None:
        return None
    scale = line.limit_ms / sum(other.limit_ms for other in others) if target.per_limit else 1.0
    return target.times * sum(owns) * scale


def _in_one_line(error: Exception) -> str:
    if isinstance(error, WrongResult):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]


def _still_there(device: str) -> None:
    """Raises `DeviceLost` if an error of a kernel has left the device unusable."""
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise DeviceLost(_in_one_line(error)) from error
