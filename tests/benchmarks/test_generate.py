"""The benchmark of generation, on the tiny models."""

from __future__ import annotations

import json

from click.testing import CliRunner

from based_ops.benchmarks.generate import measure
from based_ops.cli import main


def test_states_of_constant_size() -> None:
    lines = list(measure(["based-tiny", "transformer-tiny"], [2], [8, 64], 3, "cpu"))
    based, others = lines[:2], lines[2:]
    assert [line.model for line in lines] == ["based-tiny"] * 2 + ["transformer-tiny"] * 2
    assert based[0].state_mb == based[1].state_mb
    assert others[1].state_mb > 4 * others[0].state_mb
    for line in lines:
        assert line.step_ms > 0 and line.prompt_ms > 0 and 0 < line.limit_ms < line.step_ms
        assert abs(line.tokens_per_second - 2e3 / line.step_ms) < 1e-6 * line.tokens_per_second


def test_the_command() -> None:
    options = [
        "bench",
        "generate",
        "--device",
        "cpu",
        "--model",
        "based-tiny",
        "--batch",
        "1",
        "--prompt",
        "4",
    ]
    result = CliRunner().invoke(main, [*options, "--new", "2", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.output)
    assert row["model"] == "based-tiny" and row["batch"] == 1 and row["step ms"] > 0
