"""Rings: their two orders are inverse to each other and differentiable."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import based_ops
from based_ops.reference import key_features, query_features
from based_ops.state import (
    LinearAttentionState,
    first_valid,
    linear_to_ring,
    ring_of_start,
    ring_to_linear,
)
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
        assert hasattr(any_variant, "features") == hasattr(spec, "feature_map")
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


def documented(formula: str) -> Callable[..., int]:
    """A number of a feature as the state's docstring defines it, from f, D and others before it."""
    text = " ".join((inspect.getdoc(LinearAttentionState) or "").split())
    found = re.search(rf"\b{formula} = ([^,;:]*?)(?=,| and|;|:)", text)
    assert found is not None, text
    code = compile(found[1].replace(" mod ", " % ").replace(" div ", " // "), "docstring", "eval")
    return lambda **known: int(eval(code, {}, known))


@pytest.mark.parametrize(
    ("feature_map", "width"),
    [("{kind: taylor_exp, order: 2}", 8), ("{kind: taylor_exp, order: 2}", 9)]
    + [("{kind: taylor_exp, order: 1}", 9), ("{kind: elementwise, expression: x**2}", 11)],
)
def test_rows_stand_in_the_documented_order(
    feature_map: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.yaml"
    path.write_text(
        f"name: rows\nmixer: linear_attention\nfeature_map: {feature_map}\n"
        f"head_dims: {{qk: {width}, v: 16}}\nsigned_weights: true\n"
    )
    op = based_ops.load(path)
    q, k = torch.randn(2, 1, 3, 2, width)
    v = torch.randn(1, 3, 2, 16)
    state = op(q, k, v, output_final_state=True)[1]
    keys = [*k.unbind(-1)]
    if "order: 2" in feature_map:
        first, second = documented("a"), documented("c")
        pairs = [(first(f=f, D=width), f) for f in range(width * (width + 1) // 2)]
        rows = [keys[a] * keys[second(a=a, f=f, D=width)] for a, f in pairs]
        rows += [*keys, torch.ones_like(keys[0])]
    elif "order: 1" in feature_map:
        rows = [*keys, torch.ones_like(keys[0])]
    else:
        rows = [key**2 for key in keys]
    features = torch.stack(rows, -1)
    assert_close(state.state, torch.einsum("bthf,bthv->bhfv", features, v))
    assert_close(state.normalizer, features.sum(1))
