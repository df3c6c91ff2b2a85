"""A command line to call in tests, and places to write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from based_ops.cli import main

GOOD = """\
name: {name}
mixer: linear_attention
feature_map: {{kind: elementwise, expression: {expression}}}
head_dims: {{qk: 16, v: 32}}
"""

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def compiled_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process must not turn on Triton's interpreter for the tests after them."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture
def run() -> Run:
    """Calls the command line with words; `code` is the exit code to expect."""

    def call(*words: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """A user's directory with two specs."""
    directory = tmp_path / "my_specs"
    directory.mkdir()
    for name, expression in (("first_layer", "relu(x)"), ("second_layer", "x**2")):
        text = GOOD.format(name=name, expression=expression)
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
