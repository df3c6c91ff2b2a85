"""Tensors whose neighbours lie so far apart in memory that 32 bits do not hold an offset."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.spec.model import Elementwise, HeadDims
from tests.kernels.runners import Runner
from tests.tolerance import BACKWARD, FORWARD, assert_close

DTYPE = torch.bfloat16
SHAPE = (2, 5, 3)
"""Batch, tokens and heads."""
LAYERS = {
    "direct": LinearAttention("far", Elementwise("elu(x) + 1"), HeadDims(16, 16)),
    "recurrent": LinearAttention("far", Elementwise("elu(x) + 1"), HeadDims(16, 16)),
    "window": SlidingWindow("far_window", 4, HeadDims(16, 16)),
}


class Memory:
    """Room for tensors whose neighbours along one axis lie `distance` elements apart; most is untouched."""

    def __init__(self, device: str, axis: int, distance: int) -> None:
        storage = torch.UntypedStorage(((SHAPE[axis] - 1) * distance + 8192) * DTYPE.itemsize, device=device)
        self.all = torch.tensor([], dtype=DTYPE, device=device).set_(storage)
        self.axis, self.distance, self.used = axis, distance, 0

    def far(self, x: Tensor) -> Tensor:
        """A copy of x."""
        near = x.narrow(self.axis, 0, 1).contiguous()
        strides = list(near.stride())
        strides[self.axis] = self.distance
        copy = self.all.as_strided(x.shape, strides, self.used)
        self.used += near.numel()
        return copy.copy_(x)


def results(layer: str, module: ModuleType, x: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What a module makes of do, q, k and v."""
    do, q, k, v = x
    token = (q[:, 1:2], k[:, 1:2], v[:, 1:2])
    if layer == "window":
        forward = module.forward(q, k, v, 0.25, None, None)
        gradients = module.backward(do, q, k, v, *forward, 0.25, None, None)
        ring = [q.new_zeros(SHAPE[0], SHAPE[2], 4, 16) for _ in "kv"]
        position = torch.zeros(SHAPE[::2], dtype=torch.int32, device=q.device)
        step = module.step(*token, 0.25, *ring, position, None)
    else:
        forward = module.forward(q, k, v, 1.0, None, None, True)
        gradients = module.backward(do, None, None, q, k, v, *forward[:2], 1.0, None, None, None)[:3]
        state = [x.clone() for x in forward[2:]]
        step = module.step(*token, 1.0, *state, None)
    named = dict(zip(("o", "kept", "state", "normalizer"), forward, strict=False))
    return named | dict(zip(("dq", "dk", "dv"), gradients, strict=True)) | {"step": step}


@pytest.mark.parametrize(
    ("layer", "axis", "distance"),
    [
        *(("direct", "tokens", distance) for distance in (2**29, 2**30, 2**31 - 8, 2**31)),
        *((layer, "tokens", 2**30) for layer in ("recurrent", "window")),
        *((layer, axis, 2**30) for layer in ("direct", "window") for axis in ("batch", "heads")),
    ],
)
def test_far_neighbours(runner: Runner, layer: str, axis: str, distance: int) -> None:
    if runner.id == "tilelang-cpu":
        pytest.skip("it copies its inputs to dense tensors")
    module = runner.module(LAYERS[layer], None if layer == "window" else layer)
    generator = torch.Generator().manual_seed(0)
    near = tuple(torch.randn(*SHAPE, 16, generator=generator).to(DTYPE).to(runner.device) for _ in range(4))
    memory = Memory(runner.device, ("batch", "tokens", "heads").index(axis), distance)
    far = tuple(map(memory.far, near))
    wanted, found = results(layer, module, near), results(layer, module, far)
    for name, expected in wanted.items():
        assert_close(name, found[name], expected, (BACKWARD if name[0] == "d" else FORWARD)[DTYPE])
