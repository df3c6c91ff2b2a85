"""Long convolutions against naive mathematics in float64: kernels and the public object."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, func, nn
from torch.testing import assert_close as same_numbers

import based_ops
from based_ops import LongConvHistory, errors
from based_ops.codegen.dtypes import DTYPES
from based_ops.codegen.mixers.long_conv import LongConv
from based_ops.codegen.schedule.model import HOST_C
from based_ops.reference.long_conv import long_conv
from based_ops.variant import Variant
from tests.kernels.inputs import LAYOUTS, laid_out
from tests.kernels.runners import LOW, Runner, interpreting
from tests.layers import build
from tests.strategies import long_convs
from tests.tolerance import BACKWARD, FORWARD, assert_close, assert_same

TILES = (("CHUNK", 8), ("CHANNELS", 16), ("LAGS", 8))
"""With which a few tokens and channels are several tiles."""
FORMS = (("LEAST", 1), ("LEAST", 1 << 62))
"""Sequences are transformed, or taken lag by lag."""
POOL = (
    LongConv("plain", 40, gate=False),
    LongConv("gated", 7),
    LongConv("shared", 24, "head", 5),
)
F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
EXACT = {"rtol": 0.0, "atol": 0.0}
NAMES = ("u", "filters", "skip", "gate", "before")

# Kernels


@dataclass(frozen=True)
class Call:
    """One layer's module with the shape of one call, and what the call gives of what it may leave out."""

    spec: LongConv
    module: ModuleType
    shape: tuple[int, ...]
    """Batch, tokens, and heads or channels."""
    taps: int
    dtype: torch.dtype
    device: str
    layout: str
    seed: int
    given: frozenset[str]

    @property
    def units(self) -> tuple[int, ...]:
        return (self.shape[2], self.spec.width) if self.spec.shared else self.shape[2:]

    def values(self, *shape: int, salt: int, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        drawn = torch.randn(*shape, generator=generator, dtype=F64) * 0.5
        return drawn.to(self.device, dtype or self.dtype)

    def wide(self, *shape: int, salt: int) -> Tensor:
        return self.values(*shape, salt=salt, dtype=torch.promote_types(self.dtype, torch.float32))

    def sequence(self, salt: int) -> Tensor:
        """[B, T, ...], perhaps a part of something larger that is NaN elsewhere."""
        drawn = self.values(*self.shape[:2], *self.units, salt=salt)
        if self.spec.shared:
            return laid_out(drawn, self.layout)
        return laid_out(drawn.unsqueeze(2), self.layout).squeeze(2)

    def inputs(self, count: int | None = None) -> list[Tensor | None]:
        """u, filters, skip, gate, and the inputs before each of `count` sequences, or of the batch."""
        before = (self.shape[0] if count is None else count, self.spec.length, *self.units)
        return [
            self.sequence(0),
            self.wide(self.taps, self.units[0], salt=1) / self.taps**0.5,
            self.wide(*self.units, salt=2) if "skip" in self.given else None,
            self.sequence(3) if "gate" in self.given else None,
            self.values(*before, salt=4) if "before" in self.given else None,
        ]


@st.composite
def calls(draw: st.DrawFn, runner: Runner, most: int = 70) -> Call:
    """Any layer with any call of it that the runner affords; TileLang compiles a kernel in seconds."""
    slow = runner.backend == "tilelang"
    dtype = draw(st.sampled_from((torch.float32,) if slow else runner.dtypes))
    pool = st.sampled_from(POOL[1:] if slow else POOL)
    cheap = dtype not in LOW and (runner.backend == "torch" or runner.interpreted)
    spec = replace(draw(pool | long_convs(90) if cheap else pool), dtypes=DTYPES)
    on_gpu = runner.device == "cuda"
    # The interpreter cuts bfloat16 off where a GPU rounds, which for a single number can be too much.
    least = 8 if runner.interpreted and dtype == torch.bfloat16 else 1
    lengths, units = st.integers(1, 24 if runner.interpreted else most), st.integers(least, 21)
    if on_gpu and most > 1000:
        lengths, units = st.sampled_from((1, 2, 33, 511, 1111)), st.sampled_from((1, 64, 257))
    if spec.shared:
        units = st.integers(least, max(least, 3))
    optional = [name for name, there in (("skip", True), ("gate", spec.gate), ("before", True)) if there]
    target = HOST_C if runner.id == "tilelang-cpu" else runner.backend
    # On the C target TileLang's tiles are small anyway, and a call costs seconds for each new schedule.
    tiles = () if on_gpu or slow else tuple(x for x in TILES if x[0] != "CHANNELS" or x[1] >= spec.width)
    return Call(
        spec,
        build(spec, target, (draw(st.sampled_from(FORMS)), *tiles)),
        (draw(st.integers(1, 3)), draw(lengths), draw(units)),
        draw(st.integers(1, spec.length + 9)),  # a call without a state may have more taps
        dtype,
        runner.device,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 1000)),
        draw(
            st.sampled_from([frozenset(), frozenset(optional)])
            if slow
            else st.frozensets(st.sampled_from(optional))
        ),
    )


