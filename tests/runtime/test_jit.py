"""Just-in-time compilation: a private cache, keyed by content, safe for many processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import based_ops
from based_ops import errors, jit
from based_ops.cache import entry
from based_ops.codegen.errors import SpecErrors
from based_ops.codegen.pipeline import cache_key
from based_ops.codegen.spec.load import load_file
from based_ops.codegen.spec.model import dump_yaml

SPEC = """\
name: {name}
mixer: linear_attention
feature_map:
  kind: elementwise
  expression: relu(x) + {shift}
head_dims: {{qk: 8, v: 16}}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(directory: Path, shift: float, name: str = "mine") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(SPEC.format(name=name, shift=shift))
    return path


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def test_load_compiles_and_runs(cache: Path, tmp_path: Path) -> None:
    op = based_ops.load(write(tmp_path, 0.125))
    assert op.name.startswith("mine_") and op.spec.name == "mine" and op.name in based_ops.names()
    assert based_ops.get(op.name) is op
    assert hasattr(torch.ops.based_ops, f"{op.name}_forward")
    assert [entry.name for entry in entries(cache)] == [op.name]
    q, k = torch.randn(2, 2, 19, 3, 8, dtype=torch.float64).unbind(0)
    v = torch.randn(2, 19, 3, 16, dtype=torch.float64)
    assert_close(op(q, k, v)[0], op.reference(q, k, v))


def test_same_content_is_the_same_object(cache: Path, tmp_path: Path) -> None:
    first = based_ops.load(write(tmp_path / "a", 0.25))
    assert based_ops.load(str(write(tmp_path / "b", 0.25))) is first
    assert based_ops.load(write(tmp_path / "c", 0.375)) is not first
    assert len(entries(cache)) == 2


def test_a_shipped_name_is_no_collision(cache: Path, tmp_path: Path) -> None:
    shipped = based_ops.names()[0]
    op = based_ops.load(write(tmp_path, 0.5, name=shipped))
    assert op is not based_ops.get(shipped) and op.spec != based_ops.get(shipped).spec


def test_the_cache_is_private(cache: Path, tmp_path: Path) -> None:
    based_ops.load(write(tmp_path, 0.625))
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_others_must_not_write_to_the_cache(cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(errors.CacheError, match="others can write to it; run `chmod go-w"):
        based_ops.load(write(tmp_path, 0.75))
    assert not entries(cache)


def test_the_cache_must_be_the_users(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(jit.os, "geteuid", lambda: owner + 1)
    with pytest.raises(errors.CacheError, match="must belong to the user"):
        based_ops.load(write(tmp_path, 0.875))


def test_the_cache_must_be_a_directory(cache: Path, tmp_path: Path) -> None:
    cache.write_text("")
    with pytest.raises(errors.CacheError, match="cannot be used as the cache"):
        based_ops.load(write(tmp_path, 1.125))


def test_an_interrupted_compilation_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    path = write(tmp_path, 1.25)
    with monkeypatch.context() as patch:
        patch.setattr("based_ops.codegen.pipeline.generate_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            based_ops.load(path)
    assert not entries(cache)
    based_ops.load(path)


def test_a_faster_process_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from based_ops.codegen import pipeline

    generate_one = pipeline.generate_one

    def overtaken(spec: Any, out: Path, variant: str) -> None:
        entry(variant, dump_yaml(spec), lambda faster: generate_one(spec, faster, variant))
        generate_one(spec, out, variant)

    monkeypatch.setattr(pipeline, "generate_one", overtaken)
    op = based_ops.load(write(tmp_path, 1.375))
    assert [entry.name for entry in entries(cache)] == [op.name]


def test_foreign_content_is_made_again(cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path, 1.5)
    name = f"mine_{cache_key(load_file(path))}"
    (cache / name).mkdir(parents=True, mode=0o700)
    (cache / name / "__init__.py").write_text("raise AssertionError('not ours')")
    cache.chmod(0o700)
    assert based_ops.load(path).name == name
    assert [entry.name for entry in entries(cache)] == [name]


def test_the_cache_of_bytecode_is_not_used(cache: Path, tmp_path: Path) -> None:
    op = based_ops.load(write(tmp_path, 1.5625))
    op._record.module("torch")
    assert not list(cache.rglob("__pycache__"))


def test_bad_specs_write_nothing(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmixer: linear_atention\n")
    with pytest.raises(SpecErrors, match="mine.yaml:2:"):
        based_ops.load(path)
    assert not cache.exists()
    with pytest.raises(errors.ArgumentTypeError, match="^path: got int"):
        based_ops.load(3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_many_processes_at_once(cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path, 1.625)
    code = "import sys, based_ops; print(based_ops.load(sys.argv[1]).name)"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    results = {out.strip() for out, _ in outputs}
    assert results == {entry.name for entry in entries(cache)} and len(results) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_layer_of_one_dtype(cache: Path, tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, 0.5)
    path.write_text(path.read_text() + f"dtypes: [{dtype}]\n")
    op = based_ops.load(path)
    q, k = torch.randn(2, 1, 9, 2, 8, dtype=getattr(torch, dtype)).unbind(0)
    v = torch.randn(1, 9, 2, 16, dtype=q.dtype)
    o = op(q, k, v)[0]
    assert_close(o.double(), op.reference(q.double(), k.double(), v.double()), rtol=2e-2, atol=1e-2)
