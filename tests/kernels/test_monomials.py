"""Maps that are polynomials of q·k: the rows of their states, and the layers that the pools leave out."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import HeadDims, Power, TaylorExp
from tests.kernels.inputs import Call
from tests.kernels.linear import Layer, expected, expected_gradients
from tests.kernels.runners import Runner, interpreting
from tests.layers import build
from tests.tolerance import BACKWARD, FORWARD, assert_close

THIRD_ORDER = LinearAttention("third_order", TaylorExp(3), HeadDims(16, 64), signed_weights=True)
"""The widest state that is shipped."""
SMALL = LinearAttention("small", TaylorExp(3), HeadDims(8, 16), signed_weights=True)
LENGTH = {"torch": 300, "triton": 20, "tilelang": 70}


@pytest.mark.skipif(interpreting(), reason="the torch backend is tested without it")
@pytest.mark.parametrize("qk", [8, 11])
@pytest.mark.parametrize("feature_map", [TaylorExp(3), Power(2), Power(3), Power(4)], ids=lambda x: x.label)
def test_rows_are_where_states_say(feature_map: TaylorExp | Power, qk: int) -> None:
    spec = LinearAttention(f"rows_{feature_map.label}_{qk}", feature_map, HeadDims(qk, 16), normalize=False)
    k = torch.randn(1, 1, 1, qk, dtype=torch.float64)
    v = torch.randn(1, 1, 1, 16, dtype=torch.float64)
    _, _, state, _ = build(spec, "torch").forward(k, k, v, 1.0, None, None, True)
    coordinates, factors = k.flatten().tolist(), getattr(feature_map, "degree", 3)
    if isinstance(feature_map, TaylorExp):
        coordinates.append(1.0)
    places = product(range(len(coordinates)), repeat=factors)
    chosen = [indices for indices in places if list(indices) == sorted(indices, reverse=True)]
    rows = torch.tensor([prod(coordinates[i] for i in indices) for indices in chosen], dtype=torch.float64)
    torch.testing.assert_close(state[0, 0], rows[:, None] * v.flatten())


def test_third_order(runner: Runner) -> None:
    """One call with a state before it, its gradients, and steps; TileLang compiles a smaller layer."""
    spec = SMALL if runner.backend == "tilelang" else THIRD_ORDER
    length, scale = LENGTH[runner.backend], spec.head_dims.qk**-0.5
    call = Call(1, 1, length, torch.float32, runner.device, "dense", 0, scale)
    layer = Layer(spec, runner.module(spec), call)
    q, k, v = layer.qkv()
    initial, do = layer.earlier(), layer.output_gradient()
    forward = layer.forward(q, k, v, initial)
    o, state = expected(layer, q, k, v, initial)
    assert_close("o", forward.o, o, FORWARD[torch.float32])
    assert_close("final state", forward.state, state.state, FORWARD[torch.float32])
    found = layer.backward(do, None, q, k, v, forward, initial)
    wanted = expected_gradients(layer, do, None, q, k, v, initial)
    for name, (gradient, part) in zip("qkv", wanted, strict=False):
        assert_close(f"gradient of {name}", getattr(found, name), gradient, BACKWARD[torch.float32], part)
    steps = layer.step(q[:, :2], k[:, :2], v[:, :2], initial)
    assert_close("o of steps", steps, o[:, :2], FORWARD[torch.float32])
