"""Heads of any width lower to CUDA: the warps of a block can share out every product of its tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from based_ops.codegen import pipeline
from based_ops.codegen.ir.check import check
from based_ops.codegen.ir.program import Program
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.short_conv import ShortConv
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.legal import shares_out
from based_ops.codegen.spec.model import Elementwise, HeadDims, LayerSpec
from tests.kernels.runners import any_linear_attention, any_window
from tests.layers import build


@given(spec=any_linear_attention() | any_window())
def test_warps_share_out_every_product(spec: LayerSpec) -> None:
    for program in pipeline.kernels(pipeline.lower(spec), "tilelang"):
        assert isinstance(program, Program)
        for dtype, setting in choose(spec, program, "tilelang").settings.items():
            assert dtype == "float32" or shares_out(program, check(program), setting), program.name


@pytest.mark.parametrize(
    ("qk", "v", "program"),
    [
        (16, 16, "states"),
        (80, 16, "outputs"),
        pytest.param(16, 48, "recurrence", marks=pytest.mark.all_kernels),
        pytest.param(64, 40, "recurrence", marks=pytest.mark.all_kernels),
        pytest.param(16, 112, "key_gradients", marks=pytest.mark.all_kernels),
    ],
)
def test_widths_that_divide_badly(qk: int, v: int, program: str) -> None:
    pytest.importorskip("tilelang")
    from based_ops.aot import tilelang_kernel

    spec = LinearAttention("widths", Elementwise("elu(x) + 1"), HeadDims(qk, v))
    assert "mma" in tilelang_kernel(spec, build(spec, "tilelang"), program, torch.bfloat16).kernel_source


@pytest.mark.parametrize("width", [pytest.param(48, marks=pytest.mark.all_kernels), 112])
def test_windows_that_divide_badly(width: int) -> None:
    pytest.importorskip("tilelang")
    from based_ops.aot import tilelang_kernel

    spec = SlidingWindow("widths", 64, HeadDims(width, width))
    assert "mma" in tilelang_kernel(spec, build(spec, "tilelang"), "outputs", torch.bfloat16).kernel_source


@pytest.mark.parametrize("program", ["gradients", "tap_gradients"])
def test_a_convolution_without_the_bias_it_may_have(program: str) -> None:
    """What is there under a flag alone takes no part where the flag is off: TileLang could not lay it out."""
    pytest.importorskip("tilelang")
    from based_ops.aot import tilelang_kernel

    spec = ShortConv("conv", 3)
    assert spec.bias
    lowered = tilelang_kernel(spec, build(spec, "tilelang"), program, torch.bfloat16, BIAS=False)
    assert "__global__" in lowered.kernel_source
