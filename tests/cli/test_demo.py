"""Every part of the demonstration, at its smallest."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from based_ops.cli import main
from based_ops.demo import QUICK, Settings, forecast, layer, run
from based_ops.demo.forecast import foresee
from based_ops.demo.layer import declare, excerpt
from based_ops.durations import spoken
from based_ops.tolerance import Tolerance


def test_the_declared_layer_is_not_shipped(tmp_path: Path) -> None:
    from based_ops.codegen.spec.load import load_file

    spec = load_file(declare(tmp_path))
    assert not (Path(__file__).parents[2] / "specs" / f"{spec.name}.yaml").exists()


def test_excerpt_is_one_kernel() -> None:
    kernel = "@jit\ndef outputs_kernel(\n    q,\n):\n    a = q\n    return a"
    assert excerpt(f"import x\n\n\n{kernel}\n\n\ndef later():\n    pass\n") == kernel


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (9.4, "9 s"), (33, "35 s"), (61, "1 min"), (118, "2 min"), (207, "3 min 25 s")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_the_forecast_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_step_seconds", lambda settings, device: 0.1)
    long, quick = foresee(Settings(), "cpu"), foresee(QUICK, "cpu")
    assert long.verify == pytest.approx(30) and long.train == pytest.approx(20 + 40)
    assert long.total == long.verify + long.train + long.write < 240
    assert quick.total < 30
    monkeypatch.setattr(forecast, "_step_seconds", lambda settings, device: 0.2)
    assert foresee(QUICK, "cpu").total == pytest.approx(2 * quick.total)


TINY = dict(steps=3, batch=2, length=48, held_out=2, written=12, context=64, long_context=256, timed=4)


def test_the_quick_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A new layer is declared, compiled, verified, trained with and decoded with."""
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    done = run(replace(QUICK, **TINY))
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert done.compiled_with is None and done.after < done.before == pytest.approx(8.0, abs=1e-3)
    assert lines[0].startswith("This takes about ")
    assert "expression: softplus(x)**2" in text and "def outputs" in text
    assert re.search(r"torch: \d+ tensors of 8 shapes, .*; largest error \d", text)
    assert re.search(r"layers window64_d64 and softplus_squared_[0-9a-f]{8}", text)
    assert re.search(r"step +3 of 3 .* bits a byte   about \d+ s left", text)
    assert "key-value cache" in text


def test_the_quick_one_ends_where_a_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    exact = layer.measure

    def wrong(*words: Any, **more: Any) -> list[Any]:
        return [replace(m, allowed=Tolerance(1e-12, 1e-12)) for m in exact(*words, **more)]

    monkeypatch.setattr(layer, "measure", wrong)
    with pytest.raises(SystemExit, match="not all kernels agree"):
        run(replace(QUICK, **TINY))


@pytest.mark.slow
def test_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("based_ops.demo.layer.verify", lambda path, device: None)
    done = run(replace(Settings(), **TINY))
    text = capsys.readouterr().out
    assert done.before == pytest.approx(8.0, abs=1e-3) and done.after < done.before
    assert done.compiled_with is not None
    assert "expression: softplus(x)**2" in text and "def outputs" in text
    assert "bits a byte" in text and "key-value cache" in text


def test_quick_is_an_option_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings | None] = []
    monkeypatch.setattr("based_ops.demo.run", asked.append)
    for words in ((), ("--quick",)):
        assert CliRunner().invoke(main, ["demo", *words]).exit_code == 0
    assert asked == [None, QUICK]
