"""What commands import before they say anything, and when they say it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from based_ops.cli.console import growing_table
from based_ops.codegen.spec.load import load_file
from based_ops.codegen.spec.model import spec_to_dict

from .conftest import GOOD, Run

START = """
import sys
sys.argv = ["/usr/bin/based-ops", *{words!r}]
from based_ops.cli import main
try:
    main()
except SystemExit:
    pass
print(*[name for name in ("torch", "sympy") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["--help"], ""),
        (["doctor", "--help"], ""),
        (["show", "window64_d64"], ""),
        (["show", "relu_qk64_v64", "--stage", "spec"], "sympy"),
        (["list"], "sympy"),
        (["new", "mine", "--map", "relu(x)", "--specs", "{tmp}/new"], "sympy"),
        (["generate", "--specs", "{tmp}", "--out", "{tmp}/kernels", "no_such_layer"], ""),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_commands_that_need_no_pytorch_do_not_wait_for_it(
    words: list[str], loaded: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text(GOOD.format(name="other", expression="relu(x)"))
    words = [word.format(tmp=tmp_path) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", START.format(words=words)], capture_output=True, text=True, timeout=120
    )
    assert done.stderr.splitlines()[-1] == loaded, done.stderr


def test_the_module_waits_as_the_command_does() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "based_ops", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "based_ops.cli" in imported and "torch" not in imported


def test_operators_are_there_once_a_command_asks() -> None:
    code = """
import sys
sys.argv = ["based-ops"]
import based_ops
assert "torch" not in sys.modules
names = based_ops.names()
import torch
for name in names:
    getattr(torch.ops.based_ops, f"{name}_forward").default
assert based_ops.errors.SpecErrors and based_ops.Variant and based_ops.LinearAttentionState
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 5, done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    with growing_table(("name", "error"), (8, 4), as_json) as add:
        seen = capsys.readouterr().out
        for row in (("first", 0.25), ("second", float("nan"))):
            add(row)
            new = capsys.readouterr().out
            assert row[0] in new
            seen += new
    seen += capsys.readouterr().out
    if as_json:
        rows = [{"name": "first", "error": 0.25}, {"name": "second", "error": "nan"}]
        assert json.loads(seen) == rows and seen.count("\n") == 4
    else:
        assert [line.split() for line in seen.splitlines()] == [
            ["name", "error"],
            ["first", "2.5e-01"],
            ["second", "nan"],
        ]


def test_a_table_without_rows_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    with growing_table(("name",), (4,), as_json=True):
        pass
    assert json.loads(capsys.readouterr().out) == []


def test_json_of_every_command_with_a_table(
    run: Run, specs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    layer = specs / "first_layer.yaml"
    rows = json.loads(run("list", "--specs", specs, "--json").stdout)
    assert rows[0]["name"] == "first_layer" and rows[0]["dtypes"] == ["bfloat16", "float16", "float32"]
    assert json.loads(run("show", layer, "--json").stdout) == spec_to_dict(load_file(layer))
    chosen = json.loads(run("show", layer, "--stage", "schedule", "--json").stdout)
    assert {row["module"] for row in chosen} >= {"triton", "torch"}
    assert "is text" in run("show", layer, "--stage", "torch", "--json", code=2).stderr
    found = json.loads(run("doctor", "--json").stdout)
    assert found.keys() == {"versions", "here", "backends"}
    assert all(type(backend["runs here"]) is bool for backend in found["backends"])
    options = ("--backend", "torch", "--device", "cpu", "--dtype", "float32", "--json")
    (row,) = json.loads(run("verify", layer, *options).stdout)
    assert row["verdict"] == "ok" and 0 < row["forward"] < 1e-5 and row["q, k"] == "N(0, 1)"


def test_list_says_what_a_weight_is(run: Run) -> None:
    lines = {line.split()[0]: line for line in run("list").stdout.splitlines()}
    assert "s·φ(q)·φ(k), φ(x) = x**2" in lines["square_qk64_v64"]
    assert "1 + s·q·k + (s·q·k)²/2" in lines["taylor2_qk16_v64"]
    assert "softmax over 64 keys" in lines["window64_d64"]


def test_verify_says_what_normal_numbers_make_of_weights_of_both_signs(
    run: Run, specs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    options = ("--backend", "torch", "--device", "cpu", "--dtype", "float32")
    signed, undefined = ("signed", "x", "times the largest value"), ("undefined", "log(x)", "are NaN")
    for name, expression, says in (signed, undefined):
        text = GOOD.format(name=name, expression=expression)
        (specs / f"{name}.yaml").write_text(text)
        assert "both signs" not in run("verify", specs / f"{name}.yaml", *options, code=2).stdout
        (specs / f"{name}.yaml").write_text(text + "signed_weights: true\n")
        lines = run("verify", specs / f"{name}.yaml", *options).stdout.splitlines()
        assert lines[1].endswith("ok") and "N(" in lines[1] and "N(0, 1)" not in lines[1]
        assert "weights have both signs: where q, k are N(0, 1) outputs" in lines[2] and says in lines[2]


def test_doubts_about_a_spec_are_lines_of_their_own(run: Run, specs: Path) -> None:
    path = specs / "first_layer.yaml"
    path.write_text(path.read_text().replace("relu(x)", "'minimum(x, 0) + 3'"))
    result = run("show", path)
    assert result.stderr.startswith(f"warning: {path}:") and result.stderr.count("\n") == 1
    assert click.unstyle(result.stdout).startswith("name: first_layer")


def test_new_does_not_normalise_what_can_cancel(run: Run, tmp_path: Path) -> None:
    assert "`normalize` is false" in run("new", "mine", "--map", "x", "--specs", tmp_path).stdout
    assert getattr(load_file(tmp_path / "mine.yaml"), "normalize", None) is False
    run("new", "wanted", "--map", "x", "--set", "signed_weights=true", "--specs", tmp_path)
    assert getattr(load_file(tmp_path / "wanted.yaml"), "normalize", None) is True
