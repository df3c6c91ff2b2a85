"""Two processes, or more, that work on one thing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(module: str, meeting: Path, timeout: float = 120, count: int = 2) -> None:
    """Runs `python -m module RANK FILE` twice, or `count` times; each has to end with the word `fine`."""
    words = [sys.executable, "-m", module]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(meeting)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        results = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for out, err in results:
        assert out.endswith("fine\n"), err
