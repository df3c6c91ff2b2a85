"""The command line for models."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from based_ops.cli import main
from tests.models.test_published import BASED, weights, written


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["models", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_list_and_info(tmp_path: Path) -> None:
    assert "based-1b" in run("list")
    rows = json.loads(run("list", "--json"))
    assert {"based-360m", "transformer-1b", "mamba2-360m"} <= {row["name"] for row in rows}
    assert "parameters: 1,349,531,904" in run("info", "based-1b")
    folder = written(tmp_path / "published", BASED | {"surprise": 1}, weights(BASED))
    found = json.loads(run("info", str(folder), "--json"))
    assert found["keys that nobody knows"] == ["surprise"] and found["layers"] == 4


def test_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("new", "mine", "--like", "hybrid-tiny")
    assert "layers: 2" in run("info", "mine.yaml")
    first = Path("mine.yaml").read_text(encoding="utf-8").splitlines()[0]
    schema = json.loads(Path(first.partition("$schema=")[2]).read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(Path("mine.yaml").read_text(encoding="utf-8")), schema)
    assert "exists already" in run("new", "mine", code=2)
    assert "must be lower-case" in run("new", "My Model", code=2)
    assert "no shipped model" in run("new", "other", "--like", "nope", code=2)


def test_convert(tmp_path: Path) -> None:
    folder = written(tmp_path / "published", BASED, weights(BASED))
    assert "keys without effect: fixed_decay" in run("convert", str(folder), str(tmp_path / "out"))
    assert "parameters: " in run("info", str(tmp_path / "out"))
    assert "no model" in run("convert", str(tmp_path / "nowhere"), str(tmp_path / "x"), code=2)
    assert "did you mean based-1b?" in run("info", "based-1B", code=2)
