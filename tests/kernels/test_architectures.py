"""The policy's kernels compile for GPUs on which nobody measured them, and fit their shared memory.

Nothing runs: Triton brings an assembler for each of these architectures.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from based_ops.aot import compile_triton
from based_ops.codegen import pipeline
from based_ops.codegen.emit.layer import ScheduledLayer, ScheduledProgram
from based_ops.codegen.schedule.budget import SHARED_MEMORY
from based_ops.codegen.schedule.policy import policy
from tests.conftest import SPECS
from tests.kernels.runners import interpreting
from tests.layers import import_text

LAYERS = ("taylor2_qk16_v64", "pos_elu_qk64_v64", "window64_d64")
ARCHITECTURES = ("sm_80", "sm_89", "sm_100")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One of them a layer, unless ``--all-kernels`` asks for every pair."""
    if "architecture" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-kernels")
        pairs = itertools.product(LAYERS, ARCHITECTURES) if every else zip(LAYERS, ARCHITECTURES, strict=True)
        metafunc.parametrize(("name", "architecture"), list(pairs))


@pytest.mark.slow
@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
def test_kernels_compile_for_other_architectures(name: str, architecture: str) -> None:
    spec = pipeline.load(SPECS, [name])[name]
    lowered = pipeline.lower(spec)
    programs = tuple(ScheduledProgram.of(p, policy(spec, p, "triton")) for p in lowered.programs)
    layer = ScheduledLayer(spec, "triton", programs, lowered.passes)
    module = import_text(pipeline.emit(layer), f"{name}_{architecture}")
    capability = int(architecture.removeprefix("sm_"))
    found = {
        program.name: compile_triton(spec, module, program.name, torch.bfloat16, capability=capability)
        for program in lowered.programs
    }
    assert all(resources.shared <= SHARED_MEMORY[architecture] for resources in found.values()), found
