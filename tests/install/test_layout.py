"""A clone, an editable install and a wheel hold the same packages, for Python and for type checkers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Installed

ROOMS = ("benchmarks", "codegen", "generated", "specs")

USE = """
import json
import torch, based_ops, based_ops.layers
from based_ops.cli.places import checkout, shipped_specs
from based_ops.codegen.schedule.records import DIRECTORY

op = based_ops.get("window64_d64")
q = torch.randn(1, 5, 2, 64)
error = (op(q, q, q)[0] - op.reference(q, q, q)).abs().max().item()
jit = based_ops.load(shipped_specs() / "relu_qk64_v64.yaml")
print(json.dumps({
    "file": based_ops.__file__,
    "error": error,
    "loaded": jit.name,
    "specs": len(list(shipped_specs().glob("*.yaml"))),
    "records": len(list(DIRECTORY.glob("*.yaml"))),
    "checkout": str(checkout()),
}))
"""

TYPED = """
import based_ops
import based_ops.layers
from based_ops.codegen.pipeline import cache_key

reveal_type(based_ops.get("taylor2_qk16_v64"))
reveal_type(based_ops.layers.LinearAttention)
reveal_type(cache_key)
"""


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_links_inside_the_package(room: str) -> None:
    assert os.readlink(ROOT / "based_ops" / room) == f"../{room}"


def test_a_clone_called_like_the_package_does_not_hide_it(editable: Installed, tmp_path: Path) -> None:
    """`git clone` makes a directory `based_ops`, which to Python is a package too, if a poor one."""
    found = json.loads(editable.run("-c", USE, BASED_OPS_CACHE=str(tmp_path / "cache")))
    clone = editable.directory / "based_ops"
    assert found["file"] == str(clone / "based_ops" / "__init__.py")
    assert found["checkout"] == str(clone)
    assert found["error"] < 1e-5 and found["loaded"].startswith("relu_qk64_v64_")


def test_a_wheel_away_from_the_checkout(wheel: Installed, editable: Installed, tmp_path: Path) -> None:
    found = json.loads(wheel.run("-c", USE, BASED_OPS_CACHE=str(tmp_path / "cache")))
    assert Path(found["file"]).is_relative_to(wheel.python.parents[1])
    assert found["checkout"] == "None"
    assert found["error"] < 1e-5 and found["loaded"].startswith("relu_qk64_v64_")
    assert found["specs"] == len(list((ROOT / "specs").glob("*.yaml")))
    assert found["records"] == len(list((ROOT / "codegen" / "schedule" / "records").glob("*.yaml")))
    assert wheel.run("-m", "based_ops", "list") == editable.run("-m", "based_ops", "list")


def test_mypy_sees_an_editable_install(editable: Installed, tmp_path: Path) -> None:
    (editable.directory / "user.py").write_text(TYPED)
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")  # torch alone takes half a minute
    words = ("--config-file", str(settings), "--cache-dir", str(tmp_path / "cache"))
    _sees_types(editable.run("-m", "mypy", *words, "user.py"))


@pytest.mark.skipif(shutil.which("pyright", path=Path(sys.executable).parent) is None, reason="needs pyright")
def test_pyright_sees_an_editable_install(editable: Installed) -> None:
    (editable.directory / "user.py").write_text(TYPED)
    _sees_types(editable.run("-m", "pyright", "--pythonpath", str(editable.python), "user.py"))


def _sees_types(text: str) -> None:
    lines = [line for line in text.splitlines() if "user.py:" in line]
    assert len(lines) == 3 and "error" not in text.replace("0 errors", ""), text
    assert "Variant" in lines[0] and "LinearAttention" in lines[1] and "-> str" in lines[2], text
