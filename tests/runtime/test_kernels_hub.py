"""A layer as a repository of the library `kernels`: what its loader asks for, and the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from based_ops.errors import ArgumentValueError, UnknownVariant
from based_ops.kernels_hub import VARIANT, write

kernels = pytest.importorskip("kernels")

LOAD = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("based_ops", "codegen", "yaml"):
            raise ModuleNotFoundError(f"not here: {name}", name=name)

import torch
from kernels import get_local_kernel
sys.meta_path.insert(0, Refuse())

name, repository, example = sys.argv[1:]
given, expected = torch.load(example)
given = [x.requires_grad_() for x in given]
layer = get_local_kernel(Path(repository))
o = getattr(layer, name)(*given)
(o * torch.linspace(-1, 1, o.shape[-1])).sum().backward()
for found, wanted in zip([o.detach(), *(x.grad for x in given)], expected, strict=True):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
assert not [x for x in sys.modules if x.startswith("based_ops")]
print(layer.__doc__)
"""
"""In a process that has no based_ops, with Triton's interpreter."""


@pytest.mark.parametrize("name", ["pos_elu_qk64_v64", "retention_qk64_v64", "window16_d64", "conv3_silu"])
def test_the_loader_takes_it_and_numbers_are_the_same(name: str, tmp_path: Path) -> None:
    """Gradients too; a linear attention, one with a decay, a window, and a convolution without heads."""
    import torch

    import based_ops
    from based_ops.inputs import draw, filled, units

    torch.manual_seed(0)
    op = based_ops.get(name)
    given = [x.requires_grad_() for x in draw(op, 1, 5, units(op, 2), torch.randn, lambda x: x)]
    o, _ = op._call(filled(op, given), None, None, False, "torch")
    (o * torch.linspace(-1, 1, o.shape[-1])).sum().backward()
    expected = [o.detach(), *(x.grad for x in given)]
    torch.save(([x.detach() for x in given], expected), tmp_path / "example")
    repository = write(name, tmp_path / "repository")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name, str(repository), str(tmp_path / "example")],
        env={"TRITON_INTERPRET": "1", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "differentiable" in done.stdout


def test_what_is_written_is_what_the_loader_asks_for(tmp_path: Path) -> None:
    """A name that the hub allows, an id that follows from the text, and no import of this package."""
    from kernels._rust import Metadata

    out = write("relu_qk64_v64", tmp_path / "out")
    found = Metadata.read_from_file(out / VARIANT / "metadata.json")
    assert (str(found.name), found.version, found.license) == ("relu-qk64-v64", 1, "MIT")
    assert found.id.startswith("_relu_qk64_v64_") and found.id.isidentifier() and not found.python_depends
    for path in (out / VARIANT).rglob("*.py"):
        assert "from based_ops" not in path.read_text(encoding="utf-8"), path
    again = write("relu_qk64_v64", tmp_path / "again")
    for path in (x for x in out.rglob("*") if x.is_file()):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()
    silu = write("silu_qk64_v64", tmp_path / "other")
    other = json.loads((silu / VARIANT / "metadata.json").read_text())
    assert other["id"] != found.id
    assert "feature_map" in (out / "README.md").read_text(encoding="utf-8")


def test_what_it_cannot_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownVariant, match="relu_qk64_v64"):
        write("relu_qk64_v6", tmp_path / "out")
    with pytest.raises(
        ArgumentValueError, match="name: got hedgehog_qk64_v64, must be a layer of one module"
    ):
        write("hedgehog_qk64_v64", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ArgumentValueError, match="out: got .*, must be a folder that is new"):
        write("relu_qk64_v64", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_the_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "based_ops.kernels_hub"]
    done = subprocess.run([*words, "nothing", str(tmp_path / "x")], capture_output=True, text=True)
    assert done.returncode == 1 and "nothing" in done.stderr and done.stderr.count("\n") == 1
