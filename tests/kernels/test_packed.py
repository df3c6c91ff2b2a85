"""Packed sequences: each is as if it were alone, whatever the others and the tokens between them hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.state import LinearAttentionState
from based_ops.support import host
from tests.kernels import hybrid, window
from tests.kernels.inputs import Call, calls
from tests.kernels.linear import Forward, Gradients, Layer, expected, expected_gradients
from tests.kernels.runners import Runner
from tests.kernels.test_linear_attention import of_state
from tests.layers import FORMS, LINEAR, build
from tests.tolerance import BACKWARD, FORWARD, Tolerance, assert_close, assert_same

SPOILT = (float("nan"), float("inf"))
LONGEST = {"cpu": 300, "cuda": 1111}


def places(edges: list[tuple[int, int]], device: str) -> Tensor:
    return torch.tensor(edges, dtype=torch.int32, device=device).view(-1, 2)


def draw_call(data: st.DataObject, runner: Runner) -> Layer:
    """A layer with a call of one batch entry, of so many tokens that they may be several segments."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(runner.linear_attentions(dtype), "spec")
    call = data.draw(calls(runner, spec, dtype, LONGEST[runner.device]), "call")
    form = data.draw(st.sampled_from(runner.forms(dtype)), "form")
    return Layer(spec, runner.module(spec, form), replace(call, batch=1))


@given(data=st.data())
def test_sequences_equal_naive_mathematics(runner: Runner, data: st.DataObject) -> None:
    """In float64, each by itself; one may be all there is, or have nearly all tokens beside short ones."""
    layer = draw_call(data, runner)
    tokens, dtype = layer.call.length, layer.call.dtype
    short = data.draw(st.lists(st.sampled_from((0, 0, 1, 2, 17)), max_size=4), "short ones")
    lengths = [n for i, n in enumerate(short) if sum(short[: i + 1]) <= tokens]
    lengths.insert(data.draw(st.integers(0, len(lengths)), "where the long one is"), tokens - sum(lengths))
    edges = [(sum(lengths[:n]), sum(lengths[: n + 1])) for n in range(len(lengths))]
    layer = replace(
        layer, sequences=places(edges, runner.device), invariant=data.draw(st.booleans(), "batch invariant")
    )
    q, k, v = layer.qkv()
    do = layer.output_gradient()
    several = replace(layer, call=replace(layer.call, batch=len(edges), layout="dense"))
    initial = several.earlier() if data.draw(st.booleans(), "initial states") else None
    found = layer.forward(q, k, v, initial)
    like = LinearAttentionState(found.state, found.normalizer if layer.spec.normalize else None)
    d_final = layer.random_like(like, 6) if data.draw(st.booleans(), "gradients of final states") else None
    gradients = layer.backward(do, d_final, q, k, v, found, initial)
    parts = ("state", "normalizer")[: 1 + layer.spec.normalize] if initial else ()
    of_head = layer.spec.decay == "head"
    owed = torch.zeros(2, layer.call.heads, dtype=torch.float64, device=runner.device)
    for n, (start, stop) in enumerate(edges):
        own, tile = slice(n, n + 1), slice(start, stop)
        one: Any = SimpleNamespace(
            spec=layer.spec, call=layer.call, decays=lambda *_, a=start, z=stop: layer.decays(a, z)
        )
        before, owes = (
            None if x is None else LinearAttentionState(*(y if y is None else y[own] for y in x))
            for x in (initial, d_final)
        )
        inputs = q[:, tile], k[:, tile], v[:, tile]
        o, state = expected(one, *inputs, before)
        assert_close("o", found.o[:, tile], o, FORWARD[dtype])
        assert_close("final state", found.state[own], state.state, of_state(FORWARD, layer))
        if layer.spec.normalize:
            assert_close(
                "final normalizer", found.normalizer[own], state.normalizer, of_state(FORWARD, layer)
            )
        names = ("q", "k", "v", *parts, *("g" for _ in layer.decays()))
        wanted = expected_gradients(one, do[:, tile], owes, *inputs, before)
        for name, (gradient, part) in zip(names, wanted, strict=True):
            if name == "g" and of_head:
                owed += torch.stack((gradient, part))
                continue
            got = getattr(gradients, name)
            tolerance = of_state(BACKWARD, layer) if name in parts else BACKWARD[dtype]
            if name == "g":  # a sum over all later tokens, of differences
                tolerance = tolerance.loosened(4)
            assert_close(
                f"gradient of {name}",
                got[own] if name in parts else got[:, tile],
                gradient,
                tolerance,
                floor=part,
            )
    if of_head:
        assert_close("gradient of g", gradients.g, owed[0], BACKWARD[dtype].loosened(4), floor=owed[1])


