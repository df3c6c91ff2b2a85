"""What tiles cost where a sequence is shorter than they are: on the torch backend, which can choose."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from based_ops.codegen.spec.model import LayerSpec
from tests.layers import LINEAR, WINDOWS, build


def products(spec: LayerSpec, length: int) -> int:
    """Multiplications and additions of a forward and a backward pass over `length` tokens."""
    q, k = torch.randn(2, 1, length, 2, spec.head_dims.qk)
    v = torch.randn(1, length, 2, spec.head_dims.v)
    module = build(spec, "torch")
    with FlopCounterMode(display=False) as counter:
        if spec.mixer == "sliding_window":
            module.backward(v, q, k, v, *module.forward(q, k, v, 0.1, None), 0.1, None)
        else:
            forward = module.forward(q, k, v, 0.1, None, None, True)
            module.backward(v, None, None, q, k, v, *forward[:2], 0.1, None, None)
    return counter.get_total_flops()


@pytest.mark.parametrize("spec", [*LINEAR, *WINDOWS], ids=lambda spec: spec.name)
def test_a_short_sequence_costs_what_it_has(spec: LayerSpec) -> None:
    costs = {length: products(spec, length) for length in (1, 2, 32)}
    assert costs[1] * 2 <= costs[2] <= costs[32] / 16
