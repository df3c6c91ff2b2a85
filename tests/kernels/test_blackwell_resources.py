"""Kernels printed for Blackwell, compiled without one, occupy no more than what is recorded.

By default those of a few layers are compiled, which takes seconds; ``pytest --all-kernels`` compiles all, and
``--update-budgets`` records what is found.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from based_ops.aot import occupied, triton_kernel
from based_ops.codegen import pipeline
from based_ops.codegen.ir.kernels import ForeignKernel
from based_ops.codegen.names import RECURRENCE, on_warpgroups
from based_ops.codegen.schedule.budget import SHARED_MEMORY
from based_ops.codegen.schedule.foreign import printers
from based_ops.codegen.schedule.orders import OBLONG, SQUARE, WINDOW
from based_ops.codegen.spec.model import LayerSpec
from tests.conftest import SPECS
from tests.kernels.budgets import DIRECTORY, recorded, rewrite
from tests.kernels.runners import interpreting
from tests.layers import for_blackwell

BUDGETS = DIRECTORY / "sm_100.yaml"
PRINTED = {SQUARE, OBLONG, WINDOW}
NAMES = [name for name, spec in pipeline.load(SPECS).items() if PRINTED & {*printers(spec.core)}]
COMPILED = ("identity_qk64_v64", "lightning_qk64_v64", "mamba2_qk64_v64", "pos_elu_qk64_v64", "window128_d64")
"""Layers that are compiled each time, in bfloat16: with decays, with a normaliser, and a window."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DENSE = {"RAGGED": False, "GROUPED": False}
CALLS: dict[str, tuple[str, dict[str, bool]]] = {
    "one sequence": (RECURRENCE, DENSE),
    "every flag": (RECURRENCE, {}),
    "gradients of queries": ("query_gradients", DENSE),
    "gradients of keys": ("key_gradients", DENSE),
    "a window": ("outputs", DENSE | {"BEGUN": False}),
}
"""What is compiled, of the kernels that a layer has."""
TENSOR_MEMORY = 512
"""Columns that a multiprocessor has."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-kernels")
        dtypes = DTYPES if every else ("bfloat16",)
        kernels = [(name, dtype) for name in (NAMES if every else COMPILED) for dtype in dtypes]
        metafunc.parametrize("kernel", kernels, ids="-".join)


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
def test_kernels_keep_to_their_budgets(kernel: tuple[str, str], request: pytest.FixtureRequest) -> None:
    name, dtype = kernel
    spec = pipeline.load(SPECS, [name])[name]
    kernels = pipeline.kernels(pipeline.lower(spec), "triton")
    there = {kernel.instead_of for kernel in kernels if isinstance(kernel, ForeignKernel)}
    found = {call: compiled(spec, dtype, *what) for call, what in CALLS.items() if what[0] in there}
    for call, needs in found.items():
        blocks = 2 if CALLS[call][0] == RECURRENCE else 1  # that share a multiprocessor, as on Hopper
        assert needs["stack"] == 0 or blocks == 1
        assert blocks * needs["shared"] <= SHARED_MEMORY["sm_100"]
        assert blocks * needs["tensor memory"] <= TENSOR_MEMORY
    if request.config.getoption("--update-budgets"):
        record(name, dtype, found)
        return
    budget = budgets()[name][dtype]
    assert list(found) == list(budget)
    over = {
        call: f"{needs}, allowed {budget[call]}"
        for call, needs in found.items()
        if any(value > budget[call][what] for what, value in needs.items())
    }
    assert not over, f"{over}; if that is intended: pytest {__file__} --all-kernels --update-budgets"


def test_every_layer_has_budgets() -> None:
    assert {name: list(of) for name, of in budgets().items()} == dict.fromkeys(NAMES, list(DTYPES))


def compiled(spec: LayerSpec, dtype: str, program: str, flags: dict[str, bool]) -> dict[str, int]:
    """What a kernel of a layer occupies."""
    name = on_warpgroups(program)
    kernel = triton_kernel(spec, for_blackwell(spec), name, DTYPES[dtype], capability=100, **flags)
    return asdict(occupied(kernel)) | {"tensor memory": kernel.metadata.tmem_size}


def budgets() -> dict[str, Any]:
    return recorded(BUDGETS.read_text(encoding="utf-8"))


def record(name: str, dtype: str, found: dict[str, dict[str, int]]) -> None:
    """Merge into the file what was found."""

    def merged(every: dict[str, Any]) -> dict[str, Any]:
        every.setdefault(name, {})[dtype] = found
        return {n: {d: every[n][d] for d in DTYPES if d in every[n]} for n in NAMES if n in every}

    comment = "Registers and bytes of stack a thread; bytes of shared and columns of tensor memory a block"
    rewrite(BUDGETS, comment, merged)
