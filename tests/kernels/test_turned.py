"""A walk that holds its state turned gives the same bits."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen.ir.traits import HOLDS
from based_ops.codegen.schedule.model import HOST_C
from tests.kernels.delta import DELTA, Layer, layers
from tests.kernels.inputs import calls
from tests.kernels.runners import Runner
from tests.layers import build
from tests.tolerance import assert_same


def in_order(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], dtype: Any = None) -> np.ndarray[Any, Any]:
    """A product whose elements are summed one term after the other, as on the matrix units.

    NumPy's own, which are the interpreter's, depend on how the operands lie.
    """
    total = np.zeros((*x.shape[:-1], y.shape[-1]), dtype or np.result_type(x, y))
    for k in range(x.shape[-1]):
        total += x[..., :, k, None].astype(total.dtype) * y[..., k, None, :].astype(total.dtype)
    return total


@pytest.mark.slow_in_c
@given(data=st.data())
def test_turned_walks_of_the_delta_rule(runner: Runner, data: st.DataObject) -> None:
    """Of any layer, with tiles as they are and turned: with states and decays, of one sequence or several."""
    if runner.device != "cpu":
        pytest.skip("warps share out the terms of a sum by how its tile lies")
    layer = data.draw(layers(runner, one=True))
    call, spec = layer.call, layer.spec
    target = HOST_C if runner.backend == "tilelang" else runner.backend
    cuts = sorted(data.draw(st.lists(st.integers(0, call.length), max_size=6), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    table = torch.tensor(edges, dtype=torch.int32) if edges else None
    initial, d_final = (layer.random_state(len(edges) or 1, salt) for salt in (4, 5))
    gathers = () if target == HOST_C else ("gather_by_product",)

    def run(*rewrites: str) -> list[torch.Tensor]:
        made = Layer(spec, build(spec, target, rewrites=rewrites, of=HOLDS), call, table)
        x, do = made.inputs(), made.output_gradient()
        with patch("numpy.matmul", in_order):
            found = (*made.forward(x, initial), *made.backward(do, d_final, x, initial))
        return [y for y in found if y is not None]

    for n, (plain, turned) in enumerate(zip(run(*gathers), run(*gathers, "turn"), strict=True)):
        if runner.backend == "torch":  # whose products depend on how the operands lie
            torch.testing.assert_close(turned, plain, rtol=1e-9, atol=1e-12)
        else:
            assert_same(f"result {n}", turned, plain)


@pytest.mark.slow_in_c
@given(data=st.data())
def test_columns_as_they_stand_are_those_that_are_gathered(runner: Runner, data: st.DataObject) -> None:
    """Blocks of pairs as long as a key begin with the key itself: by products, and without."""
    if runner.device != "cpu" or runner.backend == "triton":
        pytest.skip("Triton has no gather besides that by products")
    spec = next(spec for spec in DELTA if spec.name == "delta_taylor2")
    call = data.draw(calls(runner, spec, runner.dtypes[-1], 100))
    target = HOST_C if runner.backend == "tilelang" else runner.backend
    sizes = (("FEATURES", spec.head_dims.qk),)

    def run(*rewrites: str) -> tuple[torch.Tensor | None, ...]:
        made = Layer(spec, build(spec, target, sizes, rewrites, HOLDS), call)
        x, do = made.inputs(), made.output_gradient()
        return *made.forward(x), *made.backward(do, None, x)

    for n, (gathered, plain) in enumerate(zip(run(), run("gather_by_product"), strict=True)):
        if gathered is not None and plain is not None:
            assert_same(f"result {n}", plain, gathered)
