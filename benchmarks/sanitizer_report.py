"""What compute-sanitizer says of a process: see `sanitize`."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
