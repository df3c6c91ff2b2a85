"""Tables of results in documents, each rewritten from the file that its marker names.

    <!-- from benchmarks/results/h200.json: based-ops bench tables -->
    ...
    <!-- end -->

A `.json` is what one run of `bench ops`, `generate`, `prefill` or `train` wrote, a `.csv` what `recall` did;
several of these, with commas between them, make one table of several tasks.
`thunderkittens.yaml` holds times that no command here measures; it says how they were taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from based_ops.recall.results import read as read_recall

from ..models import results
from ..models.tables import report_table
from ..recall.tables import recall_table, tasks_table
from ..train import results as training
from .report import described, dtype_of, label
from .results import Line, Report, Time, read

DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in ("models", "recall", "state-space", "training")))
BLOCK = re.compile(r"(<!-- from (\S+): based-ops bench tables -->\n).*?(<!-- end -->)", re.DOTALL)
GROUPS = (
    *("taylor", "training", "window", "maps", "widths", "decay", "wide", "convolution", "step"),
    *("packed", "grouped", "hybrid", "batch invariant"),
)
"""Groups that a document shows in full; of the others it shows the lines on which a peer is faster."""


def rewritten(text: str, root: Path) -> str:
    """The document with every block as its file below `root` says; `ValueError` names a bad file."""
    return BLOCK.sub(lambda block: block[1] + _block(block[2], root) + block[3], text)


def _block(names: str, root: Path) -> str:
    path, *others = (root / name for name in names.split(","))
    if others:
        return tasks_table([read_recall(x) for x in (path, *others)])
    if path.suffix == ".json":
        if training.is_one(path):
            return training.report_table(training.read(path))
        if results.is_one(path):
            return report_table(results.read(path))
        return report_tables(read(path))
    if path.suffix == ".csv":
        return recall_table(read_recall(path))
    return thunderkittens_table(path)


def report_tables(report: Report) -> str:
    """What was measured where, the lines of `GROUPS`, and every other line on which a peer is faster."""
    shown = [line for line in report.lines if line.group in GROUPS and line.own is not None]
    lost = [line for line in report.lines if line.faster_peers and line not in shown]
    compared = [line for line in report.lines if any(not time.ours for time in line.times)]
    beaten = [line for line in compared if line.faster_peers]
    usual = dtype_of(report)
    head = f"{described(report)}. Milliseconds; the fastest of a row is bold."
    count = f"A peer is faster on {len(beaten)} of the {len(compared)} lines that have one"
    text = [head, "", *_table(shown, usual), "", count + (", also on these:" if lost else ".")]
    if lost:
        text += ["", *_table(lost, usual)]
    return "\n".join(text) + "\n"


def _table(lines: Sequence[Line], usual: str) -> list[str]:
    columns = ("line", "ours", "of limit", "fastest peer, same layer", "full attention, another layer")
    return [_row(columns), _row(["---"] * len(columns)), *(_row(_cells(line, usual)) for line in lines)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(line: Line, usual: str) -> list[str]:
    own = line.own
    peers = [time for time in line.times if not time.ours]
    same = _fastest(time for time in peers if time.same)
    other = _fastest(time for time in peers if not time.same)
    best = _fastest([own, *peers]) if own is not None and peers else None

    def cell(time: Time | None, name: bool = True) -> str:
        if time is None:
            return ""
        text = f"{time.by} {_figures(time.ms)}" if name else _figures(time.ms)
        return f"**{text}**" if time is best else text

    percent = "" if own is None or own.percent is None else f"{own.percent:.0f} %"
    return [label(line.work, usual), cell(own, name=False), percent, cell(same), cell(other)]


def _fastest(times: Iterable[Time]) -> Time | None:
    return min(times, key=lambda time: time.ms, default=None)


def _figures(ms: float) -> str:
    """Three significant figures."""
    return f"{ms:#.3g}".rstrip(".")


def thunderkittens_table(path: Path) -> str:
    """Their times and ours, and what both are times of."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = []
    for row in data["rows"]:
        ours, theirs = row["ours"], row["thunderkittens"]
        rows.append((row["size"], str(ours), str(theirs), f"{theirs / ours:.1f}×"))
    columns = (f"`{data['ours']}` forward", "ours", "ThunderKittens", "times as fast")
    head = f"{data['device']}, {data['date']}, both in one process. Milliseconds."
    return "\n".join([head, "", _row(columns), _row(["---"] * len(columns)), *map(_row, rows)]) + "\n"
