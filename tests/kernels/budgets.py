"""Files of what compiled kernels occupy."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).resolve().parent.parent / "budgets"


def recorded(text: str) -> dict[str, Any]:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def rewrite(path: Path, comment: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace what a file records; several workers may do so at once."""
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        changed = change(recorded(file.read()))
        file.seek(0)
        file.truncate()
        file.write(f"# {comment}\n")
        file.write(yaml.safe_dump(changed, sort_keys=False, default_flow_style=None, width=110))
