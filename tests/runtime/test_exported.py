"""Exported programs of any batch, length and heads, and what AOTInductor packages of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim, export
from torch.testing import assert_close

import based_ops
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import state_of, tensors_of

EXACT = {"rtol": 0, "atol": 0}
SIZES = ((3, 9, 2), (2, 2, 2), (1, 130, 1), (1, 1, 1))


class Model(torch.nn.Module):
    """A sequence that goes on from a state, and a step of its first token behind it."""

    def __init__(self, layer: Variant) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: tuple[Any, ...], state: Any) -> Any:
        o, final = self.layer._call(inputs, None, state, True, None)
        token = [
            x[:, :1] if x is not None and argument.dims[0] == "B" else x
            for argument, x in zip(self.layer.signature.inputs, inputs, strict=True)
        ]
        state = final.clone()
        return o, final, self.layer._step(tuple(token), None, state, None), state


def example(layer: Variant, batch: int, length: int, units: int) -> tuple[Any, Any]:
    return tensors_of(layer, batch, length, units=units), state_of(layer, batch, units=units)


def exported(layer: Variant, strict: bool) -> Any:
    """A program in which batch, length, heads or channels and what else is free may be anything."""
    inputs, state = example(layer, 2, 6, 3)
    length = Dim("length", min=1, max=4096)
    names = {
        "B": Dim("batch", min=1, max=64),
        "T": length,
        "Tk": length,
        **dict.fromkeys(layer.signature.alike(0), Dim("units", min=1, max=64)),
        **{name: Dim(f"free_{name}", min=1, max=most) for name, most in layer.signature.free.items()},
    }

    def free(arguments: Any, tensors: Any) -> list[Any]:
        return [
            None if x is None else {i: names[dim] for i, dim in enumerate(argument.dims) if dim in names}
            for argument, x in zip(arguments, tensors, strict=True)
        ]

    shapes = tuple(free(layer.signature.inputs, inputs)), type(state)(*free(layer.signature.state, state))
    return export(Model(layer), (inputs, state), dynamic_shapes=shapes, strict=strict)


def check(layer: Variant, program: Any) -> None:
    for sizes in SIZES:
        torch.manual_seed(1)
        inputs, state = example(layer, *sizes)
        want = Model(layer)(inputs, state)
        for got, x in zip(program(inputs, state), want, strict=True):
            assert type(got) is type(x)
            for y, z in zip(got, x, strict=True) if isinstance(x, tuple) else [(got, x)]:
                assert (y is None) == (z is None)
                if z is not None:
                    assert_close(y, z, **EXACT)


@pytest.mark.parametrize("strict", [False, True])
def test_sizes_are_free(layer: Variant, strict: bool) -> None:
    check(layer, exported(layer, strict).module())


FRESH = """
import sys

ROOMS = ("emit", "schedule", "pipeline")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        rooms = [f"based_ops.codegen.{room}" for room in ROOMS]
        for refused in ("codegen", "specs", "yaml", "based_ops.specs", *rooms):
            if name == refused or name.startswith(refused + "."):
                raise ImportError(f"not here: {name}")

sys.meta_path.insert(0, Refuse())
import torch
import based_ops

package, examples = sys.argv[1:]
program = torch._inductor.aoti_load_package(package)
for inputs, state, want in torch.load(examples):
    got = program(inputs, state)
    for x, y in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True):
        assert x is y is None or torch.equal(x, y), (x, y)
    assert [type(x) for x in got] == [type(x) for x in want]
print("fine")
"""


def signatures() -> list[str]:
    """One variant of each signature that operators have: others are called alike."""
    found: dict[str, str] = {}
    for name in every_kind():
        signature = based_ops.get(name).signature
        found.setdefault(str([[x.name for x in part] for part in (signature.inputs, signature.state)]), name)
    return [*found.values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", signatures())
def test_a_package_runs_without_the_compiler(name: str, tmp_path: Path) -> None:
    """AOTInductor's code calls the operators, which are those of the process that loads it."""
    layer = based_ops.get(name)
    package = tmp_path / "program.pt2"
    torch._inductor.aoti_compile_and_package(exported(layer, False), package_path=str(package))
    examples = []
    for sizes in SIZES:
        inputs, state = example(layer, *sizes)
        nameless = type(state)(*state)
        examples.append((inputs, nameless, Model(layer)(inputs, state)))
    torch.save(examples, tmp_path / "examples")
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(package), str(tmp_path / "examples")],
        capture_output=True,
        text=True,
    )
    assert run.stdout == "fine\n", run.stderr
