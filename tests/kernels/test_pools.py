"""Steps of pools, and of several tokens, add up as single steps of a state by itself do: Triton lays their
tiles out alike.

The order of a sum follows from how the tile that is summed lies in threads, and that from how long Triton
takes vectors in memory to be.  The interpreter knows no threads, so kernels are compiled for Hopper.
"""

from __future__ import annotations

import re

import pytest
import torch

from based_ops.aot import triton_kernel
from based_ops.codegen.spec.model import LayerSpec
from tests.kernels.runners import interpreting
from tests.layers import HYBRIDS, LINEAR, WINDOWS, build

ONE_TOKEN = {"SEVERAL": False, "SLOTS": False, "GROUPED": False}
LAYERS = (LINEAR[0], LINEAR[2], LINEAR[3], LINEAR[8], WINDOWS[0], WINDOWS[1], HYBRIDS[1], HYBRIDS[2])


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sums_have_one_order(spec: LayerSpec, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    module = build(spec, "triton")
    alone = triton_kernel(spec, module, "token", dtype, **ONE_TOKEN)
    pooled = triton_kernel(spec, module, "token", dtype, **(ONE_TOKEN | {"SLOTS": True, "SEVERAL": True}))
    assert sums(alone.asm["ttgir"]) == sums(pooled.asm["ttgir"]) != []
    # One kernel for all pools, whatever their strides are.
    general = {parameter.name for parameter in module.token.params if parameter.do_not_specialize}
    assert general >= {f"{part.name}_b" for part in spec.signature().state if part.present}


def sums(text: str) -> list[str]:
    """What is summed up, in order: the shapes of tiles, and how they lie in threads."""
    layouts = dict(re.findall(r"(#\w+) = (#ttg\.[^\n]*)", text))

    def written_out(kind: str) -> str:
        while names := set(re.findall(r"#\w+\b(?!\.)", kind)) & set(layouts):
            for name in names:
                kind = re.sub(rf"{name}\b", layouts[name], kind)
        return kind

    return [written_out(kind) for kind in re.findall(r"\}\) : \((tensor<.*?>)\) -> ", text)]
