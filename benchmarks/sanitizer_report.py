"""What compute-sanitizer says of a process, and the record of all: see `sanitize`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """What a tool said of a process: errors (or hazards), and in which forms; or why it says nothing."""

    errors: int | None
    forms: tuple[str, ...] = ()
    failed: str = ""


SUMMARY = re.compile(
    r"^=+ (?:ERROR SUMMARY: (?P<errors>\d+) errors?|RACECHECK SUMMARY: (?P<hazards>\d+) hazards? displayed)",
    re.MULTILINE,
)
REPORTED = re.compile(r"^=+ (?:Invalid |Error: |Warning: |Barrier error|Program hit|Uninitialized )")


def parsed(text: str) -> Found:
    """What the output of a process under compute-sanitizer says."""
    summaries = [*SUMMARY.finditer(text)]
    if not summaries:
        lines = [line for line in text.splitlines() if line.strip()]
        return Found(None, failed=f"no summary; it ended with: {lines[-1] if lines else 'nothing'}")
    form, forms = "", list[str]()
    for line in text.splitlines():
        if line.startswith("form: "):
            form = line.removeprefix("form: ")
        elif REPORTED.match(line) and form not in forms:
            forms.append(form)
    raised = re.search(r"^Traceback .*?^(\w[\w.]*: .*?)$", text, re.MULTILINE | re.DOTALL)
    count = sum(int(summary["errors"] or summary["hazards"] or 0) for summary in summaries)
    return Found(count, tuple(forms), f"raised {raised[1]}" if raised else "")


def write(about: dict[str, Any], found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    document = {"task": "sanitize", "machine": about, "found": found}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def summary(found: dict[str, Any], tools: Sequence[str]) -> list[str]:
    """A line for each process that found something or failed, and the sum of the others for each tool."""
    lines = []
    for tool in tools:
        mine = {name: x for name, x in found.items() if name.startswith(f"{tool} ")}
        clean = [name for name, x in mine.items() if x["errors"] == 0 and not x["failed"]]
        for name in (name for name in mine if name not in clean):
            x = mine[name]
            what = x["failed"] or f"{x['errors']} errors in {', '.join(x['forms']) or 'no form'}"
            lines.append(f"{name}: {what}")
        lines.append(f"{tool}: {len(clean)} of {len(mine)} processes without an error")
    return lines
