"""Tiles of the torch backend: what they cost where a sequence is shorter, and products of some pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from based_ops.codegen.spec.model import LayerSpec
from based_ops.support.tiles import load, product, span, store
from tests.layers import LINEAR, WINDOWS, build


def products(spec: LayerSpec, length: int) -> int:
    """Multiplications and additions of a forward and a backward pass over `length` tokens."""
    q, k = torch.randn(2, 1, length, 2, spec.head_dims.qk)
    v = torch.randn(1, length, 2, spec.head_dims.v)
    module = build(spec, "torch")
    with FlopCounterMode(display=False) as counter:
        if spec.mixer == "sliding_window":
            module.backward(v, q, k, v, *module.forward(q, k, v, 0.1, None, None), 0.1, None, None)
        else:
            g = {"none": (), "head": (torch.zeros(2),), "token": (torch.zeros(1, length, 2),)}[spec.decay]
            forward = module.forward(q, k, v, *g, 0.1, None, None, True)
            module.backward(v, None, None, q, k, v, *g, *forward[:2], 0.1, None, None, None)
    return counter.get_total_flops()


@pytest.mark.parametrize("spec", [*LINEAR, *WINDOWS], ids=lambda spec: spec.name)
def test_a_short_sequence_costs_what_it_has(spec: LayerSpec) -> None:
    costs = {length: products(spec, length) for length in (1, 2, 32)}
    assert costs[1] * 2 <= costs[2] <= costs[32] / 16


@given(data=st.data())
def test_a_product_leaves_out_pairs_that_are_not_there(data: st.DataObject) -> None:
    """Of infinities and NaN too it is what adding up its terms gives."""
    numbers = st.sampled_from((0.0, 1.0, -2.0, 0.5, float("inf"), -float("inf"), float("nan")))
    rows, terms, columns = (data.draw(st.integers(1, 4), "extent") for _ in range(3))
    among = torch.tensor(
        [[data.draw(st.booleans(), "among") for _ in range(terms)] for _ in range(rows)]
    ).reshape(rows, terms)
    x, y = (
        torch.tensor([data.draw(numbers, "number") for _ in range(2 * m * n)]).reshape(2, m, n)
        for m, n in ((rows, terms), (terms, columns))
    )
    x = torch.where(among, x, 0.0)
    wanted = torch.where(among[:, :, None], x[..., None] * y[:, None], 0.0).sum(-2)
    torch.testing.assert_close(product(x, y, among), wanted, equal_nan=True)


def test_a_finite_product_is_the_plain_one() -> None:
    x, y = torch.randn(3, 40, 50).tril(), torch.randn(3, 50, 60)
    assert torch.equal(product(x, y, x != 0), x @ y)


@given(first=st.integers(0, 12), stop=st.integers(0, 9), start=st.integers(-4, 12), size=st.integers(1, 6))
def test_a_tile_begins_and_ends_with_its_sequence(first: int, stop: int, start: int, size: int) -> None:
    """What lies outside is 0 when it is read, and stays when it is written."""
    run, row = span(start, size, stop, first), torch.arange(1.0, 10.0)
    inside = [first <= t < min(stop, 9) for t in range(start, start + size)]
    wanted = [t + 1.0 if there else 0.0 for t, there in zip(range(start, start + size), inside, strict=True)]
    assert load(row[None], (run,)).tolist() == [wanted]
    written = torch.zeros(1, 9)
    store(written, (run,), torch.ones(1, size))
    assert written[0].nonzero().flatten().tolist() == [t - 1 for t in wanted if t]