@given(data=st.data())
def test_sequences_do_not_know_each_other(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit: a sequence among others, which may hold what is not finite, and alone, if that is asked
    for.
    """
    layer = replace(draw_call(data, runner), invariant=True)
    length, device = layer.call.length, runner.device
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    begun, ended = (data.draw(st.booleans(), name) for name in ("initial states", "gradients of final ones"))
    q, k, v, do = (x.clone() for x in (*layer.qkv(), layer.output_gradient()))
    decays = tuple(x.clone() for x in layer.decays())
    of_tokens = decays and decays[0].dim() > 1
    spoilt = {
        n: data.draw(st.sampled_from((*SPOILT, 0.0, 0.0)), f"in sequence {n}") for n in range(len(edges))
    }
    nobodys = torch.ones(length, dtype=torch.bool)
    for n, (start, stop) in enumerate(edges):
        nobodys[start:stop] = False
        if spoilt[n]:
            for x in (q, k, v, do):
                x[:, start:stop] = spoilt[n]
    for x in (q, k, v, do, *(decays if of_tokens else ())):
        x[:, nobodys.to(device)] = float("nan")
    state = layer.empty()
    many = LinearAttentionState(
        *(None if x is None else x.new_zeros(len(edges), *x.shape[1:]) for x in state)
    )
    initial, d_final = (
        layer.random_like(many, salt) if on else None for salt, on in ((6, begun), (7, ended))
    )

    def run(edges: list[tuple[int, int]], start: int, stop: int, own: slice) -> tuple[Forward, Gradients]:
        """A call of some of the tokens, with some of the states."""

        def states(given: LinearAttentionState | None) -> LinearAttentionState | None:
            return given and LinearAttentionState(*(x if x is None else x[own] for x in given))

        call = replace(layer, sequences=places(edges, device))
        inputs = [x[:, start:stop] for x in (q, k, v, do)]
        g = tuple(x[:, start:stop].contiguous() if of_tokens else x for x in decays)
        found = call.forward(*inputs[:3], states(initial), decays=g)
        return found, call.backward(inputs[3], states(d_final), *inputs[:3], found, states(initial), decays=g)

    assume(length)
    found, gradients = run(edges, 0, length, slice(None))
    for name, x in (("o", found.o), ("dq", gradients.q), ("dk", gradients.k), ("dv", gradients.v)):
        assert not x[:, nobodys.to(device)].any(), f"{name} of tokens that no sequence has"
    for n, (start, stop) in enumerate(edges):
        own = slice(n, n + 1)
        if start == stop:
            before = layer.empty() if initial is None else LinearAttentionState(*initial)
            assert_same(
                "state after no tokens", found.state[own], before.state[own if begun else slice(None)]
            )
            continue
        if spoilt[n]:
            continue
        alone, of_alone = run([(0, stop - start)], start, stop, own)
        assert_same("o", found.o[:, start:stop], alone.o)
        assert_same("final state", found.state[own], alone.state)
        for name, x, y in zip("qkv", gradients[:3], of_alone[:3], strict=True):
            assert_same(f"gradient of {name}", x[:, start:stop], y)
        if of_tokens:
            assert_same("gradient of g", gradients.g[:, start:stop], of_alone.g)
        if begun:
            assert_same("gradient of the initial state", gradients.state[own], of_alone.state)


@given(data=st.data())
def test_what_others_hold_changes_no_bit(runner: Runner, data: st.DataObject) -> None:
    """However sequences are cut: that follows from their lengths, and from nothing that they hold."""
    layer = draw_call(data, runner)
    length = layer.call.length
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=5), "cuts"))
    edges = list(zip([0, *cuts], [*cuts, length], strict=True))
    layer = replace(layer, sequences=places(edges, runner.device))
    start, stop = data.draw(st.sampled_from(edges), "one of them")
    inputs = [x.clone() for x in (*layer.qkv(), layer.output_gradient())]

    def run() -> list[Tensor]:
        found = layer.forward(*inputs[:3])
        return [found.o, *layer.backward(inputs[3], None, *inputs[:3], found)[:3]]

    before = run()
    for x in inputs:
        x[:, :start] = x[:, stop:] = data.draw(st.sampled_from(SPOILT), "elsewhere")
    for name, x, y in zip(("o", "dq", "dk", "dv"), before, run(), strict=True):
        assert_same(name, x[:, start:stop], y[:, start:stop])


@pytest.mark.parametrize("invariant", [True, False])
def test_a_long_sequence_is_cut_as_if_it_were_alone_or_as_is_best(invariant: bool) -> None:
    """In its bits that shows: sums of segments are added up in another order than tokens."""
    spec = LINEAR[0]
    call = Call(1, 1, 3000, torch.float32, "cpu", "dense", seed=0, scale=0.25)
    layer = Layer(spec, build(spec, "torch", FORMS["recurrent"]), call, invariant=invariant)
    edges = [(0, 1024), (1024, 1030), (1030, 3000)]
    q, k, v = layer.qkv()
    found = replace(layer, sequences=places(edges, "cpu")).forward(q, k, v)
    alone = replace(layer, sequences=places(edges[:1], "cpu")).forward(q[:, :1024], k[:, :1024], v[:, :1024])
    assert torch.equal(found.state[:1], alone.state) == invariant
    assert torch.equal(found.o[:, :1024], alone.o) >= invariant


@given(data=st.data())
def test_plans_are_alike(runner: Runner, data: st.DataObject) -> None:
    """One kernel lays out segments as PyTorch's operations do."""
    if runner.backend != "triton":
        pytest.skip("others have one plan")
    from based_ops.support import triton

    length, grain = data.draw(st.integers(0, 3000), "length"), data.draw(st.sampled_from((16, 64, 128)))
    cuts = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=400).map(sorted), "cuts")
    sequences = places(list(zip(cuts, [*cuts[1:], length], strict=True)), runner.device)
    if data.draw(st.booleans(), "in 64 bits"):
        sequences = sequences.long()
    found, wanted = (x.packed_plan(sequences, length, grain, grain) for x in (triton, host))
    assert found[:2] == wanted[:2]
    for name, x, y in zip(("segments", "sequences"), found[2:], wanted[2:], strict=True):
        assert_same(name, x, y.to(torch.int32))


