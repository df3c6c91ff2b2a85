"""Rings: their two orders are inverse to each other and differentiable."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from based_ops.reference import key_features, query_features
from based_ops.state import first_valid, linear_to_ring, ring_of_start, ring_to_linear
from based_ops.variant import Variant

WINDOW = 5


def naive_ring(x: torch.Tensor, seen: int) -> torch.Tensor:
    """The ring after the first `seen` tokens of x [B,T,H,X], token by token."""
    ring = torch.zeros(x.shape[0], x.shape[2], WINDOW, x.shape[3], dtype=x.dtype)
    for token in range(seen):
        ring[:, :, token % WINDOW] = x[:, token]
    return ring


@pytest.mark.parametrize("seen", [1, 4, 5, 6, 13])
def test_ring_of_start(seen: int) -> None:
    x = torch.randn(2, seen, 3, 4)
    assert_close(ring_of_start(x, WINDOW), naive_ring(x, seen), rtol=0, atol=0)


@pytest.mark.parametrize("seen", [0, 1, 4, 5, 6, 13])
def test_linear_order(seen: int) -> None:
    x = torch.randn(2, 13, 3, 4)
    position = torch.full((2, 3), seen, dtype=torch.int32)
    linear = ring_to_linear(naive_ring(x, seen), position)
    first = first_valid(position, WINDOW)
    assert first.dtype == torch.int32 and bool((first == max(WINDOW - seen, 0)).all())
    tail = x[:, max(seen - WINDOW, 0) : seen]
    assert_close(linear[:, WINDOW - tail.shape[1] :], tail, rtol=0, atol=0)
    assert_close(linear_to_ring(linear, position), naive_ring(x, seen), rtol=0, atol=0)


def test_positions_may_differ() -> None:
    x = torch.randn(2, 13, 3, 4)
    seen = torch.tensor([[0, 3, 5], [6, 9, 13]], dtype=torch.int32)
    ring = torch.stack(
        [torch.stack([naive_ring(x, int(seen[b, h]))[b, h] for h in range(3)]) for b in range(2)]
    )
    linear = ring_to_linear(ring, seen)
    for b in range(2):
        for h in range(3):
            tail = x[b, max(int(seen[b, h]) - WINDOW, 0) : int(seen[b, h]), h]
            assert_close(linear[b, WINDOW - len(tail) :, h], tail, rtol=0, atol=0)
    assert_close(linear_to_ring(linear, seen), ring, rtol=0, atol=0)


def test_orders_are_differentiable() -> None:
    seen = torch.tensor([[0, 3], [6, 13]], dtype=torch.int32)
    ring = torch.randn(2, 2, WINDOW, 3, dtype=torch.float64, requires_grad=True)
    linear = torch.randn(2, WINDOW, 2, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ring_to_linear(x, seen), ring)
    assert torch.autograd.gradcheck(lambda x: linear_to_ring(x, seen), linear)
    assert torch.autograd.gradcheck(lambda x: ring_of_start(x, WINDOW), start)


def test_features_make_the_kernel(any_variant: Variant) -> None:
    spec = any_variant.spec
    if spec.mixer != "linear_attention":
        assert not hasattr(any_variant, "features")
        return
    q, k = torch.randn(2, 3, any_variant.qk, dtype=torch.float64).unbind(0)
    phi_q, phi_k = query_features(spec, q, 0.3), key_features(spec, k)
    assert phi_q.shape == phi_k.shape == (3, any_variant.features)
    v = torch.eye(3, any_variant.v, dtype=torch.float64)[None, :, None]
    weights = any_variant.reference(q[None, :, None], k[None, :, None], v, scale=0.3)[0, :, 0, :3]
    want = (phi_q @ phi_k.T).tril()
    if any_variant.normalize:
        want = want / (want.sum(-1, keepdim=True) + spec.eps)
    assert_close(weights, want)
