"""Blocks of pages that a reader would type run, in their order, in a directory that holds nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w+)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S
)
PAGES = ("start.md", "errors.md", "long-conv.md", "command-line.md", "serving.md", "from-other-libraries.md")
"""Pages of which every block of Python and shell runs, or says why not."""

PROGRAM = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for kind, text in json.load(sys.stdin):
    if kind == "python":
        exec(compile(text, "<page>", "exec"), names)
    else:
        sys.stdout.flush()
        subprocess.run(["sh", "-eu", "-c", text], check=True)
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """What a page shows and wants to be run: the language and the text of each block."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = [x for x in BLOCK.finditer(text) if x["kind"] in ("python", "sh")]
    return [(x["kind"], x["text"]) for x in found if not x["why"]]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in (("python", ""), ("based-ops", "-m based_ops")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    around = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "BASED_OPS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=fresh,
        env=os.environ | around,
        input=json.dumps(blocks(page)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_start_is_all_run_but_its_installation() -> None:
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    left = [x["text"] for x in BLOCK.finditer(text) if x["why"]]
    assert len(left) == 1 and "pip install" in left[0]
    assert len(blocks("start.md")) >= 7