def expected(spec: LongConv, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """y and the last inputs, in float64."""
    u, filters, *rest = (None if t is None else t.double() for t in inputs)
    assert u is not None and filters is not None
    return long_conv(spec, u, filters, *rest)


def leaves_of(inputs: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.double().detach().requires_grad_() for t in inputs]


def wanted_gradients(loss: Tensor, leaves: list[Tensor | None]) -> list[Tensor | None]:
    there = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(loss, there, allow_unused=True, materialize_grads=True))
    return [None if t is None else next(found) for t in leaves]


@given(data=st.data())
def test_forward_equals_reference(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner, 1500))
    inputs = call.inputs()
    kept = [None if t is None else t.clone() for t in inputs]
    y = call.module.forward(*inputs)
    assert y.dtype == call.dtype and y.is_contiguous()
    assert_close("y", y, expected(call.spec, *inputs)[0], FORWARD[call.dtype])
    for name, old, new in zip(NAMES, kept, inputs, strict=True):
        assert old is None or new is not None and assert_same(f"{name} after the call", new, old) is None


@given(data=st.data())
def test_gradients_equal_autograd(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner, 1200))
    inputs, dy = call.inputs(), call.sequence(5)
    found, leaves = call.module.backward(dy, *inputs), leaves_of(inputs)
    wanted = wanted_gradients((expected(call.spec, *leaves)[0] * dy.double()).sum(), leaves)
    for name, want, actual in zip(NAMES, wanted, found, strict=True):
        if want is None:
            assert actual.numel() == 0, name
        else:
            assert_close(f"gradient of {name}", actual, want, BACKWARD[call.dtype])


@given(data=st.data())
def test_both_ways_agree(runner: Runner, data: st.DataObject) -> None:
    """Which one serves is a choice of the schedule, and no other function."""
    if runner.backend == "tilelang" and runner.device == "cpu":
        pytest.skip("each way is compared with the reference there: a second module takes a minute")
    call = data.draw(calls(runner))
    inputs, dy = call.inputs(), call.sequence(5)
    both = [build(call.spec, runner.backend, (form,)) for form in FORMS]
    results = [(m.forward(*inputs), *m.backward(dy, *inputs)) for m in both]
    for name, one, other in zip(("y", *NAMES), *results, strict=True):
        if other.numel():
            assert_close(name, one, other.double(), BACKWARD[call.dtype])


@given(data=st.data())
def test_pieces_and_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    """The past of a piece is the end of the one before; a step puts its token into the ring, exactly."""
    call = data.draw(calls(runner, 12 if runner.interpreted else 40))
    u, filters, skip, gate, before = call.inputs()
    assert u is not None and filters is not None
    (batch, length, _), rows = call.shape, call.spec.length
    filters = filters[:rows].contiguous()
    if before is None:
        before = u.new_zeros(batch, rows, *call.units)
    seen = torch.cat([before, u], 1)
    whole = call.module.forward(u, filters, skip, gate, before)
    cut = data.draw(st.integers(0, length - 1), "cut")
    rest = None if gate is None else gate[:, cut:]
    piece = call.module.forward(u[:, cut:], filters, skip, rest, seen[:, cut : cut + rows].contiguous())
    assert_close("second piece", piece, whole[:, cut:], FORWARD[call.dtype])
    first = data.draw(st.integers(0, rows - 1), "the row of the oldest")
    history = before.roll(first, 1).contiguous()
    oldest = torch.full((batch, *call.units), first, dtype=torch.int32)
    oldest = oldest.to(call.device)
    t = 0
    while t < length:
        stop = min(length, t + data.draw(st.integers(1, 3), "tokens"))
        tokens = None if gate is None else gate[:, t:stop]
        y = call.module.step(u[:, t:stop], filters, skip, tokens, history, oldest, None)
        assert_close("step", y, whole[:, t:stop], FORWARD[call.dtype], floor=whole)
        t = stop
    assert bool((oldest == (first + length) % rows).all())
    assert_same("state", history.roll(-int(oldest.flatten()[0]), 1), seen[:, length:])


