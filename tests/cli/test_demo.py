"""Every part of the demonstration, at its smallest."""

from __future__ import annotations

from pathlib import Path

import pytest

from based_ops.demo import QUICK, run
from based_ops.demo.layer import declare, excerpt


def test_the_declared_layer_is_not_shipped(tmp_path: Path) -> None:
    from based_ops.codegen.spec.load import load_file

    spec = load_file(declare(tmp_path))
    assert not (Path(__file__).parents[2] / "specs" / f"{spec.name}.yaml").exists()


def test_excerpt_is_one_kernel() -> None:
    kernel = "@jit\ndef outputs_kernel(\n    q,\n):\n    a = q\n    return a"
    assert excerpt(f"import x\n\n\n{kernel}\n\n\ndef later():\n    pass\n") == kernel


@pytest.mark.slow
def test_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("based_ops.demo.layer.verify", lambda path, device: None)
    done = run(QUICK)
    text = capsys.readouterr().out
    assert done.before == pytest.approx(8.0, abs=1e-3) and done.after < done.before
    assert "expression: softplus(x)**2" in text and "def outputs" in text
    assert "bits a byte" in text and "key-value cache" in text
