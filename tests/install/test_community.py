"""What others' tools read: workflows, hooks, and the page of what has run where, held against results."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SUPPORT = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_may_do_little(path: Path) -> None:
    """Read the code, once it is theirs, and nothing else; and end."""
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {}
    for job in jobs(path).values():
        assert job["permissions"] == {"contents": "read"} and job["timeout-minutes"]
    for step in steps(path):
        assert step.get("uses", "actions/").startswith("actions/"), "others' are pinned by hash"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def targets() -> set[str]:
    found = "".join(step.get("run", "") + "\n" for path in WORKFLOWS for step in steps(path))
    found += (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    return set(re.findall(r"\bmake ([a-z-]+)", found))


@pytest.mark.parametrize("target", sorted(targets() - {"once"}))
def test_targets_are_there(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_hooks_are_the_tools_of_lint() -> None:
    lint = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    for hook in hooks:
        command = hook["entry"].removesuffix(" --fix")
        assert command in lint or "generate --check" in command or command == "make lint-workflows"


def test_pythons_that_are_tested_are_those_that_are_claimed() -> None:
    tested = set(jobs(ROOT / ".github" / "workflows" / "ci.yml")["test"]["strategy"]["matrix"]["python"])
    said = metadata("based-ops").get_all("Classifier") or []
    assert tested == set(re.findall(r"Python :: (\d\.\d+)", " ".join(said)))
    assert tested == set(re.findall(r"^\| (3\.\d+) \|", SUPPORT, re.MULTILINE))


def test_the_support_page_says_what_results_say() -> None:
    """Its rows are the machines of the committed results, and the versions of development."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:6]] for line in re.findall(r"^\| 3\..*$", SUPPORT, re.M)
    ]
    said = {(row[0], row[1].partition(",")[0], row[2]) for row in rows}
    found = set()
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
        python = ".".join(machine["python"].split(".")[:2])
        found.add((python, machine["torch"].partition("+")[0], machine["triton"]))
    assert said == found
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    developed = next(row for row in rows if "CPU" in row[4])
    for package, version in zip(("torch", "triton", "tilelang"), developed[1:4], strict=True):
        assert f"\n{package}=={version.partition(',')[0]}\n" in pins
    matrix = jobs(ROOT / ".github" / "workflows" / "ci.yml")["torch"]["strategy"]["matrix"]["include"]
    assert {(entry["torch"], entry["triton"]) for entry in matrix} == {row[1:] for row in said}
