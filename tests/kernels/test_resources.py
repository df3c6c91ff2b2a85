"""Every shipped kernel, compiled for Hopper without a GPU, occupies no more than what is recorded.

Compiling takes a second a kernel with Triton and several with TileLang.  So each record says of which text
and compiler it is, and by default only what has changed since is compiled, and a few layers in any case.  In
float32 and with TileLang a few stand for all.  ``pytest --all-kernels`` compiles all; ``--update-budgets``
records what is found.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from based_ops import aot, support
from based_ops.aot import Resources, compile_tilelang, compile_triton
from based_ops.codegen import pipeline
from based_ops.codegen.names import RECURRENCE
from based_ops.codegen.spec.model import LayerSpec
from based_ops.record import record as record_of
from tests.conftest import SPECS
from tests.kernels.budgets import DIRECTORY, recorded, rewrite
from tests.kernels.runners import interpreting
from tests.layers import never_recurs

BUDGETS = DIRECTORY / "sm_90.yaml"
SUPPORT = Path(support.__file__).parent
NAMES = sorted(path.stem for path in SPECS.glob("*.yaml"))
COMPILED = {"triton": ("pos_elu_qk64_v64", "taylor2_qk16_v64", "window64_d64"), "tilelang": ("window64_d64",)}
"""Layers of which some kernels are compiled each time."""
APART = 6
"""The first of them, and each that stands so many after the last."""
IN_FLOAT32 = COMPILED["triton"]
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
    kernels += [("triton", name, torch.float32) for name in (NAMES if every else IN_FLOAT32)]
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
    makers = record_of(name).makers.values()
    modules = (record_of(name).module(backend), *(maker.module(backend) for maker in makers))
    key = digest(backend, modules)
    asked = any(map(request.config.getoption, ("--all-kernels", "--update-budgets")))
    known = key == measured and not asked  # the figures are of this very text and this compiler
    if known and name not in COMPILED[backend]:
        return
    compile_one: Any = compile_triton if backend == "triton" else compile_tilelang
    apart = APART if known else 1
    found = {
        label: compile_one(spec, module, program, dtype, **flags)
        for label, spec, module, program, flags in islice(kernels_of(backend, name, dtype), 0, None, apart)
    }
    assert all(resources.shared <= SHARED_MEMORY for resources in found.values()), found
    if request.config.getoption("--update-budgets"):
        record(backend, name, dtype, key, found)
        return
    assert list(found) == list(budget)[::apart], "kernels without a budget, or budgets without a kernel"
    over = {
        program: f"{resources}, allowed {budget[program]}"
        for program, resources in found.items()
        if any(value > budget[program][what] for what, value in asdict(resources).items())
    }
    assert not over, f"{over}; if that is intended: pytest {__file__} --update-budgets"


def kernels_of(
    backend: str, name: str, dtype: torch.dtype
) -> Iterator[tuple[str, LayerSpec, ModuleType, str, dict[str, bool]]]:
    """Each kernel's name among the budgets, and what compiles it."""
    spec = pipeline.load(SPECS, [name])[name]
    module = record_of(name).module(backend)
    for program in pipeline.kernels(pipeline.lower(spec), backend):
        never = program.name == RECURRENCE and never_recurs(module, dtype)
        if dtype in module.SCHEDULE[program.name] and not never:
            flags = {"GROUPED": program.name in OF_GROUPS, **DENSE}
            yield program.name, spec, module, program.name, flags
    yield "one token", spec, module, "token", ONE_TOKEN[backend]
    for which, maker in record_of(name).makers.items():
        of_features = maker.module(backend)
        for program in pipeline.lower(maker.layer).programs:
            label = f"{which}: {program.name}"
            yield label, maker.layer, of_features, program.name, AS_THEY_STAND


def digest(backend: str, modules: Iterable[ModuleType]) -> str:
    """Of what a compiler is given for a layer, by whom and with which flags, and of its version."""
    versions = [importlib.metadata.version(backend)]
    if backend == "tilelang":
        versions.append(subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)
    supporting = (path.read_text("utf-8") for path in sorted(SUPPORT.glob("*.py")))
    asked = inspect.getsource(aot), repr((DENSE, ONE_TOKEN, AS_THEY_STAND, OF_GROUPS))
    texts = [*asked, *map(inspect.getsource, modules), *(text for text in supporting if backend in text)]
    lines = "\n".join(versions + texts).splitlines()
    kept = [line for line in lines if not line.startswith("# build: ")]  # which names all of our compiler
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def test_another_text_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    module, other = (record_of(name).module("triton") for name in IN_FLOAT32[:2])
    was = digest("triton", [module])
    assert was == digest("triton", [module]) != digest("triton", [other])
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.0")
    assert digest("triton", [module]) != was


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
    found = budgets()
    assert list(found) == ["triton", "tilelang"]
    assert all(list(layers) == NAMES for layers in found.values())


def budgets() -> dict[str, Any]:
    return recorded(BUDGETS.read_text(encoding="utf-8"))


def record(backend: str, name: str, dtype: torch.dtype, key: str, found: dict[str, Resources]) -> None:
    """Merge into the file what was found."""
    own = {"of": key} | {program: asdict(resources) for program, resources in found.items()}

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

    comment = "Registers and bytes of stack a thread, bytes of shared memory a block, and of which text"
    rewrite(BUDGETS, comment, merged)
