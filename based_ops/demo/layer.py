"""A layer that no one has written kernels for: declared, compiled, shown and verified."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.syntax import Syntax

from ..jit import load
from ..variant import Variant
from ..verify import SHORT, Case, measure

NAME = "softplus_squared"
EXPRESSION = "softplus(x)**2"
DISAGREE = "the demonstration ends here: not all kernels agree with the mathematics"
FEW = (Case(1, 17, 3, 1, "dense"), Case(1, 63, 1, 70, "heads first"))
"""The shapes that Triton's interpreter gets through in seconds."""
SHOWN = "outputs"
"""The kernel to show: the one that computes outputs from a chunk and from the state of older tokens."""


def declare(directory: Path) -> Path:
    """Writes the spec of a feature map that no shipped layer has."""
    from based_ops.codegen.spec.template import new_spec_text

    path = directory / f"{NAME}.yaml"
    text = new_spec_text(NAME, feature_map=EXPRESSION, qk=32, v=64)
    plain = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    path.write_text("\n".join(plain) + "\n", encoding="utf-8")
    return path


def compile_layer(path: Path, console: Console) -> Variant:
    """Compiles the spec just in time and shows the Triton kernel that comes out."""
    console.print(
        Syntax(path.read_text(encoding="utf-8"), "yaml", background_color="default", word_wrap=True)
    )
    start = time.perf_counter()
    variant = load(path)
    seconds = time.perf_counter() - start
    package = inspect.getfile(sys.modules[f"based_ops_jit_{variant.name}"])
    generated = Path(package).parent / variant.name / "triton.py"
    kernel = excerpt(generated.read_text(encoding="utf-8"))
    console.print(f"compiled in {seconds:.2f} s for Triton, TileLang and PyTorch; from the Triton module:\n")
    console.print(Syntax(kernel, "python", background_color="default", word_wrap=True))
    console.print("the whole of it:", str(generated), soft_wrap=True)
    return variant


def excerpt(source: str, lines: int = 36) -> str:
    """The kernel to show, from its decorator on."""
    rows = source.splitlines()
    first = next(i for i, row in enumerate(rows) if row.startswith(f"def {SHOWN}"))
    while first and rows[first - 1].startswith("@"):
        first -= 1
    shown = rows[first : first + lines]
    end = next((i for i in range(2, len(shown)) if shown[i] and shown[i][0] not in " )#"), len(shown))
    more = ["    ..."] if end == len(shown) and first + lines < len(rows) else []
    return "\n".join(shown[:end] + more).rstrip()


def verify_here(variant: Variant, device: str, console: Console) -> None:
    """Compares the layer's kernels with naive mathematics in this process, on few shapes.

    TileLang's are left out: compiling them takes longer than all the rest.
    """
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which is later
    for status in variant.backends(device):
        if not status.available or status.name == "tilelang":
            continue
        cases = SHORT if status.name == "torch" else FEW
        found = list(measure(variant, status.name, device, torch.float32, over=cases))
        worst = max(found, key=lambda m: m.found.norm / m.allowed.norm)
        console.print(
            f"{status.name}: {len(found)} tensors of {len(cases)} shapes, forward, backward and step; "
            f"largest error {worst.found.norm:.1e}, allowed {worst.allowed.norm:.0e}"
        )
        if not all(m.fine for m in found):
            raise SystemExit(DISAGREE)


def verify(path: Path, device: str) -> None:
    """Runs ``based-ops verify`` on the spec, in a process of its own.

    Triton decides when it is imported whether its kernels run on a device or under its interpreter.
    """
    # The interpreters are slow: one dtype is enough for a demonstration.
    options = ["--device", device, "--dtype", "float32"]
    sys.stdout.flush()
    words = [sys.executable, "-m", "based_ops", "verify", str(path), *options]
    if subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise SystemExit(DISAGREE)
