"""CONTRIBUTING's "Add a mixer", followed: `new_mixer/` holds the new files, and no other file changes.

The mixer is a sum that fades, s_t = a_h s_{t-1} + x_t + c_d: a factor a head, a constant a channel, a state.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NEW = Path(__file__).parent / "new_mixer"
UNUSED = shutil.ignore_patterns("__pycache__", "generated", "specs", "benchmarks")

GENERATE = """
from pathlib import Path
from based_ops.codegen.pipeline import generate

generate(Path("based_ops/specs"), Path("based_ops/generated"))
"""
PREPARE = """
import io, torch, based_ops
from torch.testing import assert_close

def close(got, want):
    assert_close(got, want, rtol=1e-5, atol=1e-5, check_dtype=False)

op = based_ops.get("fading16")
x, a, c = torch.randn(2, 9, 3, 16), torch.rand(3), torch.randn(16)
"""
ON_TORCH = (
    PREPARE
    + """
inputs = [t.double().requires_grad_() for t in (x, a, c, torch.randn(2, 3, 16))]
state = type(op.init_state(2, 3))(inputs[3])
results = []
for function in (lambda *x: op(*x, output_final_state=True), op.reference):
    y, final = function(*inputs[:3], state)
    results.append([y, *final, *torch.autograd.grad(y.sin().sum() + final.sums.cos().sum(), inputs)])
    of_the_end = torch.autograd.grad(function(*inputs[:3], state)[1].sums.sum(), inputs)
    results[-1] += [y.detach(), *of_the_end]
close(*results)

want, end = op.reference(x, a, c)
_, state = op(x[:, :4], a, c, output_final_state=True)
steps = [op.step(x[:, t : t + 1], state, a, c) for t in range(4, 9)]
close(torch.cat(steps, 1), want[:, 4:])
close(state.sums, end.sums)
assert op.state_bytes(2, 3) == state.sums.nbytes

def run(*inputs):
    return op(*inputs, output_final_state=True)

close(torch.compile(run, fullgraph=True, backend="aot_eager")(x, a, c), (want, end))
file = io.BytesIO()
torch.save(state, file)
file.seek(0)
close(torch.load(file).sums, state.sums)
try:
    op(x, a[1:], c)
except based_ops.errors.ShapeError as error:
    assert str(error).startswith("a: "), error
else:
    raise AssertionError("a factor is missing")
"""
)
ON_TRITON = (
    PREPARE
    + """
from based_ops.generated.fading16 import triton

close(triton.forward(x, a, c, None, True), (want := op.reference(x, a, c))[:1] + tuple(want[1]))
"""
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package as a wheel lays it out, the new files, and what they generate."""
    directory = tmp_path_factory.mktemp("new")
    package = directory / "based_ops"
    shutil.copytree(ROOT / "based_ops", package, ignore=UNUSED)
    for path in (path for path in NEW.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        new = package / path.relative_to(NEW)
        assert not new.exists(), f"{new} is there already"
        new.parent.mkdir(exist_ok=True)
        shutil.copy(path, new)
    run(directory, GENERATE)
    return directory


def run(directory: Path, code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_gradients_and_steps(package: Path) -> None:
    run(package, ON_TORCH)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_triton_under_its_interpreter(package: Path) -> None:
    run(package, ON_TRITON, TRITON_INTERPRET="1")
