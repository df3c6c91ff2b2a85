"""The reference keeps what is not finite apart, as mathematics row by row does: outputs and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops import reference
from tests.kernels import rows
from tests.kernels.runners import interpreting
from tests.layers import LINEAR, WINDOWS

pytestmark = pytest.mark.skipif(interpreting(), reason="no kernel runs here")
NUMBERS = (1.0, math.nan, math.inf, -math.inf)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
Naive = Callable[[Tensor, Tensor, Tensor], Tensor]


def assert_alike(data: st.DataObject, qk: int, v: int, found: Naive, wanted: Naive) -> None:
    """Outputs and gradients; one element of the inputs, or of the outputs' gradient, is one of NUMBERS."""
    length = data.draw(st.integers(1, 20), "length")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100), "seed"))
    *inputs, do = (
        torch.randn(2, length, 2, width, generator=generator, dtype=torch.float64) for width in (qk, qk, v, v)
    )
    poisoned = data.draw(st.sampled_from((*inputs, do)), "poisoned")
    place = tuple(data.draw(st.integers(0, extent - 1), "place") for extent in poisoned.shape)
    poisoned[place] = data.draw(st.sampled_from(NUMBERS), "number")
    leaves = [x.requires_grad_() for x in inputs]
    outputs = [f(*leaves) for f in (found, wanted)]
    torch.testing.assert_close(*outputs, **CLOSE, equal_nan=True)
    gradients = [torch.autograd.grad(o, leaves, do) for o in outputs]
    for name, got, want in zip("qkv", *gradients, strict=True):
        finite = want.isfinite()
        assert torch.equal(got.isfinite(), finite), f"gradient of {name}"
        torch.testing.assert_close(torch.where(finite, got, 0), torch.where(finite, want, 0), **CLOSE)


@given(data=st.data())
def test_linear_attention(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(LINEAR), "spec")
    assert_alike(
        data,
        spec.head_dims.qk,
        spec.head_dims.v,
        lambda q, k, v: reference.linear_attention(spec, q, k, v, 0.2)[0],
        lambda q, k, v: rows.linear_attention(spec, q, k, v, 0.2),
    )


@given(data=st.data())
def test_sliding_window(data: st.DataObject) -> None:
    window = data.draw(st.sampled_from((1, 3, 16, *(spec.window for spec in WINDOWS))), "window")
    assert_alike(
        data,
        8,
        4,
        lambda q, k, v: reference.sliding_window(window, q, k, v, 0.2)[0],
        lambda q, k, v: rows.sliding_window(window, q, k, v, 0.2),
    )
