"""Every shipped kernel, compiled for Hopper without a GPU, occupies no more than what is recorded.

Compiling takes a second a kernel with Triton and several with TileLang.  So Triton's record says of which
text and compiler it is, and by default only what has changed since is compiled, and a few layers in any case;
they stand for all in float32 and with TileLang.  ``pytest --all-kernels`` compiles all; ``--update-budgets``
records what is found.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType
from typing import Any

import pytest
import torch

from based_ops.aot import Resources, compile_tilelang, compile_triton, triton_key
from based_ops.codegen import pipeline
from based_ops.codegen.names import RECURRENCE
from based_ops.codegen.spec.model import LayerSpec
from based_ops.record import record as record_of
from tests.conftest import SPECS
from tests.kernels.budgets import DIRECTORY, recorded, rewrite
from tests.kernels.runners import interpreting
from tests.layers import never_recurs

BUDGETS = DIRECTORY / "sm_90.yaml"
NAMES = sorted(path.stem for path in SPECS.glob("*.yaml"))
COMPILED = ("pos_elu_qk64_v64", "taylor2_qk16_v64", "window64_d64")
"""Layers that are compiled each time, in float32 too."""
WITH_TILELANG = ("taylor2_qk16_v64", "window64_d64")
DTYPES = (torch.bfloat16, torch.float32)
DENSE = {"RAGGED": False, "BEGUN": False}
"""The flags with which programs of one sequence are what they are; those of packed ones have them on."""
ONE_TOKEN = {
    "triton": {"SEVERAL": False, "SLOTS": False, "GROUPED": False},
    "tilelang": {"SEVERAL": True, "SLOTS": False, "GROUPED": False},
}
"""The flags with which the kernel of a step is that of a single token, without a pool: in Triton without a
loop, in TileLang a loop of one."""
AS_THEY_STAND = {"NUMBERED": False}
"""The flag with which features are of tokens that are numbered as they stand."""
OF_GROUPS = ("group_sums", "owed_sums")
"""Kernels that run only where heads are in groups; the others are compiled for calls without any."""
SHARED_MEMORY = 227 * 1024
"""Bytes that one block may have on Hopper."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" not in metafunc.fixturenames:
        return
    every = metafunc.config.getoption("--all-kernels")
    kernels = [("triton", name, torch.bfloat16) for name in NAMES]
    kernels += [("triton", name, torch.float32) for name in (NAMES if every else COMPILED)]
    kernels += [("tilelang", name, torch.bfloat16) for name in (NAMES if every else WITH_TILELANG)]
    metafunc.parametrize("kernel", kernels, ids=lambda k: f"{k[0]}-{k[1]}-{dtype_name(k[2])}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
def test_kernels_keep_to_their_budgets(
    kernel: tuple[str, str, torch.dtype], request: pytest.FixtureRequest
) -> None:
    backend, name, dtype = kernel
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")
    if backend == "tilelang" and shutil.which("nvcc") is None:
        pytest.skip("TileLang's CUDA needs nvcc, which is not on the PATH")
    budget = budgets().get(backend, {}).get(name, {}).get(dtype_name(dtype), {})
    measured = budget.pop("of", None)
    kernels = {label: given for label, *given in kernels_of(backend, name, dtype)}
    key = digest(kernels) if backend == "triton" else None
    asked = any(map(request.config.getoption, ("--all-kernels", "--update-budgets")))
    if key and key == measured and name not in COMPILED and not asked:
        return  # the figures are of this very text and this compiler
    compile_one = compile_triton if backend == "triton" else compile_tilelang
    found = {label: compile_one(*given, **flags) for label, (*given, flags) in kernels.items()}
    assert all(resources.shared <= SHARED_MEMORY for resources in found.values()), found
    if request.config.getoption("--update-budgets"):
        record(backend, name, dtype, key, found)
        return
    assert list(found) == list(budget), "kernels without a budget, or budgets without a kernel"
    over = {
        program: f"{resources}, allowed {budget[program]}"
        for program, resources in found.items()
        if any(value > budget[program][what] for what, value in asdict(resources).items())
    }
    assert not over, f"{over}; if that is intended: pytest {__file__} --update-budgets"


def kernels_of(
    backend: str, name: str, dtype: torch.dtype
) -> Iterator[tuple[str, LayerSpec, ModuleType, str, torch.dtype, dict[str, bool]]]:
    """Each kernel's name among the budgets, and what compiles it."""
    spec = pipeline.load(SPECS, [name])[name]
    module = record_of(name).module(backend)
    for program in pipeline.kernels(pipeline.lower(spec), backend):
        never = program.name == RECURRENCE and never_recurs(module, dtype)
        if dtype in module.SCHEDULE[program.name] and not never:
            flags = {"GROUPED": program.name in OF_GROUPS, **DENSE}
            yield program.name, spec, module, program.name, dtype, flags
    yield "one token", spec, module, "token", dtype, ONE_TOKEN[backend]
    for which, maker in record_of(name).makers.items():
        of_features = maker.module(backend)
        for program in pipeline.lower(maker.layer).programs:
            label = f"{which}: {program.name}"
            yield label, maker.layer, of_features, program.name, dtype, AS_THEY_STAND


def digest(kernels: dict[str, list[Any]]) -> str:
    """Of the texts that Triton is given for these kernels, and of its version."""
    keys = [f"{label}: {triton_key(*given, **flags)}" for label, (*given, flags) in kernels.items()]
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
def test_another_text_is_compiled_again() -> None:
    """What a digest is of: the kernels, their constants, and the functions that they call."""
    name, dtype = "retention_qk64_v64", torch.bfloat16
    kernels = {label: given for label, *given in kernels_of("triton", name, dtype)}
    was = digest(kernels)
    assert was == digest({label: given for label, *given in kernels_of("triton", name, dtype)})
    *given, flags = kernels["outputs"]
    assert digest(kernels | {"outputs": [*given, flags | {"GROUPED": True}]}) != was
    other = [x for x in kernels_of("triton", "pos_elu_qk64_v64", dtype) if x[0] == "outputs"]
    assert digest(kernels | {"outputs": list(other[0][1:])}) != was


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
@pytest.mark.parametrize("program", ["prefix", "suffix"])
def test_running_sums_load_ahead(program: str) -> None:
    """Tiles on their way lie in shared memory: without them each round would wait for its own."""
    name = "taylor2_qk16_v64"
    spec, module = pipeline.load(SPECS, [name])[name], record_of(name).module("triton")
    sizes = module.SCHEDULE[program][torch.bfloat16]
    found = compile_triton(spec, module, program, torch.bfloat16)
    assert found.shared >= (sizes["STAGES"] - 1) * sizes["FEATURES"] * sizes["VALUES"] * 4 > 0


def test_budgets_name_shipped_layers() -> None:
    assert list(budgets()) == ["triton", "tilelang"]
    assert all(list(layers) == NAMES for layers in budgets().values())


def budgets() -> dict[str, Any]:
    return recorded(BUDGETS.read_text(encoding="utf-8"))


def record(backend: str, name: str, dtype: torch.dtype, key: str | None, found: dict[str, Resources]) -> None:
    """Merge into the file what was found."""
    of = {} if key is None else {"of": key}
    own = of | {program: asdict(resources) for program, resources in found.items()}

    def merged(every: dict[str, Any]) -> dict[str, Any]:
        every.setdefault(backend, {}).setdefault(name, {})[dtype_name(dtype)] = own
        return {
            b: {
                n: {dtype_name(d): every[b][n][dtype_name(d)] for d in DTYPES if dtype_name(d) in every[b][n]}
                for n in NAMES
                if n in every[b]
            }
            for b in ("triton", "tilelang")
            if b in every
        }

    rewrite(
        BUDGETS,
        "Registers and bytes of stack a thread, bytes of shared memory a block, and of which text",
        merged,
    )