@given(data=st.data())
def test_tokens_of_no_sequence_are_cleared(runner: Runner, data: st.DataObject) -> None:
    """And nothing else is touched, wherever sequences lie; they may overlap, or end before they begin."""
    if runner.backend == "tilelang":
        pytest.skip("which clears as PyTorch does")
    module: Any = host
    if runner.backend == "triton":
        from based_ops.support import triton as module
    length, place = data.draw(st.integers(1, 300), "length"), st.integers(-3, 320)
    edges = data.draw(st.lists(st.tuples(place, place), min_size=1, max_size=200), "sequences")
    shape = data.draw(st.sampled_from(((1, length, 2, 24), (1, 2, length), (1, length, 3))), "shape")
    axis = shape.index(length, 1)
    x = torch.full(shape, float("nan"), device=runner.device)
    sequences = places(edges, runner.device)
    found = module.cleared(x, sequences, axis)
    assert found is x
    theirs = torch.zeros(length, dtype=torch.bool)
    for start, stop in edges:
        theirs[max(start, 0) : max(stop, 0)] = True
    kept = found.isnan().movedim(axis, 0).flatten(1)
    assert torch.equal(kept, theirs.to(kept.device)[:, None].expand_as(kept))
    assert not found.nan_to_num().any()


@given(data=st.data())
def test_windows_end_with_their_sequence(runner: Runner, data: st.DataObject) -> None:
    """Against softmax in float64, and bit for bit whatever finite numbers the other sequences hold."""
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.window_pool()), "spec")
    drawn = data.draw(calls(runner, spec, dtype, 150), "call")
    layer = window.Layer(spec, runner.module(spec), replace(drawn, batch=1))
    length, device, scale = layer.call.length, runner.device, layer.call.scale
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    q, k, v, do = (x.clone() for x in (*layer.qkv(), layer.output_gradient()))
    # Some of the first keys of each sequence are none, as before the tokens of a ring that is not full.
    first = torch.zeros(len(edges), layer.call.heads, dtype=torch.int32, device=device)
    begun = data.draw(st.booleans(), "first keys")
    for n, (start, stop) in enumerate(edges):
        if begun and start < stop:
            first[n] = data.draw(st.integers(0, stop - start - 1), f"first key of sequence {n}")

    def run(
        edges: list[tuple[int, int]], start: int, stop: int, first: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        given = [x[:, start:stop] for x in (q, k, v, do)]
        rest = scale, first if begun else None, places(edges, device)
        found = layer.module.forward(*given[:3], *rest)
        return found, layer.module.backward(given[3], *given[:3], *found, *rest)

    (o, _), gradients = run(edges, 0, length, first)
    others = torch.ones(length, dtype=torch.bool, device=device)
    one = data.draw(st.integers(0, len(edges) - 1), "one of them")
    start, stop = edges[one]
    for n, (a, z) in enumerate(edges):
        others[a:z] = False
        if a == z:
            continue
        seen = [x[:, a:z] for x in (q, k, v)]
        skipped = int(first[n, 0])
        want, _ = window.expected(spec.window, scale, *seen, first[n : n + 1] if begun else None)
        assert_close("o", o[:, a + skipped : z], want[:, skipped:], FORWARD[dtype])
    assert not any(x[:, others].any() for x in (o, *gradients) if not begun)
    if start == stop:
        return
    (alone, _), of_alone = run([(0, stop - start)], start, stop, first[one : one + 1])
    for x in (q, k, v, do):
        x[:, :start] = x[:, stop:] = data.draw(st.sampled_from(SPOILT), "elsewhere")
    (spoilt, _), of_spoilt = run(edges, 0, length, first)
    for name, x, y, z in zip(
        ("o", "dq", "dk", "dv"), (o, *gradients), (spoilt, *of_spoilt), (alone, *of_alone), strict=True
    ):
        own, y = x[:, start:stop], y[:, start:stop]
        allowed = (FORWARD if name == "o" else BACKWARD)[dtype]
        assert_same(f"{name} beside what is not finite", y, own)
        if runner.backend == "torch":  # whose tiles are as long as what there is, and its sums as they come
            _assert_near(f"{name} alone", z, own, allowed)
        else:
            assert_same(f"{name} alone", z, own)


def _assert_near(what: str, x: Tensor, y: Tensor, allowed: Tolerance) -> None:
    """The same elements are NaN, and the others differ by what rounding of numbers around 1 does."""
    assert torch.equal(x.isnan(), y.isnan()), what
    assert_close(what, x.nan_to_num(), y.nan_to_num(), allowed, floor=torch.ones_like(x))


@pytest.mark.slow_in_c
@given(data=st.data())
def test_hybrids_end_with_their_sequence(runner: Runner, data: st.DataObject) -> None:
    """As calls of their own, and bit for bit whatever the other sequences hold."""
    dtype = data.draw(st.sampled_from((torch.float32,) if runner.interpreted else runner.dtypes), "dtype")
    spec = data.draw(st.sampled_from(runner.hybrid_pool()), "spec")
    module = runner.module(spec, data.draw(st.sampled_from(runner.hybrid_forms()), "form"))
    drawn = replace(data.draw(calls(runner, spec, dtype, 50 if runner.interpreted else 150), "call"), batch=1)
    begun = data.draw(st.booleans(), "initial states")
    room, length, device = spec.window if begun else 0, drawn.length, runner.device
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=6), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    # In front of each sequence lie the keys of its ring, with queries that nobody reads.
    laid = [(a + n * room, z + (n + 1) * room) for n, (a, z) in enumerate(edges)]
    layer = hybrid.Layer(spec, module, replace(drawn, length=length + len(edges) * room))
    inputs = [x.clone() for x in layer.inputs()]
    every = replace(layer, sequences=places(laid, device))
    first = sums = None
    ones = [replace(layer, call=replace(drawn, length=max(z - a, 1))) for n, (a, z) in enumerate(edges)]
    if begun:
        ones = [replace(one, past=True) for one in ones]
        parts = [replace(one, call=replace(one.call, seed=drawn.seed + n)) for n, one in enumerate(ones)]
        first = torch.cat([part.first() for part in parts])
        sums = tuple(torch.cat(x) for x in zip(*(part.sums() for part in parts), strict=True))
        for (a, _), start in zip(laid, first, strict=True):
            missing = torch.arange(room, device=device)[:, None] < start
            for name, x in zip(layer.names, inputs, strict=True):
                of_query = name in ("q", "q_window")
                x[0, a : a + room].masked_fill_(missing[..., None] | of_query, 0)

    def own(n: int) -> tuple[list[Tensor], Tensor | None, tuple[Tensor, ...] | None]:
        """What a call of one sequence is given."""
        a, z = laid[n]
        of_queries = [name in ("q", "q_window") for name in layer.names]
        given = [
            x[:, a + room : z] if of_q else x[:, a:z] for x, of_q in zip(inputs, of_queries, strict=True)
        ]
        return (
            given,
            None if first is None else first[n : n + 1],
            None if sums is None else tuple(x[n : n + 1] for x in sums),
        )

    do = torch.zeros_like(inputs[2])
    there = [n for n, (a, z) in enumerate(edges) if a < z]
    assume(there)
    for n in there:
        given, start, _ = own(n)
        do[:, laid[n][0] + room : laid[n][1]] = ones[n].output_gradient(given, start)
    found = every.forward(inputs, first, sums)
    gradients = every.backward(do, inputs, found, first, sums)
    tolerance, of_gradients = FORWARD[dtype], BACKWARD[dtype]
    kept = max(tolerance, FORWARD[found.state.dtype], key=lambda one: one.norm)
    for n in there:
        a, z = laid[n]
        given, start, before = own(n)
        one = ones[n].forward(given, start, before)
        assert_close("o", found.o[:, a + room : z], one.o, tolerance)
        assert_close("state", found.state[n : n + 1], one.state, kept)
        each = ones[n].backward(do[:, a + room : z], given, one, start, before)
        for name, x, y in zip(layer.names, gradients, each, strict=False):
            part = x[:, a + room : z] if name in ("q", "q_window") else x[:, a:z]
            assert_close(f"gradient of {name}", part, y, of_gradients, floor=torch.ones_like(y))
    chosen = data.draw(st.sampled_from(there), "one of them")
    a, z = laid[chosen]
    value = data.draw(st.sampled_from(SPOILT), "elsewhere")
    for x in (*inputs, do):
        x[:, :a] = x[:, z:] = value
    spoilt = every.forward(inputs, first, sums)
    assert_same("o beside what is not finite", spoilt.o[:, a:z], found.o[:, a:z])
    assert_same("state beside it", spoilt.state[chosen], found.state[chosen])
    beside = every.backward(do, inputs, spoilt, first, sums)
    for name, x, y in zip(layer.names, beside, gradients, strict=False):
        assert_same(f"gradient of {name} beside it", x[:, a:z], y[:, a:z])
