"""The README: every block runs, verbatim and by itself, in a directory that holds nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from based_ops.cli import main
from based_ops.cli.bench import bench

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "sh"]
ELSEWHERE = {
    "pip install": "needs the network; `test_the_extras_are_there` asks the distribution instead",
    "make ": "makes an environment and runs for minutes; `test_the_targets_are_there` asks make instead",
}
"""Beginnings of blocks that are not run, and why."""


def elsewhere(text: str) -> bool:
    """Whether every line of a block is checked by other means."""
    lines = [line for line in text.splitlines() if line]
    return all(line.startswith(tuple(ELSEWHERE)) for line in lines)


def test_no_block_is_of_another_kind() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh", ""}
    (picture,) = [text for language, text in BLOCKS if not language]
    assert picture.startswith("specs/*.yaml ──load──▶")
    assert len(PYTHON) >= 4 and len(SHELL) >= 3
    assert [elsewhere(text) for text in SHELL].count(False) >= 1


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `python` and `based-ops` are those that run the tests."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in (("python", ""), ("based-ops", "-m based_ops")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "BASED_OPS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def run(words: list[str], directory: Path, environment: dict[str, str]) -> str:
    directory.mkdir()
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_python(text: str, tmp_path: Path, environment: dict[str, str]) -> None:
    run([sys.executable, "-c", text], tmp_path / "fresh", environment)


@pytest.mark.parametrize("text", [text for text in SHELL if not elsewhere(text)])
def test_shell(text: str, tmp_path: Path, environment: dict[str, str]) -> None:
    printed = run(["sh", "-eu", "-c", text], tmp_path / "fresh", environment)
    assert "based_ops variant my_layer" in printed


def test_the_extras_are_there() -> None:
    named = set(re.findall(r"`\[([a-z]+)\]`", README))
    known = set(metadata("based-ops").get_all("Provides-Extra") or ())
    assert {"compile", "cli", "tilelang", "all"} <= named <= known
    installs = [text for text in SHELL if text.startswith("pip install")]
    assert installs == ["pip install -e '.[compile]'\n"], "the extra of the first example"
    assert "based_ops.load(" in PYTHON[0]


def test_the_targets_are_there() -> None:
    texts = "".join(text for text in SHELL if elsewhere(text))
    targets = re.findall(r"^make (\w+)", texts, re.MULTILINE)
    assert targets == ["quick", "demo", "test"]
    for target, command in zip(
        targets, ("based-ops demo --quick\n", "based-ops demo\n", "pytest"), strict=True
    ):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and command in done.stdout, done.stdout + done.stderr


def test_the_table_of_commands_is_that_of_the_command_line() -> None:
    rows = re.findall(r"^\| `based-ops ([a-z]+)", README, re.MULTILINE)
    assert set(rows) == set(main.commands)
    assert set(re.findall(r"bench ([a-z]+)`", README)) == set(bench.commands)


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for pair in re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", text):
            target = "".join(pair)
            assert target.startswith("http") or (path.parent / target).exists(), f"{path}: {target}"


def test_limits_stand_before_numbers() -> None:
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert titles[:3] == ["What it computes", "When to use it, and when another library", "Limits"]
    assert titles[-1] == "Measured"
