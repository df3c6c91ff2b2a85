"""Attention for the tokens with the highest gates."""

from __future__ import annotations

from math import ceil, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from based_ops.errors import ArgumentValueError, ShapeError
from based_ops.layers import SparseAttention


def naive(layer: SparseAttention, x: Tensor, chosen: Tensor) -> Tensor:
    """Full attention, times gates, where `chosen` [B,T,groups]."""
    q, k, v = (
        project(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    y = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    gates = layer.gate(x).sigmoid() * chosen
    found: Tensor = layer.o_proj(
        (y * gates.repeat_interleave(layer.heads // layer.groups, 2)[..., None]).flatten(2)
    )
    return found


@given(st.integers(1, 50), st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]), st.integers(0, 99))
def test_in_training_all_attend_and_in_evaluation_the_highest_gates(
    length: int, heads: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    layer = SparseAttention(8, *heads, dtype=torch.float64)
    x = torch.randn(3, length, 8, dtype=torch.float64)
    everyone = torch.ones(3, length, layer.groups)
    torch.testing.assert_close(layer(x), naive(layer, x, everyone))
    gates = layer.gate(x).sigmoid()
    wanted = (gates.sum(1) - sqrt(length)).relu().mean(0) / length
    assert layer.penalty is not None
    torch.testing.assert_close(layer.penalty.double(), wanted, rtol=1e-5, atol=1e-7)

    layer.eval()
    few = ceil(sqrt(length))
    highest = torch.zeros_like(gates).scatter(1, gates.topk(few, dim=1).indices, 1.0)
    found = layer(x)
    assert layer.penalty is None and (highest.sum(1) == few).all()
    torch.testing.assert_close(found, naive(layer, x, highest), rtol=1e-6, atol=1e-8)


def test_the_penalty_closes_gates() -> None:
    torch.manual_seed(0)
    layer, x = SparseAttention(16, 1), torch.randn(4, 64, 16)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    opened = []
    for _ in range(60):
        layer(x)
        assert layer.penalty is not None
        opened.append(float(layer.gate(x).detach().sigmoid().sum(1).mean()))
        layer.penalty.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert opened[0] > 20 and opened[-1] < 8.5, "√64"
    unpenalized = SparseAttention(16, 1, penalized=False)
    unpenalized(x)
    assert unpenalized.penalty is None


def test_no_token_sees_later_ones() -> None:
    layer, x = SparseAttention(8, 2).double(), torch.randn(1, 20, 8, dtype=torch.float64)
    other = torch.cat([x[:, :12], torch.randn(1, 8, 8, dtype=torch.float64)], 1)
    torch.testing.assert_close(layer(x)[:, :12], layer(other)[:, :12])


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ((8, 3), "heads: got 3, must be a divisor of d_model, 8"),
        ((8, 4, 3), "groups: got 3, must be a divisor of heads, 4"),
        ((0, 1), "d_model: got 0"),
    ],
)
def test_bad_sizes(given_: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        SparseAttention(*given_)


def test_inputs_of_another_shape() -> None:
    with pytest.raises(ShapeError, match="x: got .*, must be of shape \\[B, T, 8\\]"):
        SparseAttention(8, 2)(torch.randn(2, 3, 9))
