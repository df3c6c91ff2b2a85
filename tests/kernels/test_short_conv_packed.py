"""Packed sequences of short convolutions: each is as if it were alone, whatever lies beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.support import host
from tests.kernels.runners import Runner
from tests.kernels.test_short_conv import NAMES, Call, calls, expected
from tests.tolerance import BACKWARD, FORWARD, assert_close, assert_same

SPOILT = (float("nan"), float("inf"))
PLAN = {"TILED": 1, "SHORTEST": 8, "LANES": 512}


def cut(data: st.DataObject, length: int) -> list[tuple[int, int]]:
    """Sequences in order, some without tokens and some with others between them that are nobody's."""
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    if data.draw(st.booleans(), "side by side"):
        return list(zip(cuts, cuts[1:], strict=False))
    return list(zip(cuts[::2], cuts[1::2], strict=False))


def of_one(inputs: list[Tensor | None], n: int, start: int, stop: int) -> list[Tensor | None]:
    """What a sequence would be called with alone."""
    x, weight, bias, gate, before = inputs
    assert x is not None
    own = None if gate is None else gate[:, start:stop]
    return [x[:, start:stop], weight, bias, own, None if before is None else before[n : n + 1]]


def draw_call(runner: Runner, data: st.DataObject, most: int) -> tuple[Call, list[tuple[int, int]]]:
    call = data.draw(calls(runner, most))
    edges = cut(data, call.shape[1])
    return replace(call, shape=(1, *call.shape[1:])), edges


def inputs_of(call: Call, edges: list[tuple[int, int]]) -> tuple[list[Tensor | None], Tensor]:
    """Those of the call with a state for each sequence, and where these are."""
    x, weight, bias, gate, _ = call.inputs()
    past = call.spec.width - 1
    before = call.values(len(edges), past, call.shape[2], salt=4) if "before" in call.given else None
    places = torch.tensor(edges, dtype=torch.int32, device=call.device).view(-1, 2)
    return [x, weight, bias, gate, before], places


@given(data=st.data())
def test_sequences_equal_calls_of_their_own(runner: Runner, data: st.DataObject) -> None:
    """Outputs and all gradients, against naive mathematics of each; tokens of nobody hold NaN, and get 0."""
    call, edges = draw_call(runner, data, 300)
    inputs, places = inputs_of(call, edges)
    dy = call.sequence(5)
    nobodys = torch.ones(call.shape[1], dtype=torch.bool, device=call.device)
    for start, stop in edges:
        nobodys[start:stop] = False
    for t in (inputs[0], inputs[3], dy):
        if t is not None:
            t[:, nobodys] = float("nan")
    y = call.module.forward(*inputs, places)
    found = call.module.backward(dy, *inputs, places)
    assert y.is_contiguous() and not y[:, nobodys].any()
    totals: list[Tensor | None] = [
        None if t is None else torch.zeros_like(t, dtype=torch.float64) for t in inputs
    ]
    for n, (start, stop) in enumerate(edges):
        own = [
            None if t is None else t.double().detach().requires_grad_()
            for t in of_one(inputs, n, start, stop)
        ]
        there = [t for t in own if t is not None]
        wanted = expected(call.spec, *own)[0]
        assert_close(
            f"y of {n}", y[:, start:stop], wanted.detach(), FORWARD[call.dtype], floor=y.nan_to_num()
        )
        options = {"allow_unused": True, "materialize_grads": True}
        gradients = iter(torch.autograd.grad(wanted, there, dy[:, start:stop].double(), **options))
        for name, total, t in zip(NAMES, totals, own, strict=True):
            if total is None or t is None:
                continue
            if name in ("weight", "bias"):
                total += next(gradients)
            elif name == "before":
                total[n : n + 1] = next(gradients)
            else:
                total[:, start:stop] = next(gradients)
    for name, total, gradient in zip(NAMES, totals, found, strict=True):
        if total is None:
            assert gradient.numel() == 0, name
            continue
        assert_close(f"gradient of {name}", gradient, total, BACKWARD[call.dtype])
        if name in ("x", "gate"):
            assert not gradient[:, nobodys].any(), name


@given(data=st.data())
def test_sequences_do_not_know_each_other(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit, whatever another one holds, its state included."""
    call, edges = draw_call(runner, data, 120)
    inputs, places = inputs_of(call, edges)
    dy, one = call.sequence(5), data.draw(st.integers(0, len(edges) - 1), "one of them")
    start, stop = edges[one]

    def run() -> list[Tensor]:
        found = call.module.backward(dy, *inputs, places)
        parts = [call.module.forward(*inputs, places), found[0]]
        if inputs[3] is not None:
            parts.append(found[3])
        own = [x[:, start:stop] for x in parts]
        return own if inputs[4] is None else [*own, found[4][one]]

    before, spoilt = run(), data.draw(st.sampled_from(SPOILT), "in the others")
    others = torch.ones(call.shape[1], dtype=torch.bool, device=call.device)
    others[start:stop] = False
    for t in (inputs[0], inputs[3], dy):
        if t is not None:
            t[:, others] = spoilt
    if inputs[4] is not None:
        inputs[4][[n for n in range(len(edges)) if n != one]] = spoilt
    for i, (x, y) in enumerate(zip(run(), before, strict=True)):
        assert_same(f"result {i}", x, y)


@given(data=st.data())
def test_plans_are_alike(runner: Runner, data: st.DataObject) -> None:
    """One kernel lays out segments as PyTorch's operations do, and all tokens are in one, once."""
    if runner.backend != "triton":
        pytest.skip("others have one plan")
    from based_ops.support import triton

    length = data.draw(st.integers(1, 600), "length")
    edges = cut(data, length)
    places = torch.tensor(edges, dtype=torch.int32, device=runner.device).view(-1, 2)
    found, wanted = (x.packed_stream_plan(places, length, 3, **PLAN) for x in (triton, host))
    assert found[:2] == wanted[:2]
    assert_same("segments", found[2], wanted[2].to(torch.int32))
    covered = torch.zeros(length, dtype=torch.int64)
    for first, stop, begin, end, number in wanted[2].tolist():
        covered[first:stop] += 1
        if first < stop:
            assert begin <= first and (number == -1) == (not any(start <= first for start, _ in edges))
        if first < min(stop, end):
            assert edges[number] == (begin, end)
    assert bool((covered == 1).all())
