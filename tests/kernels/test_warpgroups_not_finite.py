"""NaN and infinities on Hopper's warpgroups, as far as that can be tested without: see `gluon.py`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import lcm

import pytest
import torch
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from tests.covering import pairs
from tests.kernels import rows
from tests.kernels.test_not_finite import (
    NUMBERS,
    assert_gradients_reach,
    assert_reaches,
    wide,
    without_weights,
)
from tests.kernels.test_warpgroup_windows import BACKWARDS, in_groups, repeated
from tests.kernels.test_warpgroup_windows import LAYERS as WINDOWS
from tests.kernels.test_warpgroup_windows import layer as window_layer
from tests.kernels.test_warpgroups import FADING, LAYERS, MAPS, NARROW, OF_FADING, OF_MAPS, WIDE, name_of
from tests.kernels.warpgroups import SCALE, Call, passes
from tests.layers import build
from tests.tolerance import FORWARD

BF16 = torch.bfloat16
GROUPS = ((4, 2, 2), (1, 2, 2), (2, 1, 4))
"""Heads of q, k and v."""


@dataclass(frozen=True)
class Draw:
    """An element that is not finite, at random: half of the time near where chunks meet.

    Each layer has places of its own, so that together they try many.
    """

    layer: str
    seed: int
    numbers: tuple[float, ...] = NUMBERS

    def into(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        chosen = random.Random(f"{self.layer} {self.seed}")
        copies = [x.clone() for x in tensors]
        x = copies[self.seed % len(copies)]
        near = min(x.shape[1] - 1, 64 + chosen.randrange(-2, 2))
        token = chosen.choice([chosen.randrange(x.shape[1]), near])
        batch, head, column = (chosen.randrange(x.shape[axis]) for axis in (0, 2, 3))
        x[batch, token, head, column] = chosen.choice(self.numbers)
        return tuple(copies)


@pytest.mark.parametrize(
    ("spec", "segments", "draw"), pairs(LAYERS + WIDE + MAPS + FADING[1:3], (1, 2), range(4)), ids=name_of
)
def test_recurrence(spec: LinearAttention, segments: int, draw: int) -> None:
    call = Call(spec, BF16, 200)
    q, k, v = call.qkv = Draw(spec.name, draw).into(*call.qkv)
    before = call.states_before(segments) if segments > 1 else ()
    found, _, _ = call.launch(segments, (), before, final=False)
    decays = () if call.decay is None else (call.decay,)
    assert_reaches("o", found, rows.linear_attention(spec, *wide(q, k, v), SCALE, *decays), FORWARD[BF16])


@pytest.mark.parametrize(
    ("spec", "heads", "draw"), pairs((*LAYERS[:2], WIDE[0], MAPS[0]), GROUPS, range(3)), ids=name_of
)
def test_recurrence_of_groups(spec: LinearAttention, heads: tuple[int, int, int], draw: int) -> None:
    call = Call(spec, BF16, 200, heads)
    q, k, v = call.qkv = Draw(spec.name, draw).into(*call.qkv)
    found, _, _ = call.launch(1, (), (), final=False)
    repeated = [x.repeat_interleave(call.every // x.shape[2], 2) for x in wide(q, k, v)]
    assert_reaches("o", found, rows.linear_attention(spec, *repeated, SCALE), FORWARD[BF16])


GRADED = [
    *((spec, heads) for spec in (LAYERS[0], *NARROW, OF_MAPS[0]) for heads in ((2, 2, 2), (4, 2, 1))),
    *((spec, (2, 2, 2)) for spec in (*OF_MAPS[4:6], *OF_FADING[:2])),
]


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize(("spec", "heads"), GRADED, ids=name_of)
def test_gradients(spec: LinearAttention, segments: int, heads: tuple[int, int, int], draw: int) -> None:
    call = Call(spec, BF16, 200, heads)
    numbers = NUMBERS[:1] if draw < 2 else NUMBERS  # queries and keys are NaN, as in the tests of others
    do = torch.randn(*call.qkv[2].shape[:2], call.every, spec.head_dims.v).to(BF16)
    *qkv, do = Draw(f"{spec.name} {heads} {segments}", draw, numbers).into(*call.qkv, do)
    forward, backward = passes(build(spec, "triton"), segments, spec)
    o, n, *_ = forward(*qkv, *call.decays, SCALE, None, None, False)
    found = backward(do, None, None, *qkv, *call.decays, o, n, SCALE, None, None)

    def naive(*leaves: Tensor) -> Tensor:
        repeated = [x.repeat_interleave(call.every // x.shape[2], 2) for x in leaves]
        return rows.linear_attention(spec, *repeated, SCALE, *call.decays)

    assert_gradients_reach(found[:3], naive, do, qkv, BF16, 1.0)


@pytest.mark.parametrize(
    ("window", "draw", "past", "segments"), pairs(tuple(WINDOWS), range(6), (0, 70), (1, 2))
)
def test_windows(window: int, past: int, segments: int, draw: int) -> None:
    one = window_layer(window, 200, BF16, past)
    q, k, v = Draw(one.spec.name, draw).into(*one.qkv())
    first = one.first() if past else None
    o, _ = passes(one.module, segments)[0](q, k, v, one.call.scale, first, None)
    wanted = rows.sliding_window(window, *wide(q, k, v), one.call.scale, first)
    assert_reaches("o", o, wanted, FORWARD[BF16])


@pytest.mark.parametrize(("window", "heads", "draw"), pairs(BACKWARDS, GROUPS, range(3)), ids=str)
def test_windows_of_groups(window: int, heads: tuple[int, int, int], draw: int) -> None:
    spec, every = WINDOWS[window], lcm(*heads)
    q, k, v = qkv = Draw(spec.name, draw).into(*in_groups(spec, heads, 200))
    forward, backward = passes(build(spec, "triton"), 2, spec)
    o, lse = forward(*qkv, SCALE, None, None)

    def naive(*leaves: Tensor) -> Tensor:
        return rows.sliding_window(window, *(repeated(x, 2, every) for x in leaves), SCALE)

    assert_reaches("o", o, naive(*wide(q, k, v)), FORWARD[BF16])
    do = torch.randn(o.shape).to(BF16)
    found = backward(do, *qkv, o, lse, SCALE, None, None)
    assert_gradients_reach(found, naive, do, qkv, BF16, 1.0)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_whose_keys_have_no_weight(window: int) -> None:
    one = window_layer(window, 200, BF16)
    q, k, v = one.qkv()
    q, k = without_weights(q, k, window)
    o, _ = passes(one.module, 1)[0](q, k, v, one.call.scale, None, None)
    assert_reaches("o", o, rows.sliding_window(window, *wide(q, k, v), one.call.scale), FORWARD[BF16])


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("window", BACKWARDS)
def test_gradients_of_windows(window: int, segments: int, draw: int) -> None:
    one = window_layer(window, 200, BF16)
    *qkv, do = Draw(f"{one.spec.name} {segments}", draw).into(*one.qkv(), one.output_gradient())
    forward, backward = passes(one.module, segments)
    o, lse = forward(*qkv, one.call.scale, None, None)
    found = backward(do, *qkv, o, lse, one.call.scale, None, None)

    def naive(*leaves: Tensor) -> Tensor:
        return rows.sliding_window(window, *leaves, one.call.scale)

    assert_gradients_reach(found, naive, do, qkv, BF16, 1.0)
