"""How the command line speaks: completion, progress in pipes, what to do next, and reports of bugs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from based_ops.cli import console
from based_ops.cli.completion import SHELLS
from based_ops.durations import spoken

from .conftest import Run


def completed(*words: str) -> list[str]:
    """What a shell is told for the last of these words."""
    asked = {"_BASED_OPS_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
    around = {**os.environ, **asked, "COMP_WORDS": " ".join(("based-ops", *words))}
    code = "import sys; sys.argv = ['based-ops']; from based_ops.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=around, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(run: Run, shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_BASED_OPS_COMPLETE" in script and "%(" not in script


def test_names_of_layers_and_models_are_completed(specs: Path) -> None:
    assert completed("show", "taylor2_qk16_v6") == ["plain,taylor2_qk16_v64"]
    assert completed("verify", "--specs", "x", f"{specs}/f") == [f"file,{specs}/f"]
    assert completed("models", "info", "based-t") == ["plain,based-tiny"]
    assert completed("show", "--specs", str(specs), "fi") == ["plain,first_layer"]
    assert "plain,report" in completed("rep")


def test_progress_in_a_pipe_is_a_line_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 1.0, 5.0, 6.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.progress("working", 5) as begin:
        for name in ("a", "b", "c", "d"):
            begin(name)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "working 2 of 5: b, about 20 s left",
        f"working 4 of 5: d, about {spoken(20 / 3 * 2)} left",
    ]


def test_an_error_is_followed_by_what_to_do(run: Run, tmp_path: Path) -> None:
    lines = run("show", str(tmp_path / "none.yaml"), code=2).stderr.splitlines()
    assert lines[-1].startswith("next: docs/spec-reference.md") and len(lines) == 2


def test_a_report_holds_what_is_listed_and_nothing_private(
    run: Run, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, out, log = tmp_path / "home_of_somebody", tmp_path / "report.zip", tmp_path / "mine.log"
    home.mkdir()
    log.write_text(f"opened {home}/data\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BASED_OPS_CACHE", raising=False)
    monkeypatch.setenv("BASED_OPS_BACKEND", "torch")
    monkeypatch.setenv("SECRET_TOKEN", "hidden-value")
    said = run("report", specs / "first_layer.yaml", "--out", out, "--log", log, "--json").stdout
    assert {"doctor.json", "logs/mine.log"} <= {row["file"] for row in json.loads(said)}
    with zipfile.ZipFile(out) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    listed = json.loads(texts.pop("contents.json"))
    assert listed == {name: len(text.encode()) for name, text in texts.items()}
    assert {"doctor.json", "environment.json", "verify.json", "verify.json.log", "logs/mine.log"} <= set(
        texts
    )
    assert {name for name in texts if name.startswith("stages/") and not name.endswith(".log")} == {
        f"stages/{name}" for name in ("spec.yaml", "program.txt", "schedule.txt")
    } | {f"stages/{name}.py" for name in ("triton", "gluon", "tilelang", "torch")}
    assert "backends" in json.loads(texts["doctor.json"])
    assert json.loads(texts["verify.json"])[0]["verdict"] == "ok"
    assert "cache: first_layer_" in texts["verify.json.log"]
    assert json.loads(texts["environment.json"])["BASED_OPS_BACKEND"] == "torch"
    everything = "".join(texts.values())
    assert "hidden-value" not in everything and str(home) not in everything
    assert texts["logs/mine.log"] == "opened ~/data\n"
    assert "is there already" in run("report", "--out", out, code=1).stderr


def test_a_report_of_a_wrong_spec_holds_its_errors(run: Run, tmp_path: Path) -> None:
    wrong, out = tmp_path / "wrong.yaml", tmp_path / "report.zip"
    wrong.write_text("name: wrong\nmixer: linear_attention\n")
    run("report", wrong, "--out", out)
    with zipfile.ZipFile(out) as archive:
        said = archive.read("stages/program.txt.log").decode()
    assert "missing" in said and "exit code 2" in said
