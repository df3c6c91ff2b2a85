"""What was measured already, one JSON object a line, so that an interrupted search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""``{"ms": ..., "bytes": ...}`` of a candidate that is right, ``{"why": ...}`` of one that is not."""


class Journal:
    """Results by key.  A key names everything that a measurement depends on, so no entry grows stale."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: dict[str, Result] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line at which the process was killed
                self._results[entry["key"]] = entry["result"]
        else:
            path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Result | None:
        """The result of a candidate, if it was measured."""
        return self._results.get(key)

    def add(self, key: str, result: Result, about: Result) -> None:
        """Keep a result; `about` is for whoever reads the file."""
        self._results[key] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result} | about) + "\n")
