"""The torch backend's gradients against finite differences in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.spec.model import Elementwise, HeadDims, Power, TaylorExp
from tests.kernels.runners import interpreting
from tests.layers import build

pytestmark = pytest.mark.skipif(interpreting(), reason="only the torch backend computes in float64")

DIMS = HeadDims(8, 16)
LINEAR = (
    LinearAttention("taylor2", TaylorExp(2), DIMS),
    LinearAttention("taylor1", TaylorExp(1), DIMS, normalize=False),
    LinearAttention("elementwise", Elementwise("elu(x) + 1"), DIMS, eps=0.1),
    LinearAttention("taylor3", TaylorExp(3), DIMS, signed_weights=True),
    LinearAttention("power2", Power(2), DIMS, eps=0.1),
    LinearAttention("power3", Power(3), DIMS, normalize=False),
)
TILES = (("CHUNK", 2), ("KEYS", 2), ("QUERIES", 2), ("SEGMENT", 2), ("LENGTH", 4), ("FEATURES", 11))


def leaf(*shape: int) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * 0.5).requires_grad_()


@pytest.mark.parametrize("spec", LINEAR, ids=lambda spec: spec.name)
def test_linear_attention(spec: LinearAttention) -> None:
    """The initial state and the final state's gradient included, over several chunks and segments."""
    torch.manual_seed(0)
    module = build(spec, "torch", TILES)

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            q, k, v, s, z = (*inputs, None)[:5]
            o, n, state, normalizer = module.forward(q, k, v, 0.3, s, z, True)
            ctx.save_for_backward(*inputs, o, n)
            return (o, state, normalizer) if spec.normalize else (o, state)

        @staticmethod
        def backward(ctx: Any, do: Tensor, ds: Tensor, dz: Tensor | None = None) -> Any:
            *inputs, o, n = ctx.saved_tensors
            q, k, v, s, z = (*inputs, None)[:5]
            return module.backward(do, ds, dz, q, k, v, o, n, 0.3, s, z, None)[: len(inputs)]

    q, k, v = leaf(1, 7, 1, 8), leaf(1, 7, 1, 8), leaf(1, 7, 1, 16)
    state, normalizer = module.forward(q.detach() * 0.7, k.detach(), v.detach(), 0.3, None, None, True)[2:]
    earlier = [x.clone().requires_grad_() for x in (state, normalizer)][: 2 if spec.normalize else 1]
    assert torch.autograd.gradcheck(Forward.apply, (q, k, v, *earlier), fast_mode=True)


@pytest.mark.parametrize("window", [1, 3, 9])
def test_sliding_window(window: int) -> None:
    torch.manual_seed(0)
    module = build(SlidingWindow("window", window, DIMS), "torch", TILES)

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            o, lse = module.forward(q, k, v, 0.3, None, None)
            ctx.save_for_backward(q, k, v, o, lse)
            return o

        @staticmethod
        def backward(ctx: Any, do: Tensor) -> Any:
            return module.backward(do, *ctx.saved_tensors, 0.3, None, None)

    # The keys reach two tokens further back than the queries.
    inputs = leaf(1, 7, 1, 8), leaf(1, 9, 1, 8), leaf(1, 9, 1, 16)
    assert torch.autograd.gradcheck(Forward.apply, inputs)
