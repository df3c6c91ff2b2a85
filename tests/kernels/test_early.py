"""Kernels of steps that are launched before those ahead have ended wait before they read anything."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from based_ops.record import record

pytest.importorskip("triton")

from based_ops.aot import triton_kernel  # noqa: E402

NAMES = ["conv3_silu", "taylor2_qk16_v112", "window129_d112", "simple_gla_qk64_v64"]


@pytest.mark.parametrize("name", NAMES)
def test_they_wait_first(name: str) -> None:
    module = import_module(f"based_ops.generated.{name}.triton")
    for flag in (False, True):
        compiled = triton_kernel(record(name).layer, module, "token", torch.bfloat16, EARLY=flag)
        lines = compiled.asm["ptx"].splitlines()
        waits, nexts, reads, writes = (
            [number for number, line in enumerate(lines) if word in line]
            for word in ("griddepcontrol.wait", "griddepcontrol.launch_dependents", "ld.global", "st.global")
        )
        assert reads and writes
        if flag:
            (wait,), (following,) = waits, nexts
            assert wait < following < min(reads + writes)
        else:
            assert not waits and not nexts
