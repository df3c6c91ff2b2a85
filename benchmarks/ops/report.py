"""A report as tables for people."""

from __future__ import annotations

from collections import Counter

from .results import Line, Report, Time
from .works import Work

COLUMNS = ("line", "by", "ms", "GB/s", "TFLOP/s", "% of limit", "MiB", "target ms", "fastest peer")


def rows(report: Report) -> list[tuple[str, ...]]:
    """One row for each contender on each line."""
    return [_row(line, time) for line in report.lines for time in line.times]


def _row(line: Line, time: Time) -> tuple[str, ...]:
    target = ""
    if time.by == line.default and line.target_ms is not None:
        target = f"{line.target_ms:.4f} {'met' if line.met else 'MISSED'}"
    peer = ""
    if time.speedup:
        fastest = min(time.speedup, key=lambda by: time.speedup[by])
        peer = f"{time.speedup[fastest]:.2f}x {fastest}"
    return (
        str(line.work),
        time.by + (" (default)" if time.by == line.default else ""),
        f"{time.ms:.4f}",
        _number(time.gb_s, 0),
        _number(time.tflop_s, 1),
        _number(time.percent, 0),
        _number(time.peak_mib, 1),
        target,
        peer,
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def described(report: Report) -> str:
    """On what and when a report was measured, and the hash of the compiler whose kernels it measures."""
    machine = report.machine
    names = {"torch": "torch", "triton": "Triton", "tilelang": "TileLang", "fla-core": "fla-core"}
    versions = [f"{name} {machine[key]}" for key, name in names.items() if machine.get(key)]
    about = (machine.get("device"), dtype_of(report), machine.get("date") or "date not recorded", *versions)
    return ", ".join(map(str, about)) + f"; compiler {machine.get('compiler') or 'not recorded'}"


def dtype_of(report: Report) -> str:
    """The dtype of most lines; the others name theirs."""
    return Counter(line.work.dtype for line in report.lines).most_common(1)[0][0]


def label(work: Work, usual: str) -> str:
    """A line's name, without its dtype if that is the usual one."""
    return str(work).replace(f" {usual}", "")


def summary(report: Report) -> list[str]:
    """What the lines come to: machine, ceilings, targets, faster peers, and what has no number."""
    about = ", ".join(f"{key} {value}" for key, value in report.machine.items() if value is not None)
    found = report.ceilings
    judged = [line for line in report.lines if line.met is not None]
    missed = [line for line in judged if not line.met]
    beaten = [line for line in report.lines if line.faster_peers]
    text = [
        about,
        f"copy {found.copy_gb_s:.0f} GB/s, {found.matmul_dtype} product {found.matmul_tflop_s:.1f} TFLOP/s",
        f"{len(report.lines)} lines in {report.seconds:.0f} s; "
        f"targets met: {len(judged) - len(missed)} of {len(judged)}; "
        f"lines on which a peer is faster: {len(beaten)}",
    ]
    for line in missed:
        over = "no time" if line.over_target is None else f"{line.over_target:.2f} times its target"
        text.append(f"missed: {line.work}: {over}")
    text += [f"a peer is faster: {line.work}: {', '.join(line.faster_peers)}" for line in beaten]
    text += [f"no number: {by}: {reason} ({where})" for (by, reason), where in _missing(report).items()]
    text += [f"not measured: {name}" for name in report.not_measured]
    return text


def _missing(report: Report) -> dict[tuple[str, str], str]:
    """Who has no number and why, with the line, or how many lines."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in report.lines:
        for by, reason in line.missing.items():
            found.setdefault((by, reason), []).append(str(line.work))
    return {key: names[0] if len(names) == 1 else f"{len(names)} lines" for key, names in found.items()}
