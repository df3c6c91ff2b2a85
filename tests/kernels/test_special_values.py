"""Zero, infinity, NaN and small numbers in kernels of linear attention, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.feature_map import canonical_text, parse
from based_ops.codegen.spec.model import Elementwise, HeadDims, TaylorExp
from tests.kernels.inputs import calls
from tests.kernels.linear import Layer
from tests.kernels.runners import Runner
from tests.spec.trees import run_text
from tests.strategies import expressions, wild_expressions

QK, V = 8, 16
KINKED = "sqrt(relu(x)) + minimum(maximum(abs(x), elu(x)), 1)*softplus(x)"
GROWING = "softplus(x)*log1p(exp(x))*expm1(softplus(x))*tanh(softplus(x))*(2*elu(x) + 2)"
"""Positive factors with positive slopes: value and slope have the relative error of the worst."""
POINTS = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 0.375, -2.5, 20.0])
SMALL = torch.tensor([-10.0, -6.0, -3.2, -1.0, -0.51, -0.49, -1e-2, -1e-4, 1e-4, 2e-2, 0.7, 9.0])


def maps(runner: Runner) -> st.SearchStrategy[str]:
    """Any where compiling is cheap."""
    return st.just(KINKED) if runner.backend == "tilelang" else wild_expressions() | expressions(3)


def run(runner: Runner, text: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """φ and φ' at each of some points: a sequence of one token for each, whose key it is.

    o = φ(1) Σ_d φ(k_d) and dk = φ(1) φ'(k), with values of ones, and a gradient of o that sums to 1.
    """
    plain = Elementwise(canonical_text(parse(f"({text})")))
    spec = LinearAttention("special", plain, HeadDims(QK, V), normalize=False)
    module = runner.module(spec)
    keys = x.to(runner.device).reshape(-1, 1, 1, 1).expand(-1, 1, 1, QK).contiguous()
    queries = torch.full_like(keys, 1.0)
    values = keys.new_ones(len(x), 1, 1, V)
    o, n = module.forward(queries, keys, values, 1.0, None, None, False)[:2]
    do = torch.full_like(o, 1 / V)
    dk = module.backward(do, None, None, queries, keys, values, o, n, 1.0, None, None, None)[1]
    return o[:, 0, 0, 0].double().cpu() / QK, dk[:, 0, 0, 0].double().cpu()


def by_torch(text: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by PyTorch: o / QK and dk."""
    x = x.clone().requires_grad_()
    value = run_text(text, x) * run_text(text, torch.ones_like(x))
    (slope,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    return value.detach().double(), torch.zeros_like(x) if slope is None else slope.double()


@given(data=st.data())
def test_maps_at_special_values(runner: Runner, data: st.DataObject) -> None:
    text = data.draw(maps(runner), "map")
    double = runner.backend == "torch" and data.draw(st.booleans(), "in float64")
    x = POINTS.double() if double else POINTS
    exact = by_torch(text, x.double())
    in_domain = ~exact[0].isnan()  # elsewhere a slope may still be a number: that of x**-0.5 at -inf is 0
    for found, wanted, rounded in zip(run(runner, text, x), exact, by_torch(text, x), strict=True):
        known = in_domain & wanted.isfinite() & (wanted.abs() < 1e6) & rounded.isfinite() & ~x.isnan()
        # What float32 costs PyTorch it may cost us.
        slack = 20 * (rounded - wanted).abs() + (1e-8 if double else 1e-4) * (1 + wanted.abs())
        assert ((found - wanted).abs() <= slack)[known].all(), (text, x[known], found, wanted)
    assert run(runner, text, x)[0][0].isnan()


def test_kinks_keep_nan(runner: Runner) -> None:
    value, slope = run(runner, KINKED, POINTS)
    assert value[0].isnan() and slope[0].isnan()
    assert value[3:].isfinite().all() and slope[3:].isfinite().all()


def test_small_values_keep_their_digits(runner: Runner) -> None:
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.bfloat16, 3e-2)):
        x = SMALL.to(dtype)
        u = x.double().requires_grad_()
        above = torch.where(
            u > 0, u + 1, u.clamp(max=0).exp()
        )  # elu + 1, in float64 not to be had from torch
        rest = "softplus(x)*log1p(exp(x))*expm1(softplus(x))*tanh(softplus(x))"
        at_one = run_text(GROWING, torch.ones(1, dtype=torch.float64))
        wanted = run_text(rest, u) * 2 * above * at_one
        (slope,) = torch.autograd.grad(wanted.sum(), u)
        for found, exact in zip(run(runner, GROWING, x), (wanted.detach(), slope), strict=True):
            torch.testing.assert_close(found, exact, rtol=tolerance, atol=1e-35)


def test_small_values_of_gelu(runner: Runner) -> None:
    """Below 0 they are differences of 1 and an error function near it."""
    if runner.backend == "tilelang":
        pytest.skip("C and CUDA have the complementary error function, and compiling takes seconds")
    x = SMALL.double()
    wanted = x * torch.erfc(-x * 0.5**0.5) / 2 * torch.nn.functional.gelu(torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(run(runner, "gelu(x)", SMALL)[0], wanted, rtol=3e-5, atol=1e-35)


def linear_in_queries(spec: LinearAttention) -> bool:
    """Whether outputs are linear in q, and in k: products of the others are all that gradients are."""
    feature_map = spec.feature_map
    first_order = isinstance(feature_map, TaylorExp) and feature_map.order == 1
    return not spec.normalize and (first_order or feature_map == Elementwise("x"))


@given(data=st.data())
def test_nan_in_nan_out(runner: Runner, data: st.DataObject) -> None:
    """One NaN in q or k reaches its token's outputs, prefilled and stepped, and gradients."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.linear_pool()), "spec")
    layer = Layer(spec, runner.module(spec), data.draw(calls(runner, spec, dtype, 20), "call"))
    inputs = [x.contiguous() for x in layer.qkv()]
    which = data.draw(st.sampled_from((0, 1)), "q or k")
    t = data.draw(st.integers(0, layer.call.length - 1), "token")
    inputs[which][:, t, :, data.draw(st.integers(0, spec.head_dims.qk - 1), "component")] = float("nan")
    found = layer.forward(*inputs)
    assert found.o[:, t].isnan().all()
    gradients = layer.backward(layer.output_gradient(), None, *inputs, found)
    if not linear_in_queries(spec):  # then the gradient of q, as of k, does not have it
        assert gradients[which][:, t].isnan().any()
    assert layer.step(*(x[:, t : t + 1] for x in inputs), layer.empty()).isnan().all()
