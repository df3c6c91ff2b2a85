"""A layer as a package for AOTInductor, run where there is no compiler of layers:

    python examples/aot_package.py make layer.pt2
    python examples/aot_package.py run layer.pt2

`make` exports a module with any batch and any length, and compiles it.  `run` loads the package in a process
that refuses to import what compiles specs (the spec files, passes, schedules and printers of `codegen`,
sympy, YAML): the package calls the operators, and their generated kernels need none of it.
"""

from __future__ import annotations

import argparse
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import torch
from torch import Tensor, nn

COMPILER = (
    *(f"based_ops.codegen.{room}" for room in ("emit", "lower", "memory", "parts", "pipeline", "schedule")),
    "based_ops.specs",
    "codegen",
    "specs",
    "sympy",
    "yaml",
)


class Refuse(MetaPathFinder):
    """An import of these modules is an error."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in COMPILER or name.startswith(tuple(f"{module}." for module in COMPILER)):
            raise ModuleNotFoundError(f"{name} is not in this process", name=name)


def inputs(batch: int, length: int) -> tuple[Tensor, ...]:
    torch.manual_seed(batch + length)
    return (torch.randn(batch, length, 64),)


def make(package: Path) -> None:
    from based_ops import layers

    class Model(nn.Module):
        """Two mixers of Based on a residual stream."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = layers.LinearAttention(64, 4, "taylor2_qk16_v64")
            self.window = layers.SlidingWindowAttention(64, 4, "window16_d64")

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.linear(x)[0]
            return x + self.window(x)[0]

    torch.manual_seed(0)
    net = Model().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    free = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=1, max=4096)}
    program = torch.export.export(net, inputs(2, 6), dynamic_shapes=(free,))
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    sizes = ((3, 40), (1, 1), (2, 130))
    torch.save([(x, net(*x)) for x in (inputs(*size) for size in sizes)], package.with_suffix(".expected"))
    print(f"{package}: {package.stat().st_size:,} bytes")


def run(package: Path) -> None:
    sys.meta_path.insert(0, Refuse())
    import based_ops  # registers the operators that the package calls

    # What torch._inductor.aoti_load_package makes, which imports Inductor, and with that sympy.
    net = torch._C._aoti.AOTIModelPackageLoader(  # pyright: ignore[reportAttributeAccessIssue]
        str(package), "model", False, 1, -1
    )
    for given, expected in torch.load(package.with_suffix(".expected")):
        (got,) = net.run(list(given))
        error = (got - expected).abs().max() / expected.abs().max()
        print(f"{list(given[0].shape)} -> {list(got.shape)}: {error:.1e} from where it was made")
    there = [name for name in COMPILER if name in sys.modules]
    print(
        f"based_ops {based_ops.__version__}; of {len(COMPILER)} modules of compilers {len(there)} are loaded"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a package of a layer, and run it.")
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("package", type=Path)
    given = parser.parse_args()
    (make if given.what == "make" else run)(given.package)


if __name__ == "__main__":
    main()