def cut(data: st.DataObject, length: int) -> list[tuple[int, int]]:
    """Where some sequences begin and end in so many tokens, perhaps with others in between."""
    count = data.draw(st.integers(1, 3), "sequences")
    ends = st.lists(st.integers(0, length), min_size=2 * count, max_size=2 * count)
    places = sorted(data.draw(ends, "begin and end of each"))
    return list(zip(places[::2], places[1::2], strict=True))


@given(data=st.data())
def test_packed_sequences_equal_those_alone(runner: Runner, data: st.DataObject) -> None:
    """Outputs and all gradients; tokens of no sequence have 0."""
    call = data.draw(calls(runner))
    call = replace(call, shape=(1, *call.shape[1:]))
    edges = cut(data, call.shape[1])
    places = torch.tensor(edges, dtype=torch.int32, device=call.device).view(-1, 2)
    inputs, dy = call.inputs(len(edges)), call.sequence(5)
    y, found = call.module.forward(*inputs, places), call.module.backward(dy, *inputs, places)
    leaves = leaves_of(inputs)
    u, filters, skip, gate, before = leaves
    assert u is not None and filters is not None
    want, loss = torch.zeros_like(u.detach()), torch.zeros((), dtype=F64, device=u.device)
    for n, (a, b) in enumerate(edges):
        own = gate if gate is None else gate[:, a:b], before if before is None else before[n : n + 1]
        piece = long_conv(call.spec, u[:, a:b], filters, skip, *own)[0]
        want[:, a:b] = piece.detach()
        loss = loss + (piece * dy[:, a:b].double()).sum()
    assert_close("y", y, want, FORWARD[call.dtype])
    leaves[1] = filters
    if not loss.requires_grad:
        loss = loss + sum((t * 0).sum() for t in leaves if t is not None)
    for name, wanted, actual in zip(NAMES, wanted_gradients(loss, leaves), found, strict=True):
        if wanted is not None:
            assert_close(f"gradient of {name}", actual, wanted, BACKWARD[call.dtype])


