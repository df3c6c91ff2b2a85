"""The other commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from based_ops.cli.specs import ARCHITECTURES
from based_ops.cli.verify import COLUMNS, _column
from based_ops.codegen.emit.gluon.machines import MACHINES
from based_ops.codegen.spec.load import load_file
from based_ops.tolerance import Tolerance
from based_ops.verify import Case, Measurement

from .conftest import Run


def test_help_is_short_and_names_every_command(run: Run) -> None:
    text = run("--help").output
    for name in ("generate", "list", "show", "new", "verify", "tune", "recall", "dial", "doctor", "demo"):
        assert f"\n  {name} " in text
    assert len(text.splitlines()) <= 25, "as many as a terminal has"


def test_module_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "based_ops", "--version"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("based-ops, version")


def test_list_is_plain_columns_in_a_pipe(run: Run) -> None:
    lines = run("list").output.splitlines()
    assert lines[0].split() == ["name", "mixer", "weights", "qk", "v", "dtypes"]
    assert any(line.startswith("taylor2_qk16_v64 ") for line in lines)
    assert not any("\x1b" in line or "│" in line for line in lines)


@pytest.mark.parametrize("stage", ["spec", "program", "schedule", "triton", "tilelang", "torch"])
@pytest.mark.parametrize("name", ["taylor2_qk16_v64", "window64_d64"])
def test_show(run: Run, name: str, stage: str) -> None:
    text = run("show", name, "--stage", stage).output
    assert "\x1b" not in text
    if stage == "spec":
        assert yaml.safe_load(text)["name"] == name
    elif stage in ("triton", "tilelang", "torch"):
        compile(text, f"{stage}.py", "exec")
    else:
        assert len(text.splitlines()) > 5


def test_show_prints_kernels_for_other_gpus(run: Run) -> None:
    assert tuple(MACHINES) == ARCHITECTURES
    hopper, blackwell = (
        run("show", "relu_qk64_v64", "--stage", "gluon", "--arch", gpu).output for gpu in ARCHITECTURES
    )
    assert hopper == run("show", "relu_qk64_v64", "--stage", "gluon").output
    assert "warpgroup_mma(" in hopper and "tcgen05" not in hopper
    assert "tcgen05_mma(" in blackwell and "warpgroup_mma" not in blackwell
    compile(blackwell, "gluon.py", "exec")
    text = run("show", "taylor2_qk16_v64", "--stage", "gluon", "--arch", "sm_100").output
    assert text == "# None of its kernels is printed in Gluon for sm_100."  # single warps have products there
    window = run("show", "window64_d64", "--stage", "gluon", "--arch", "sm_100").output
    assert "def outputs_warpgroups(" in window and "def gradients_warpgroups(" not in window
    assert "--stage gluon" in run("show", "relu_qk64_v64", "--arch", "sm_100", code=2).stderr


def test_show_takes_a_path(run: Run, specs: Path) -> None:
    assert "relu" in run("show", specs / "first_layer.yaml").output


def test_show_an_unknown_name(run: Run) -> None:
    assert "taylor2_qk16_v64" in run("show", "taylor2_qk16_v46", code=2).stderr


def test_new_writes_a_spec_that_loads(run: Run, tmp_path: Path) -> None:
    run("new", "my_map", "--map", "elu(x) + 1", "--qk", "32", "--specs", tmp_path)
    run("new", "my_window", "--mixer", "sliding_window", "--window", "48", "--specs", tmp_path)
    assert load_file(tmp_path / "my_map.yaml").head_dims.qk == 32
    assert getattr(load_file(tmp_path / "my_window.yaml"), "window", None) == 48
    assert (tmp_path / "schema.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("my_map", "--map", "__import__('os')"),
        ("my_map", "--qk", "7"),
        ("../escaped",),
        ("class",),
        ("my_map", "--window", "16"),
        ("my_map", "--mixer", "sliding_window", "--map", "x"),
    ],
)
def test_new_refuses_and_writes_nothing(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    run("new", *words, "--specs", tmp_path, code=2)
    assert not list(tmp_path.iterdir())


def test_new_makes_the_directory_of_specs(run: Run, tmp_path: Path) -> None:
    """As the README's commands for a project of one's own need it."""
    run("new", "my_layer", "--map", "relu(x)**2", "--specs", tmp_path / "my" / "specs")
    assert load_file(tmp_path / "my" / "specs" / "my_layer.yaml").name == "my_layer"
    run("new", "class", "--specs", tmp_path / "other", code=2)
    assert not (tmp_path / "other").exists(), "a name that cannot be writes nothing"


def test_new_does_not_overwrite(run: Run, specs: Path) -> None:
    before = (specs / "first_layer.yaml").read_text()
    assert "already exists" in run("new", "first_layer", "--specs", specs, code=2).stderr
    assert (specs / "first_layer.yaml").read_text() == before


def test_doctor_says_why_not(run: Run) -> None:
    text = run("doctor").output
    assert torch.__version__ in text and "tilelang" in text
    if not torch.cuda.is_available():
        assert "PyTorch sees no CUDA device" in text


def test_verify_prints_errors(run: Run, specs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    options = ("--backend", "torch", "--device", "cpu", "--dtype", "float32")
    lines = run("verify", specs / "first_layer.yaml", *options).stdout.splitlines()
    assert lines[0].split()[:3] == ["layer", "backend", "dtype"]
    assert lines[1].split()[1:3] == ["torch", "float32"] and lines[1].endswith("ok")


def test_verify_fails_where_kernels_are_wrong(
    run: Run, specs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(variant: object, backend: str, device: str, dtype: torch.dtype) -> list[Measurement]:
        found, allowed = Tolerance(0.5, float("nan")), Tolerance(1e-5, 1e-5)
        case = Case(1, 17, 3, 0, "dense")
        return [Measurement("first_layer", backend, device, dtype, "forward", "o", case, found, allowed)]

    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("based_ops.verify.measure", wrong)
    options = ("--backend", "torch", "--device", "cpu", "--dtype", "float32")
    result = run("verify", specs / "first_layer.yaml", *options, code=1)
    assert "WRONG" in result.stdout and "B1 T17 H3" in result.stderr


def test_verify_an_unknown_layer(run: Run) -> None:
    run("verify", "no_such_layer", "--device", "cpu", code=2)


def test_columns_of_verify_cover_every_tensor() -> None:
    for which, tensor in (("forward", "o"), ("forward", "final k"), ("backward", "d initial normalizer")):
        bound = Tolerance(1, 1)
        m = Measurement(
            "x", "torch", "cpu", torch.float32, which, tensor, Case(1, 1, 1, 0, "dense"), bound, bound
        )
        assert _column(m) in COLUMNS
