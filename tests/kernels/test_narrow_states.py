"""States of two bytes: a step rounds them at random, so that they grow by as much as they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from based_ops import reference
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import Elementwise, HeadDims, TaylorExp
from based_ops.state import LinearAttentionState, feature_count
from tests.kernels.runners import Runner
from tests.layers import build

LAYERS = (
    LinearAttention("narrow_elu", Elementwise("elu(x) + 1"), HeadDims(16, 32), state_dtype="bfloat16"),
    LinearAttention("narrow_taylor", TaylorExp(2), HeadDims(8, 16), state_dtype="float16"),
    LinearAttention(
        "narrow_plain", Elementwise("exp(x)"), HeadDims(16, 32), normalize=False, state_dtype="bfloat16"
    ),
)
BATCH, HEADS = 3, 2


def after_many(spec: LinearAttention, device: str) -> LinearAttentionState:
    """A state so large that a token adds a small part of its last digit."""
    shape = (BATCH, HEADS, feature_count(spec), spec.head_dims.v)
    kept = getattr(torch, spec.state_dtype)
    size = 2.0 / torch.finfo(kept).eps
    state = torch.full(shape, size, dtype=kept, device=device)
    return LinearAttentionState(state, torch.full(shape[:3], size, device=device) if spec.normalize else None)


def token(spec: LinearAttention, seed: int, device: str) -> list[torch.Tensor]:
    """q, k and v, all positive."""
    drawn = torch.Generator().manual_seed(seed)
    widths = (spec.head_dims.qk, spec.head_dims.qk, spec.head_dims.v)
    return [torch.rand(BATCH, 1, HEADS, width, generator=drawn).div(2).to(device) for width in widths]


@pytest.mark.parametrize(
    ("spec", "same"),
    # Without a normaliser a token that repeats to the bit repeats its rounding.
    [*((spec, False) for spec in LAYERS), *((spec, True) for spec in LAYERS if spec.normalize)],
    ids=lambda x: getattr(x, "name", "one token" if x else "tokens"),
)
def test_rounding_is_right_on_average(runner: Runner, spec: LinearAttention, same: bool) -> None:
    module = runner.module(spec)
    state = after_many(spec, runner.device)
    last = torch.finfo(state.state.dtype).eps * float(state.state.max())  # its last digit
    added = variance = torch.zeros_like(state.state, dtype=torch.float64)
    for step in range(6):
        q, k, v = token(spec, 0 if same else step, runner.device)
        before = state.state.double()
        module.step(q, k, v, 0.1, *state, None)
        own = reference.linear_attention(spec, *(x.double() for x in (q, k, v)), 0.1)[1].state
        assert bool(((before + own - state.state.double()).abs() < last).all())
        chance = own / last
        assert bool((chance < 1).all())
        added, variance = added + own, variance + chance * (1 - chance)
    grown = state.state.double() - after_many(spec, runner.device).state.double()
    off, deviation = float((grown - added).sum() / last), float(variance.sum().sqrt())
    assert abs(off) < 5 * deviation < 0.25 * float(added.sum() / last)


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.name)
def test_rounding_repeats_bit_for_bit_and_keeps_nan(runner: Runner, spec: LinearAttention) -> None:
    module, x = runner.module(spec), token(spec, 1, runner.device)
    first, again = after_many(spec, runner.device), after_many(spec, runner.device)
    first.state[0, 0, 1, 2] = again.state[0, 0, 1, 2] = float("nan")
    module.step(*x, 0.1, *first, None)
    module.step(*x, 0.1, *again, None)
    assert torch.equal(first.state.nan_to_num(-1.0), again.state.nan_to_num(-1.0))
    assert int(first.state.isnan().sum()) == 1 and bool(first.state[0, 0, 1, 2].isnan())


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [(LAYERS[0], 0.04), (replace(LAYERS[0], state_dtype="float16"), 0.01), (LAYERS[2], 0.04)],
    ids=["bfloat16", "float16", "plain"],
)
def test_many_steps(spec: LinearAttention, allowed: float) -> None:
    module = build(spec, "torch")
    like = after_many(spec, "cpu")
    narrow = [None if x is None else torch.zeros_like(x) for x in like]
    exact = [None if x is None else torch.zeros_like(x).double() for x in like]
    for seed in range(3000):
        q, k, v = token(spec, seed, "cpu")
        found = module.step(q, k, v, 0.1, *narrow, None)
        wanted = module.step(q.double(), k.double(), v.double(), 0.1, *exact, None)
    assert float((found - wanted).norm() / wanted.norm()) < allowed
