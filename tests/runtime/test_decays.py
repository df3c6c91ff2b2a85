"""Layers whose state fades: what a decay means, at its limits and beyond them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.layers import LinearAttention
from based_ops.variant import Variant

B, T, H = 2, 150, 3
OF_TOKENS = ("simple_gla_qk64_v64", "taylor2_decay_qk16_v64")


@pytest.fixture(params=OF_TOKENS)
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


def drawn(op: Variant, length: int = T, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k and v."""
    return [torch.randn(B, length, H, width, dtype=dtype) * 0.5 for width in (op.qk, op.qk, op.v)]


def test_no_decay_is_a_layer_without(op: Variant) -> None:
    plain = based_ops.get("identity_qk64_v64" if op.qk == 64 else "taylor2_qk16_v64")
    inputs = drawn(op)
    o, _ = op(*inputs, torch.zeros(B, T, H, dtype=torch.float64))
    assert_close(o, plain(*inputs, scale=op.default_scale)[0])


@pytest.mark.parametrize("least", [-math.inf, -1e30, -800.0])
def test_a_decay_to_nothing_begins_a_sequence(op: Variant, least: float) -> None:
    """Nothing is left of what was there before, neither forward nor backward, and all is finite."""
    inputs = [x.requires_grad_() for x in drawn(op)]
    g = -torch.rand(B, T, H, dtype=torch.float64)
    g[:, 70] = least
    g.requires_grad_()
    o, state = op(*inputs, g, output_final_state=True)
    after, final = op(*(x[:, 70:] for x in inputs), g[:, 70:], output_final_state=True)
    assert_close(o[:, 70:], after)
    assert_close(state.state, final.state)
    gradients = torch.autograd.grad(o[:, 70:].square().sum() + state.state.sum(), [*inputs, g])
    assert all(x.isfinite().all() for x in gradients)
    assert not any(x[:, :70].any() for x in gradients)


def test_near_tokens_keep_their_digits_behind_a_long_decay(op: Variant) -> None:
    """G is in the tens of thousands, where float32 has two digits after the point.

    Of it what is in float32 is the part since the start of a chunk, some thousands here.
    """
    inputs = [x.float() for x in drawn(op, 3000)]
    g = torch.where(torch.arange(3000) < 2900, -20.0, -0.01).view(1, -1, 1).expand(B, -1, H)
    o, _ = op(*inputs, g)
    wanted, _ = op(*(x.double() for x in inputs), g.double())
    assert_close(o.double(), wanted, rtol=1e-3, atol=1e-3)


def test_one_decay_a_head_is_the_same_at_every_token() -> None:
    head, token = based_ops.get("retention_qk64_v64"), based_ops.get("simple_gla_qk64_v64")
    inputs = drawn(head)
    g = -torch.rand(H, dtype=torch.float64)
    g.requires_grad_()
    (one, _), (other, _) = head(*inputs, g), token(*inputs, g.expand(B, T, H))
    assert_close(one, other)
    assert_close(*(torch.autograd.grad(o.square().sum(), g)[0] for o in (one, other)))


def test_what_is_no_decay(op: Variant) -> None:
    q, k, v = drawn(op, 5)
    state = op.init_state(B, H, dtype=q.dtype)
    g = -torch.rand(B, 5, H, dtype=torch.float64)
    for bad, error, text in (
        (None, errors.ArgumentTypeError, "^g: .*has a decay"),
        (0.5, errors.ArgumentTypeError, "^g: .*has a decay"),
        (g[..., :1], errors.ShapeError, r"^g: .*\[2, 5, 3\]"),
        (g[0, 0], errors.ShapeError, r"^g: .*\[2, 5, 3\]"),
        (-g, errors.ArgumentValueError, "^g: .*above 0"),
    ):
        with pytest.raises(error, match=text):
            op(q, k, v, bad)
        with pytest.raises(error, match=text), torch.no_grad():
            op.step(q, k, v, state, bad)
    with pytest.raises(errors.ArgumentTypeError, match="^g: .*has no decay"):
        based_ops.get("window64_d64")(*(torch.zeros(1, 2, 1, 64) for _ in "qkv"), g)


@pytest.mark.parametrize("name", ["retention_qk64_v64", *OF_TOKENS])
def test_layers_make_their_decays(name: str) -> None:
    layer = LinearAttention(32, H, name, dtype=torch.float64)
    x = torch.randn(B, 20, 32, dtype=torch.float64)
    with torch.no_grad():
        want, _ = layer(x)
        head, state = layer(x[:, :9], output_state=True)
        steps = [layer.step(x[:, t : t + 1], state) for t in range(9, 20)]
        assert_close(torch.cat([head, *steps], 1), want)
    decay = layer.g if layer.decay == "head" else layer._decays(x)
    assert decay is not None and (decay < 0).all()
