"""Hybrids on Hopper's warpgroups, as far as they can be tested without one: see `gluon.py` for how."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops.codegen.mixers.hybrid import Hybrid
from based_ops.codegen.names import on_warpgroups
from based_ops.codegen.schedule.orders import COPIES
from based_ops.codegen.spec.model import HeadDims, TaylorExp
from tests.kernels.hybrid import Layer
from tests.kernels.inputs import Call
from tests.kernels.warpgroups import fails_without_any_wait, passes
from tests.layers import build
from tests.tolerance import FORWARD, assert_close

WINDOW, DTYPE = 64, torch.bfloat16
LAYERS = {
    dims: Hybrid("hybrid", WINDOW, TaylorExp(2), HeadDims(*dims)) for dims in ((16, 64), (8, 24), (16, 128))
}


def layer(
    dims: tuple[int, int],
    length: int,
    segments: int,
    past: bool = False,
    module: ModuleType | None = None,
    batch: int = 2,
) -> Layer:
    spec = LAYERS[dims]
    forward, _ = passes(module or build(spec, "triton"), segments, spec)
    streams: Any = SimpleNamespace(forward=forward)
    return Layer(spec, streams, Call(batch, 2, length, DTYPE, "cpu", "dense", seed=length, scale=0.3), past)


@pytest.mark.parametrize(
    ("length", "segments"), [(1, 1), (63, 1), (64, 1), (65, 1), (128, 1), (333, 1), (200, 2), (640, 3)]
)
@pytest.mark.parametrize("past", [False, True], ids=["alone", "after a past"])
@pytest.mark.parametrize("dims", LAYERS, ids=str)
def test_forward(dims: tuple[int, int], past: bool, length: int, segments: int) -> None:
    one = layer(dims, length, segments, past)
    inputs = one.inputs()
    first, sums = one.cleared(inputs), one.sums() if past else None
    found = one.forward(inputs, first, sums)
    o, state = one.expected(inputs, first, sums)
    assert_close("o", found.o, o, FORWARD[DTYPE])
    assert_close("state", found.state, state.state, FORWARD[DTYPE])
    assert_close("normalizer", found.normalizer, state.normalizer, FORWARD[DTYPE])


@pytest.mark.parametrize("past", [1, 64, 65, 150])
def test_keys_may_reach_further_back_than_a_window(past: int) -> None:
    """Those are older keys of the first query already, which no state has."""
    one = layer((16, 64), 300, 1)
    q, k, v = one.inputs()
    o = one.forward((q[:, past:].contiguous(), k, v)).o
    assert_close("o", o, one.expected((q, k, v))[0][:, past:], FORWARD[DTYPE])


@given(data=st.data())
@settings(max_examples=12)
def test_what_is_not_finite_reaches_later_queries_alone(data: st.DataObject) -> None:
    """A value reaches its column of every query from its own on: none before."""
    length = data.draw(st.integers(1, 300), "length")
    segments = data.draw(st.integers(1, 2) if length > 2 * WINDOW else st.just(1), "segments")
    past = data.draw(st.booleans(), "past")
    token = data.draw(st.integers(0, length - 1), "token")
    number = data.draw(st.sampled_from((float("nan"), float("inf"), float("-inf"))), "number")
    one = layer((16, 64), length, segments, past)
    inputs = one.inputs()
    first, sums = one.cleared(inputs), one.sums() if past else None
    wanted, _ = one.expected(inputs, first, sums)
    v = inputs[2]
    v[1, v.shape[1] - length + token, 1, 3] = number
    o = one.forward(inputs, first, sums).o
    spoilt = torch.zeros(o.shape, dtype=torch.bool)
    spoilt[1, token:, 1, 3] = True
    assert torch.equal(~o.isfinite(), spoilt)
    assert_close("o", o.masked_fill(spoilt, 0), wanted.masked_fill(spoilt, 0), FORWARD[DTYPE])


@given(data=st.data())
@settings(max_examples=12)
def test_packed_sequences(data: st.DataObject) -> None:
    """Each as if it were alone, whatever else is there; tokens of none have outputs of 0."""
    length = data.draw(st.integers(1, 500), "length")
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=6), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    spec = LAYERS[16, 64]
    module = build(spec, "triton")
    one = layer((16, 64), length, 1)
    inputs = [x[:1].contiguous() for x in one.inputs()]
    nobodys = torch.ones(length, dtype=torch.bool)
    for begin, end in edges:
        nobodys[begin:end] = False
    spoilt = data.draw(st.sampled_from((None, *range(len(edges)))), "which holds what is not finite")
    for x in inputs:
        x[:, nobodys] = float("nan")
        if spoilt is not None:
            x[:, slice(*edges[spoilt])] = float("inf")
    begun = bool(edges) and data.draw(st.booleans(), "after states")
    first, sums = None, None
    if begun:  # whose rings lie in front of their sequences
        edges = [(a, b) for a, b in edges if b - a >= WINDOW]
        after = layer((16, 64), length, 1, past=True, batch=max(1, len(edges)))
        first, sums = after.first(), after.sums()
        for (a, b), absent in zip(edges, first, strict=False):
            gone = torch.arange(b - a)[:, None] < absent
            for x in inputs[1:]:
                x[0, a:b].masked_fill_(gone[..., None], 0)
    if not edges:
        return
    packed = module.SCHEDULE[on_warpgroups("forward_packed")][DTYPE]
    with patch.dict(packed, LENGTH=data.draw(st.sampled_from((128, 256)), "tokens of a segment")):
        o, lse, state, normalizer = passes(module, 1, spec)[0](
            *inputs, one.call.scale, first, *(sums or (None, None)), True, torch.tensor(edges)
        )
    nobodys[:] = True
    for begin, end in edges:
        nobodys[begin:end] = False
    assert not o[:, nobodys].any(), "tokens of no sequence"
    for i, (begin, end) in enumerate(edges):
        if i == spoilt:
            continue
        queries, keys, values = (x[:, begin:end] for x in inputs)
        if first is not None and sums is not None:
            begin += WINDOW
            own = [x[i : i + 1] for x in (first, *sums)]
            wanted, final = one.expected((queries[:, WINDOW:], keys, values), own[0], own[1:])
        else:
            wanted, final = one.expected((queries, keys, values))
        assert_close("state", state[i : i + 1], final.state, FORWARD[DTYPE])
        assert_close("normalizer", normalizer[i : i + 1], final.normalizer, FORWARD[DTYPE])
        if begin < end:
            assert_close("o", o[:, begin:end], wanted, FORWARD[DTYPE])


@pytest.mark.parametrize("copies", COPIES[1:])
def test_chunks_may_be_copied_later(copies: str) -> None:
    module = build(LAYERS[16, 64], "triton", rewrites=("gather_by_product", f"copies_{copies}"))
    one = layer((16, 64), 333, 1, module=module)
    inputs = one.inputs()
    assert_close("o", one.forward(inputs).o, one.expected(inputs)[0], FORWARD[DTYPE])


@given(data=st.data())
@settings(max_examples=8)
def test_large_scores(data: st.DataObject) -> None:
    """Sums are relative to the highest score: none leaves the range of numbers."""
    length, factor = (
        data.draw(st.integers(1, 200), "length"),
        data.draw(st.sampled_from((10.0, 40.0)), "factor"),
    )
    one = layer((16, 64), length, 1)
    q, k, v = one.inputs()
    inputs = [q * factor, k, v]
    found = one.forward(inputs)
    assert found.o.isfinite().all() and found.kept[0].isfinite().all()
    assert_close("o", found.o, one.expected(inputs)[0], FORWARD[DTYPE])


def test_no_wait_is_forgotten_and_none_too_many() -> None:
    def compute(module: ModuleType) -> None:
        one = layer((16, 64), 320, 1, module=module)
        found = one.forward(one.inputs())
        assert found.o.isfinite().all() and found.state.isfinite().all()

    module = build(LAYERS[16, 64], "triton")
    fails_without_any_wait(module, on_warpgroups("outputs"), 5, compute)