@given(data=st.data())
def test_packed_sequences_do_not_know_each_other(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit, whatever another one holds, what was before it included."""
    call = data.draw(calls(runner, 50))
    call = replace(call, shape=(1, *call.shape[1:]))
    edges = cut(data, call.shape[1])
    places = torch.tensor(edges, dtype=torch.int32, device=call.device).view(-1, 2)
    inputs, dy = call.inputs(len(edges)), call.sequence(5).clone()
    inputs[0] = None if inputs[0] is None else inputs[0].clone()
    one = data.draw(st.integers(0, len(edges) - 1), "one of them")
    start, stop = edges[one]

    def run() -> list[Tensor]:
        y, du = call.module.forward(*inputs, places), call.module.backward(dy, *inputs, places)[0]
        return [y[:, start:stop], du[:, start:stop]]

    kept, spoilt = run(), data.draw(st.sampled_from((float("nan"), float("inf"))), "in the others")
    others = torch.ones(call.shape[1], dtype=torch.bool, device=call.device)
    others[start:stop] = False
    u, before = inputs[0], inputs[4]
    assert u is not None
    u[:, others], dy[:, others] = spoilt, spoilt
    if before is not None:
        before[[n for n in range(len(edges)) if n != one]] = spoilt
    for i, (a, b) in enumerate(zip(run(), kept, strict=True)):
        assert_same(f"result {i}", a, b)


@given(data=st.data())
def test_nan_reaches_the_tokens_that_see_it(runner: Runner, data: st.DataObject) -> None:
    """And no others: not earlier ones, nor those of which the filter does not reach so far back."""
    call = data.draw(calls(runner))
    u, *others = call.inputs()
    assert u is not None
    u, (_, length, _) = u.clone(), call.shape
    t = data.draw(st.integers(0, length - 1), "token")
    channel = tuple(data.draw(st.integers(0, extent - 1), "channel") for extent in call.units)
    u[(slice(None), t, *channel)] = float("nan")
    wanted = torch.zeros(u.shape, dtype=torch.bool, device=u.device)
    wanted[(slice(None), slice(t, t + call.taps), *channel)] = True
    assert torch.equal(call.module.forward(u, *others).isnan(), wanted)


@given(data=st.data())
def test_nan_reaches_gradients_of_what_was_seen(runner: Runner, data: st.DataObject) -> None:
    """One in u or in the outputs' gradients, lag by lag: gradients are finite where autograd's are.

    Transforms leave no tap of a channel finite; those of u and of the gate are as here.
    """
    call = data.draw(calls(runner))
    u, *others = call.inputs()
    dy = call.sequence(5).clone()
    assert u is not None
    u, place = u.clone(), [data.draw(st.integers(0, extent - 1), "place") for extent in u.shape]
    data.draw(st.sampled_from((u, dy)), "poisoned")[tuple(place)] = float("nan")
    found, leaves = call.module.backward(dy, u, *others), leaves_of([u, *others])
    wanted = wanted_gradients((expected(call.spec, *leaves)[0] * dy.double()).sum(), leaves)
    by_lags = call.module.SCHEDULE["forward"][call.dtype]["LEAST"] > 1
    for name, want, actual in zip(NAMES, wanted, found, strict=True):
        if want is None or not (by_lags or name in ("u", "gate", "skip")):
            continue
        finite = want.isfinite()
        assert bool(actual.isfinite()[finite].all()), f"gradient of {name}"
        assert bool(actual.isnan()[want.isnan()].all()), f"gradient of {name}"
        kept = (torch.where(finite, t, 0) for t in (actual, want))
        assert_close(f"gradient of {name}", *kept, BACKWARD[call.dtype], torch.full_like(want, 1.0))


# The public object


public = pytest.mark.skipif(interpreting(), reason="calls on a CPU are served by the torch backend")
VARIANTS = ("long_conv_l2048", "long_conv_l2048_h16")


@pytest.fixture(params=VARIANTS)
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


def units_of(op: Variant, count: int) -> tuple[int, ...]:
    return (count, op.spec.width) if op.spec.shared else (count,)


def tensors(
    op: Variant,
    length: int = 9,
    dtype: torch.dtype = F64,
    units: int = 3,
    batch: int = 2,
    grad: bool = False,
    taps: int = 12,
) -> list[Tensor]:
    """u, filters, skip and gate."""
    own = units_of(op, units)
    shapes = ((batch, length, *own), (taps, units), own, (batch, length, *own))
    return [torch.randn(shape, dtype=F64).to(dtype).requires_grad_(grad) for shape in shapes]


def past(op: Variant, dtype: torch.dtype = F64, units: int = 3, grad: bool = False) -> LongConvHistory:
    """A history whose oldest input lies anywhere."""
    history = torch.randn(2, op.length, *units_of(op, units), dtype=F64).to(dtype)
    oldest = torch.full((2, *units_of(op, units)), 2041, dtype=torch.int32)
    return LongConvHistory(history.requires_grad_(grad), oldest)


def convolved(op: Variant, u: Tensor, filters: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    """A second oracle, of PyTorch's own convolution."""
    rows = u.flatten(2).transpose(1, 2)
    taps = filters.repeat_interleave(op.spec.width, 1).t().flip(1).unsqueeze(1)
    padded = nn.functional.pad(rows, (len(filters) - 1, 0))
    y = nn.functional.conv1d(padded, taps, groups=rows.shape[1]).transpose(1, 2).view(u.shape)
    return gate * (y + skip * u)


@public
@settings(max_examples=25)
@given(data=st.data())
def test_calls_and_gradients(data: st.DataObject) -> None:
    """Every gradient, through the final state too, of calls that leave out what they may."""
    op = based_ops.get(data.draw(st.sampled_from(VARIANTS)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    length, taps = data.draw(st.integers(1, 60), "length"), data.draw(st.integers(1, 60), "taps")
    u, filters, *others = tensors(op, length, grad=True, taps=taps)
    skip, gate = (t if data.draw(st.booleans()) else None for t in others)
    state = past(op, grad=True) if data.draw(st.booleans(), "state") else None
    y, final = op(u, filters, skip, gate, state, output_final_state=True)
    want, want_final = op.reference(u, filters, skip, gate, state, output_final_state=True)
    same_numbers(y, want, **CLOSE)
    assert isinstance(final, LongConvHistory)
    same_numbers(tuple(final), tuple(want_final), **EXACT)
    leaves = [t for t in (u, filters, skip, gate, state and state.history) if t is not None]
    got_grad, want_grad = (
        torch.autograd.grad(a.sin().sum() + b.history.cos().sum(), leaves)
        for a, b in ((y, final), (want, want_final))
    )
    same_numbers(got_grad, want_grad, **CLOSE)


@public
def test_it_is_a_convolution(op: Variant) -> None:
    for length in (5, 50):
        inputs = tensors(op, length, taps=40)
        same_numbers(op(*inputs)[0], convolved(op, *inputs), **CLOSE)
        same_numbers(op.reference(*inputs), convolved(op, *inputs), **CLOSE)


@public
def test_gradcheck(op: Variant) -> None:
    inputs = [*tensors(op, 4, units=2, batch=1, grad=True, taps=3)]
    assert torch.autograd.gradcheck(lambda *x: op(*x)[0], inputs)
    inputs = [*tensors(op, 33, units=1, batch=1, grad=True, taps=33)]
    if not op.spec.shared:
        assert torch.autograd.gradcheck(lambda *x: op(*x)[0], inputs)


@public
@pytest.mark.parametrize("length", [9, 60])
def test_pieces_and_steps(op: Variant, length: int) -> None:
    u, filters, skip, gate = tensors(op, length, taps=40)
    want, end = op(u, filters, skip, gate, output_final_state=True)
    ys, state, last = [], None, length - 3
    for a, b in ((0, 1), (1, 3), (3, last)):
        y, state = op(u[:, a:b], filters, skip, gate[:, a:b], state, output_final_state=True)
        ys.append(y)
    ys.append(op.step(u[:, last : last + 1], state, filters, skip, gate[:, last : last + 1]))
    ys.append(op.step(u[:, last + 1 :], state, filters, skip, gate[:, last + 1 :]))
    same_numbers(torch.cat(ys, 1), want, **CLOSE)
    same_numbers(tuple(state), tuple(end), **EXACT)


@public
def test_slots(op: Variant) -> None:
    """Steps and calls whose states are slots of a pool, one of which is none."""
    u, filters, skip, gate = tensors(op, batch=3)
    pool = op.init_state(5, 3, dtype=F64)
    pool.history.normal_()
    begun, slots = pool.history.clone(), torch.tensor([4, -1, 2], dtype=torch.int32)
    own = LongConvHistory(begun[[4, 4, 2]].clone(), torch.zeros(3, *units_of(op, 3), dtype=torch.int32))
    want = [op(u[:, :5], filters, skip, gate[:, :5], own, output_final_state=True)]
    want.append(op(u[:, 5:], filters, skip, gate[:, 5:], want[0][1], output_final_state=True))
    y, same = op(u[:, :5], filters, skip, gate[:, :5], pool, output_final_state=True, state_indices=slots)
    assert same is pool
    z = op.step(u[:, 5:], pool, filters, skip, gate[:, 5:], state_indices=slots)
    for got, (wanted, _) in zip((y, z), want, strict=True):
        same_numbers(got[[0, 2]], wanted[[0, 2]], **CLOSE)
        assert not got[1].any()
    for part, wanted in zip(pool, want[1][1], strict=True):
        same_numbers(part[[4, 2]], wanted[[0, 2]], **EXACT)
    same_numbers(pool.history[[0, 1, 3]], begun[[0, 1, 3]], **EXACT)


@public
def test_packed_and_padded_calls(op: Variant) -> None:
    u, filters, skip, gate = tensors(op, 12, batch=1)
    offsets = torch.tensor([0, 5, 5, 12])
    state = LongConvHistory(*(torch.cat([x, x[:1]]) for x in past(op)))
    for begun in (None, state):
        given = (u, filters, skip, gate, begun)
        y, final = op(*given, output_final_state=True, cu_seqlens=offsets)
        want = op.reference(*given, output_final_state=True, cu_seqlens=offsets)
        same_numbers((y, *final), (want[0], *want[1]), **CLOSE)
    u, filters, skip, gate = tensors(op, 7)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [1] * 7])
    y, final = op(u, filters, skip, gate, output_final_state=True, attention_mask=mask)
    alone, end = op(u[:1, 2:6], filters, skip, gate[:1, 2:6], output_final_state=True)
    same_numbers((y[:1, 2:6], final.history[:1]), (alone, end.history), **CLOSE)
    assert not y[0, :2].any()
    same_numbers(op(u, filters, batch_invariant=True)[0], op(u, filters)[0], **CLOSE)


@public
@pytest.mark.parametrize(("batch", "length", "units"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty_calls(op: Variant, batch: int, length: int, units: int) -> None:
    inputs = tensors(op, length, units=units, batch=batch, grad=True)
    history = torch.randn(batch, op.length, *units_of(op, units), dtype=F64).requires_grad_()
    state = LongConvHistory(history, torch.zeros(batch, *units_of(op, units), dtype=torch.int32))
    y, final = op(*inputs, initial_state=state, output_final_state=True)
    assert y.shape == (batch, length, *units_of(op, units))
    same_numbers(final.history.detach(), history.detach(), **EXACT)
    leaves = [*inputs, history]
    for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves, retain_graph=True), strict=True):
        assert gradient.shape == leaf.shape and not gradient.any()


@public
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled(op: Variant, dynamic: bool) -> None:
    def run(inputs: list[Tensor], state: LongConvHistory) -> Any:
        u, *others = inputs
        return op(2 * u, *others, state, output_final_state=True)

    inputs, state = tensors(op, grad=True), past(op, grad=True)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    got, want = (f(inputs, state) for f in (compiled, run))
    same_numbers((got[0], got[1].history), (want[0], want[1].history), **CLOSE)
    leaves = [*inputs, state.history]
    got, want = (torch.autograd.grad(y.sin().sum() + s.history.sum(), leaves) for y, s in (got, want))
    same_numbers(got, want, **CLOSE)
    with torch.no_grad():
        states = [LongConvHistory(state.history.detach().clone(), state.oldest.clone()) for _ in range(2)]
        u, filters, skip, gate = (t.detach() for t in inputs)
        step = torch.compile(op.step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        a, b = (
            f(u[:, :1], s, filters, skip, gate[:, :1]) for f, s in zip((step, op.step), states, strict=True)
        )
        same_numbers((a, *states[0]), (b, *states[1]), **CLOSE)


class Model(nn.Module):
    def __init__(self, op: Variant) -> None:
        super().__init__()
        self.op = op

    def forward(self, *inputs: Any) -> Any:
        return self.op(*inputs, output_final_state=True)


@public
def test_exported_programs_and_states_go_to_disk_and_back(op: Variant, tmp_path: Path) -> None:
    inputs = (*tensors(op), past(op))
    want = Model(op)(*inputs)
    torch.export.save(torch.export.export(Model(op), inputs), tmp_path / "program.pt2")
    got = torch.export.load(tmp_path / "program.pt2").module()(*inputs)
    same_numbers((got[0], *got[1]), (want[0], *want[1]), **CLOSE)
    assert pickle.loads(pickle.dumps(op)) is op is copy.deepcopy(op)
    file = io.BytesIO()
    torch.save(want[1], file)
    file.seek(0)
    for found in (torch.load(file), pickle.loads(pickle.dumps(want[1])), copy.deepcopy(want[1])):
        assert type(found) is LongConvHistory
        same_numbers(tuple(found), tuple(want[1]), **EXACT)


@public
def test_transforms(op: Variant) -> None:
    """Calls mapped over samples, and the gradients of what samples share."""
    u, filters, skip, gate = tensors(op, batch=6)
    u, gate = (x.unflatten(0, (3, 2)) for x in (u, gate))

    def loss(*inputs: Tensor) -> Tensor:
        return op(*inputs)[0].sin().sum()

    got = func.vmap(func.grad(loss, tuple(range(4))), (0, None, None, 0))(u, filters, skip, gate)
    every = zip(u, gate, strict=True)
    want = [func.grad(loss, tuple(range(4)))(own, filters, skip, by) for own, by in every]
    same_numbers(got, tuple(map(torch.stack, zip(*want, strict=True))), **CLOSE)


@public
def test_autocast(op: Variant) -> None:
    """Inputs are cast; filters and skip stay wide, and a state has what it holds."""
    inputs = tensors(op, dtype=torch.float32, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = op(*inputs, output_final_state=True)
    assert y.dtype == final.history.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in torch.autograd.grad(y.sum(), inputs))


@public
def test_wrong_arguments(op: Variant) -> None:
    u, filters, skip, gate = tensors(op)
    given = {"u": u, "filters": filters, "skip": skip, "gate": gate}
    nan = filters.clone()
    nan[7, 1] = float("nan")
    long = filters.new_zeros(op.length + 1, 3)
    state = past(op)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (errors.ShapeError, "^u: .*B, T, ", {"u": u[0]}),
        (errors.ShapeError, r"^filters: got \(12, 2\), .*\[12, 3\]", {"filters": filters[:, 1:]}),
        (
            errors.ShapeError,
            rf"^filters: got \(2049, 3\), .*2048 taps where {op.name}",
            {"filters": long, "output_final_state": True},
        ),
        (errors.ShapeError, r"^filters: got \(0, 3\), .*one tap", {"filters": long[:0]}),
        (errors.ShapeError, "^skip: ", {"skip": skip[None]}),
        (errors.ShapeError, "^gate: ", {"gate": gate[:, 1:]}),
        (errors.DtypeError, "^u: got torch.int64", {"u": u.long()}),
        (errors.DtypeError, "^filters: got torch.int64, must be torch.float64", {"filters": filters.long()}),
        (errors.DtypeError, "^gate: got torch.float32", {"gate": gate.float()}),
        (errors.DeviceError, "^skip: got meta", {"skip": skip.to("meta")}),
        (errors.ArgumentTypeError, "^filters: ", {"filters": None}),
        (errors.ArgumentTypeError, "^gate: ", {"gate": 1.0}),
        (errors.ArgumentValueError, f"^filters: got nan as tap 7 of filter 1.*{op.name}", {"filters": nan}),
        (errors.StateError, "^initial_state: ", {"initial_state": u}),
        (errors.StateError, "^initial_state.history: ", {"initial_state": LongConvHistory(u, state.oldest)}),
        (errors.BackendUnavailable, "backend", {"backend": "cuda"}),
    ]
    for error, match, changed in wrong:
        with pytest.raises(error, match=match):
            op(**given | changed)
    with pytest.raises(errors.ShapeError, match="^u: "):
        op.step(u.repeat_interleave(17, 1), state, filters)
    with pytest.raises(errors.ShapeError, match=f"^filters: .*where {op.name} has a state"):
        op.step(u[:, :1], state, long)
    same_numbers(op(u, long)[0], torch.zeros_like(u))  # which has no state, and reads no more than there is
    with pytest.raises(errors.GradientError, match="^filters: .*not differentiable"):
        op.step(u[:, :1], state, filters.requires_grad_())
    with pytest.raises(errors.ArgumentValueError, match="^units: got -1"):
        op.init_state(2, -1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "length.*missing|length"),
        ("length: 1", "length"),
        ("length: 8\nfilters: head", "filters.*needs a `width`"),
        ("length: 8\nwidth: 4", "width.*`filters: head`"),
        ("length: 8\nfilters: heads", "filters.*head"),
    ],
)
def test_specs_that_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "layer.yaml"
    path.write_text(f"name: layer\nmixer: long_conv\n{lines}\n")
    with pytest.raises(Exception, match=f"(?s){message}"):
        based_ops.load(path)


@public
def test_a_layer_without_gates_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "layer.yaml"
    path.write_text("name: layer\nmixer: long_conv\nlength: 8\ngate: false\n")
    op = based_ops.load(path)
    u = torch.randn(1, 3, 2)
    same_numbers(op(u, torch.ones(1, 2))[0], u)
    with pytest.raises(errors.ArgumentTypeError, match="^gate: "):
        op(u, torch.ones(1, 2), gate=u)
