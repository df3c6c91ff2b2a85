"""No compiled kernel of linear attention drops a NaN: interpreters cannot show that, instructions do."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

from based_ops.aot import tilelang_kernel, triton_kernel
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import Elementwise, HeadDims
from tests.kernels.runners import interpreting
from tests.layers import build

KINKED = LinearAttention("kinked", Elementwise("maximum(relu(x), minimum(elu(x), abs(x)))"), HeadDims(64, 64))
PROGRAMS = ("query_gradients", "token", "recurrence_warpgroups")
DROPPING = re.compile(r"\b(?:min|max)(?:\.ftz)?\.(?:f32|f16|f16x2|bf16|bf16x2)\b")
KEEPING = re.compile(r"\b(?:min|max)\.NaN\.f32\b")

pytestmark = pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")


@pytest.mark.parametrize("program", PROGRAMS)
def test_triton_keeps_nan(program: str) -> None:
    text = triton_kernel(KINKED, build(KINKED, "triton"), program, torch.bfloat16).asm["ptx"]
    assert not DROPPING.findall(text)
    assert KEEPING.findall(text)


@pytest.mark.skipif(importlib.util.find_spec("tilelang") is None, reason="TileLang is not installed")
def test_tilelang_keeps_nan() -> None:
    """Its min and max drop NaN, so what they choose from is looked at first."""
    text = tilelang_kernel(KINKED, build(KINKED, "tilelang"), "token", torch.bfloat16).kernel_source
    text = text[text.index("__global__") :]
    of_numbers = re.findall(r"\b(?:min|max)\((?:x|y)_?\d*, ", text)
    guarded = re.findall(r"\(\((\w+) != \1\) \? \1 : [^?;]*?\b(?:min|max)\(", text)
    assert len(of_numbers) == len(guarded) > 0
