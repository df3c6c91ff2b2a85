"""State spaces against the recurrence in complex128: kernels, packed sequences, the public object."""

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
from based_ops import StateSpaceState, errors
from based_ops.codegen.dtypes import DTYPES
from based_ops.codegen.mixers.state_space import StateSpace
from based_ops.codegen.schedule.legal import ALL_TOKENS
from based_ops.codegen.schedule.model import HOST_C
from based_ops.codegen.schedule.sizes import power_of_two
from based_ops.reference.state_space import state_space
from based_ops.variant import Variant
from tests.kernels.inputs import LAYOUTS, laid_out
from tests.kernels.runners import LOW, Runner, interpreting
from tests.layers import build
from tests.strategies import state_spaces
from tests.tolerance import BACKWARD, FORWARD, Tolerance, assert_close, assert_same

TILES = (("CHANNELS", 4),)
"""With which a few channels are several tiles."""
CHUNKS = {
    "as planned": (),
    "walks": (("LEAST", ALL_TOKENS),),
    "chunks": (("LEAST", 1),),
    "segments": (("LEAST", 1), ("SHORTEST", 1), ("PROGRAMS", 100), ("FEWEST", 1)),
}
"""How calls can be asked to go through a sequence; filters of channels do not know segments."""
SMALL_CHUNKS = (("CHUNK", 16), ("SEGMENT", 32), ("LENGTH", 32))
"""With which a short sequence has several of both."""
POOL = (
    StateSpace("order16", 16),
    StateSpace("order6_shared", 6, filters="head", width=5),
    StateSpace("order2", 2),
    StateSpace("order10_shared", 10, filters="head", width=8),
)
F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
EXACT = {"rtol": 0.0, "atol": 0.0}
NAMES = ("x", "log_decay", "angle", "residues", "skip", "initial_state")

# Kernels


@dataclass(frozen=True)
class Call:
    """One layer's module with the shape of one call, and what the call gives of what it may leave out."""

    spec: StateSpace
    module: ModuleType
    shape: tuple[int, int, int]
    """Batch, length, and channels or heads."""
    dtype: torch.dtype
    device: str
    layout: str
    seed: int
    given: frozenset[str]

    @property
    def of_states(self) -> Tolerance:
        """How near states are: of filters of heads what tokens enter by is rounded as they are."""
        return FORWARD[self.dtype if self.spec.shared else self.wide]

    @property
    def wide(self) -> torch.dtype:
        return F64 if self.dtype == F64 else torch.float32

    @property
    def units(self) -> tuple[int, ...]:
        return (self.shape[2], self.spec.width) if self.spec.shared else self.shape[2:]

    def values(self, *shape: int, salt: int, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        found = torch.randn(*shape, generator=generator, dtype=F64) * 0.5
        return found.to(self.device, dtype or self.wide)

    def sequence(self, salt: int) -> Tensor:
        """x, perhaps a part of something larger that is NaN elsewhere."""
        x = self.values(*self.shape[:2], *self.units, salt=salt, dtype=self.dtype)
        if self.spec.shared:
            return laid_out(x, self.layout)
        return laid_out(x.unsqueeze(2), self.layout).squeeze(2)

    def states(self, count: int, salt: int) -> Tensor:
        return self.values(count, self.spec.modes, *self.units, 2, salt=salt)

    def inputs(self, count: int | None = None) -> list[Tensor | None]:
        """x, poles, residues, D, and so many states before the first token, by default one a batch entry."""
        filters, modes = self.shape[2], self.spec.modes
        return [
            self.sequence(0),
            -self.values(modes, filters, salt=1).abs() * 0.2,  # of some the last digit counts after the call
            self.values(modes, filters, salt=2) * 4,
            self.values(modes, filters, 2, salt=3) / modes**0.5,
            self.values(*self.units, salt=4) if "skip" in self.given else None,
            self.states(count or self.shape[0], 5) if "initial_state" in self.given else None,
        ]


@st.composite
def calls(draw: st.DrawFn, runner: Runner, most: int = 70) -> Call:
    """Any layer with any call of it that the runner affords; TileLang compiles a kernel in seconds."""
    slow = runner.backend == "tilelang"
    dtype = draw(st.sampled_from((torch.float32,) if slow else runner.dtypes))
    pool = st.sampled_from(POOL[:1] if slow else POOL)
    cheap = dtype not in LOW and (runner.backend == "torch" or runner.interpreted)
    spec = replace(draw(pool | state_spaces(40) if cheap else pool), dtypes=DTYPES)
    # The interpreter cuts bfloat16 off where a GPU rounds, which for a single number can be too much.
    least = 8 if runner.interpreted and dtype == torch.bfloat16 else 1
    optional = ("skip", "initial_state")
    whole = ("table_gradients.CHANNELS", max(16, power_of_two(spec.width)))
    tiles = () if runner.device == "cuda" else (*TILES, *SMALL_CHUNKS, whole)
    form = draw(st.sampled_from(tuple(CHUNKS)))
    return Call(
        spec,
        build(spec, HOST_C if runner.id == "tilelang-cpu" else runner.backend, tiles + CHUNKS[form]),
        (
            draw(st.integers(1, 3)),
            draw(st.integers(1, most)),
            draw(st.integers(1, 3) if spec.shared else st.integers(least, 13)),
        ),
        dtype,
        runner.device,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 1000)),
        frozenset(optional) if slow else draw(st.frozensets(st.sampled_from(optional))),
    )


def exact(inputs: list[Tensor | None]) -> list[Tensor | None]:
    """In float64, as leaves."""
    return [None if t is None else t.double().detach().requires_grad_() for t in inputs]


def expected(spec: StateSpace, inputs: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """y and the last state, in float64."""
    return state_space(spec, *(None if t is None else t.double() for t in inputs))  # type: ignore[arg-type]


@given(data=st.data())
def test_forward_equals_reference(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner, 70 if runner.interpreted else 300))
    inputs = call.inputs()
    kept = [None if t is None else t.clone() for t in inputs]
    y, final = call.module.forward(*inputs, True)
    assert y.dtype == call.dtype and y.is_contiguous() and final.dtype == call.wide
    wanted = expected(call.spec, inputs)
    assert_close("y", y, wanted[0], FORWARD[call.dtype])
    assert_close("final state", final, wanted[1], call.of_states)
    for name, old, new in zip(NAMES, kept, inputs, strict=True):
        assert old is None or new is not None and assert_same(f"{name} after the call", new, old) is None
    without, nothing = call.module.forward(*inputs, False)
    assert nothing.numel() == 0 and torch.equal(without, y)


@given(data=st.data())
def test_gradients_equal_autograd(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner))
    inputs, dy = call.inputs(), call.sequence(6)
    d_final = call.states(call.shape[0], 7) if data.draw(st.booleans(), "from the final state") else None
    found = call.module.backward(dy, d_final, *inputs)
    leaves = exact(inputs)
    results = expected(call.spec, leaves)
    owed = [dy.double(), torch.zeros_like(results[1]) if d_final is None else d_final.double()]
    wanted = iter(torch.autograd.grad(results, [t for t in leaves if t is not None], owed))
    for name, leaf, actual in zip(NAMES, leaves, found, strict=True):
        if leaf is None:
            assert actual.numel() == 0, name
        else:
            assert_close(f"gradient of {name}", actual, next(wanted), BACKWARD[call.dtype])


def in_chunks(runner: Runner, form: str) -> Call:
    """Of a layer of heads that all backends can afford, in several chunks, of which the last is not full."""
    spec, target = POOL[3], HOST_C if runner.id == "tilelang-cpu" else runner.backend
    tiles = () if runner.device == "cuda" else SMALL_CHUNKS
    module = build(spec, target, tiles + CHUNKS[form])
    given = frozenset(("skip", "initial_state"))
    return Call(spec, module, (2, 53, 2), torch.float32, runner.device, "dense", 1, given)


@pytest.mark.parametrize("form", ["chunks", "segments"])
def test_a_second_look_keeps_bits(runner: Runner, form: str) -> None:
    """Those of other channels, and of tokens before the chunk that has what is not finite, or after it."""
    call = in_chunks(runner, form)
    (x, *others), dy, whole = call.inputs(), call.sequence(6), runner.device == "cuda"
    assert x is not None
    spoilt, owed = x.clone(), dy.clone()
    spoilt[0, 40, 1, 3] = owed[0, 20, 1, 3] = float("nan")
    kept = torch.ones_like(x, dtype=torch.bool)
    kept[0, :, 1, 3] = False
    back = kept.clone()
    if not whole:  # chunks of 16 tokens, from where segments begin; there one begins at 32
        kept[0, :32, 1, 3] = back[0, 32:, 1, 3] = True
    y, found = (call.module.forward(each, *others, False)[0] for each in (x, spoilt))
    assert_same("y", found[kept], y[kept])
    dx, found = (call.module.backward(each, None, x, *others)[0] for each in (dy, owed))
    assert_same("dx", found[back], dx[back])


@pytest.mark.parametrize("form", ["chunks", "segments"])
def test_chunks_are_right_on_every_backend(runner: Runner, form: str) -> None:
    call = in_chunks(runner, form)
    spec, module = call.spec, call.module
    inputs, dy, d_final = call.inputs(), call.sequence(6), call.states(2, 7)
    y, final = module.forward(*inputs, True)
    leaves = exact(inputs)
    wanted = expected(spec, leaves)
    assert_close("y", y, wanted[0].detach(), FORWARD[call.dtype])
    assert_close("final state", final, wanted[1].detach(), FORWARD[call.dtype])
    owed = [dy.double(), d_final.double()]
    gradients = torch.autograd.grad(wanted, [t for t in leaves if t is not None], owed)
    for name, found, expect in zip(NAMES, module.backward(dy, d_final, *inputs), gradients, strict=True):
        assert_close(f"gradient of {name}", found, expect, BACKWARD[call.dtype])


@given(data=st.data())
def test_pieces_and_steps_equal_the_whole(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(calls(runner, 12 if runner.interpreted else 40))
    x, *filters, state = call.inputs()
    assert x is not None
    length = call.shape[1]
    if state is None:
        state = torch.zeros_like(call.states(call.shape[0], 5))
    whole, end = call.module.forward(x, *filters, state, True)
    cut = data.draw(st.integers(0, length - 1), "cut")
    between = state
    if cut:
        piece, between = call.module.forward(x[:, :cut], *filters, state, True)
        assert_close("first piece", piece, whole[:, :cut], FORWARD[call.dtype], floor=whole)
    piece, final = call.module.forward(x[:, cut:], *filters, between, True)
    assert_close("second piece", piece, whole[:, cut:], FORWARD[call.dtype], floor=whole)
    assert_close("its state", final, end, call.of_states)
    state, t = state.clone(), 0
    while t < length:
        count = min(data.draw(st.integers(1, 16), "tokens"), length - t)
        y = call.module.step(x[:, t : t + count], *filters, state)
        assert_close("step", y, whole[:, t : t + count], FORWARD[call.dtype], floor=whole)
        t += count
    assert_close("state", state, end, call.of_states)


@pytest.mark.parametrize("shared", [False, True])
def test_long_memories_are_as_right_as_short_ones(runner: Runner, shared: bool) -> None:
    """Poles so close to the circle that after all tokens a tenth is left, at any angle: less than half of the
    error that comes of multiplying by poles that were rounded to float32.
    """
    spec = POOL[1] if shared else POOL[0]
    length = 100 if runner.interpreted else 2000
    target = HOST_C if runner.id == "tilelang-cpu" else runner.backend
    call = Call(
        spec, build(spec, target), (1, length, 3), torch.float32, runner.device, "dense", 1, frozenset()
    )
    inputs = call.inputs()
    x, log_decay, angle = inputs[:3]
    assert x is not None and log_decay is not None and angle is not None
    inputs[1] = log_decay = torch.full_like(log_decay, -2.3 / length)
    _, final = call.module.forward(*inputs, True)
    wanted = expected(spec, inputs)[1]
    poles = torch.polar(log_decay.double().exp(), angle.double()).to(torch.complex64)
    poles = poles.unsqueeze(-1) if spec.shared else poles
    rounded = torch.zeros(1, spec.modes, *call.units, dtype=torch.complex64, device=x.device)
    for token in x.unbind(1):
        rounded = poles * rounded + token.unsqueeze(1)
    assert (final - wanted).norm() < (torch.view_as_real(rounded) - wanted).norm() / 2


@given(data=st.data())
def test_nan_reaches_later_tokens_of_its_channel(runner: Runner, data: st.DataObject) -> None:
    """And the gradient of x at earlier tokens, where it is in that of y; other channels keep their bits."""
    call = data.draw(calls(runner))
    x, *others = call.inputs()
    assert x is not None
    place = tuple(data.draw(st.integers(0, n - 1), "place") for n in x.shape[1:])
    wanted = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    wanted[(slice(None), slice(place[0], None), *place[1:])] = True
    spoilt, dy = x.clone(), call.sequence(6).clone()
    spoilt[(slice(None), *place)] = float("nan")
    beside = torch.ones_like(wanted)
    beside[(slice(None), slice(None), *place[1:])] = False
    clean, found = (call.module.forward(each, *others, False)[0] for each in (x, spoilt))
    assert torch.equal(found.isnan(), wanted)
    assert_same("y beside", found[beside], clean[beside])
    assert call.module.backward(dy, None, spoilt, *others)[0].isfinite().all()
    clean = call.module.backward(dy, None, x, *others)[0]
    dy[(slice(None), *place)] = float("nan")
    wanted.fill_(False)
    wanted[(slice(None), slice(None, place[0] + 1), *place[1:])] = True
    found = call.module.backward(dy, None, x, *others)[0]
    assert torch.equal(found.isnan(), wanted)
    assert_same("dx beside", found[beside], clean[beside])


def cut(data: st.DataObject, length: int) -> list[tuple[int, int]]:
    """Sequences in order, some without tokens and some with others between them that are nobody's."""
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=6), "cuts"))
    if data.draw(st.booleans(), "side by side"):
        return list(zip(cuts, cuts[1:], strict=False))
    return list(zip(cuts[::2], cuts[1::2], strict=False))


@given(data=st.data())
def test_packed_sequences_equal_calls_of_their_own(runner: Runner, data: st.DataObject) -> None:
    """Outputs, states and all gradients, against naive mathematics; tokens of nobody hold NaN, and get 0."""
    call = data.draw(calls(runner))
    call = replace(call, shape=(1, *call.shape[1:]))
    edges = cut(data, call.shape[1])
    inputs, dy, d_final = call.inputs(len(edges)), call.sequence(6), call.states(len(edges), 7)
    places = torch.tensor(edges, dtype=torch.int32, device=call.device).view(-1, 2)
    if runner.backend != "tilelang":  # of which only operators are called
        places = torch.nn.functional.pad(places, (0, 1), value=-7)[:, :2]  # a view, as of offsets
    nobodys = torch.ones(call.shape[1], dtype=torch.bool, device=call.device)
    for start, stop in edges:
        nobodys[start:stop] = False
    for t in (inputs[0], dy):
        assert t is not None
        t[:, nobodys] = float("nan")
    y, final = call.module.forward(*inputs, True, places)
    found = call.module.backward(dy, d_final, *inputs, places)
    assert not y[:, nobodys].any() and not found[0][:, nobodys].any()
    leaves, pieces, ends = exact(inputs), [], []
    x, *filters, state = leaves
    assert x is not None
    for n, (start, stop) in enumerate(edges):
        own = [x[:, start:stop], *filters, None if state is None else state[n : n + 1]]
        piece, end = expected(call.spec, own)
        assert_close(f"y of {n}", y[:, start:stop], piece.detach(), FORWARD[call.dtype], floor=y)
        pieces.append((piece * dy[:, start:stop].double()).sum())
        ends.append(end)
    finals = torch.cat(ends)
    assert_close("final states", final, finals.detach(), call.of_states)
    loss = torch.stack(pieces).sum() + (finals * d_final.double()).sum()
    there = [t for t in leaves if t is not None]
    wanted = iter(torch.autograd.grad(loss, there, allow_unused=True, materialize_grads=True))
    for name, leaf, actual in zip(NAMES, leaves, found, strict=True):
        if leaf is None:
            assert actual.numel() == 0, name
        else:
            assert_close(f"gradient of {name}", actual, next(wanted), BACKWARD[call.dtype])


@given(data=st.data())
def test_packed_sequences_do_not_know_each_other(runner: Runner, data: st.DataObject) -> None:
    """Bit for bit, whatever another one holds, its state included; and as in a batch of their own."""
    call = data.draw(calls(runner, 50))
    call = replace(call, shape=(1, *call.shape[1:]))
    edges = cut(data, call.shape[1])
    inputs = call.inputs(len(edges))
    places = torch.tensor(edges, dtype=torch.int32, device=call.device).view(-1, 2)
    one = data.draw(st.integers(0, len(edges) - 1), "one of them")
    start, stop = edges[one]

    def run() -> list[Tensor]:
        y, final = call.module.forward(*inputs, True, places)
        return [y[:, start:stop], final[one]]

    before, spoilt = run(), data.draw(st.sampled_from((float("nan"), float("inf"))), "in the others")
    others = torch.ones(call.shape[1], dtype=torch.bool, device=call.device)
    others[start:stop] = False
    x, state = inputs[0], inputs[5]
    assert x is not None
    x[:, others] = spoilt
    if state is not None:
        state[[n for n in range(len(edges)) if n != one]] = spoilt
    for i, (a, b) in enumerate(zip(run(), before, strict=True)):
        assert_same(f"result {i}", a, b)


# The public object


public = pytest.mark.skipif(interpreting(), reason="calls on a CPU are served by the torch backend")
VARIANTS = ("s4d_n64", "s4d_n64_h16")


@pytest.fixture(params=VARIANTS)
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


def units_of(op: Variant, count: int) -> tuple[int, ...]:
    return (count, op.spec.width) if op.spec.shared else (count,)


def tensors(
    op: Variant, length: int = 9, dtype: torch.dtype = F64, units: int = 3, batch: int = 2, grad: bool = False
) -> list[Tensor]:
    """x, log_decay, angle, residues and skip."""
    shapes = (
        (batch, length, *units_of(op, units)),
        *((op.modes, units),) * 2,
        (op.modes, units, 2),
        units_of(op, units),
    )
    found = [torch.randn(shape, dtype=F64).to(dtype) for shape in shapes]
    found[1] = -found[1].abs() / 4
    return [t.requires_grad_(grad) for t in found]


def past(op: Variant, dtype: torch.dtype = F64, units: int = 3, grad: bool = False) -> StateSpaceState:
    state = torch.randn(2, op.modes, *units_of(op, units), 2, dtype=F64).to(dtype)
    return StateSpaceState(state.requires_grad_(grad))


def kernel(op: Variant, length: int, log_decay: Tensor, angle: Tensor, residues: Tensor) -> Tensor:
    """K_l = 2 Re Σ R λ^l by powers, [T, D or H]."""
    places = torch.arange(length, dtype=F64)
    powers = torch.exp(torch.complex(log_decay, angle) * places[:, None, None])
    return 2 * (torch.view_as_complex(residues) * powers).sum(1).real


def convolved(op: Variant, x: Tensor, log_decay: Tensor, angle: Tensor, residues: Tensor) -> Tensor:
    """A second oracle: the convolution with that, by FFT."""
    length = x.shape[1]
    taps = kernel(op, length, log_decay, angle, residues)
    taps = taps.unsqueeze(-1) if op.spec.shared else taps
    spectra = (torch.fft.rfft(t, 2 * length, dim=-1 - len(op.spec.units)) for t in (x, taps))
    a, b = spectra
    return torch.fft.irfft(a * b, 2 * length, dim=1)[:, :length]


@public
@settings(max_examples=20)
@given(data=st.data())
def test_calls_and_gradients(data: st.DataObject) -> None:
    """Every gradient, through the final state too, of calls that leave out what they may."""
    op = based_ops.get(data.draw(st.sampled_from(VARIANTS)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    length = data.draw(st.integers(1, 40), "length")
    x, *filters, skip = tensors(op, length, grad=True)
    given_skip = skip if data.draw(st.booleans(), "skip") else None
    state = past(op, grad=True) if data.draw(st.booleans(), "state") else None
    y, final = op(x, *filters, given_skip, state, output_final_state=True)
    want, want_final = op.reference(x, *filters, given_skip, state, output_final_state=True)
    same_numbers(y, want, **CLOSE)
    assert isinstance(final, StateSpaceState)
    same_numbers(final.modes, want_final.modes, **CLOSE)
    leaves = [t for t in (x, *filters, given_skip, state and state.modes) if t is not None]
    got_grad, want_grad = (
        torch.autograd.grad(a.sin().sum() + b.modes.cos().sum(), leaves)
        for a, b in ((y, final), (want, want_final))
    )
    same_numbers(got_grad, want_grad, **CLOSE)


@public
def test_it_is_a_convolution(op: Variant) -> None:
    x, *filters, skip = tensors(op, 50)
    same_numbers(op(x, *filters)[0], convolved(op, x, *filters), **CLOSE)
    same_numbers(op(x, *filters, skip)[0], convolved(op, x, *filters) + skip * x, **CLOSE)


@public
def test_pieces_and_steps(op: Variant) -> None:
    x, *filters = tensors(op)
    want, end = op(x, *filters, output_final_state=True)
    ys, state = [], None
    for a, b in ((0, 1), (1, 3), (3, 6)):
        y, state = op(x[:, a:b], *filters, state, output_final_state=True)
        ys.append(y)
    ys.append(op.step(x[:, 6:7], state, *filters))
    ys.append(op.step(x[:, 7:], state, *filters))
    same_numbers(torch.cat(ys, 1), want, **CLOSE)
    same_numbers(state.modes, end.modes, **CLOSE)


@public
def test_slots(op: Variant) -> None:
    """Steps and calls whose states are slots of a pool, one of which is none."""
    x, *filters = tensors(op, batch=3)
    pool = op.init_state(5, 3, dtype=F64)
    pool.modes.normal_()
    begun, slots = pool.modes.clone(), torch.tensor([4, -1, 2], dtype=torch.int32)
    own = StateSpaceState(begun[[4, 4, 2]].clone())
    want = [op(x[:, :5], *filters, own, output_final_state=True)]
    want.append(op(x[:, 5:], *filters, want[0][1], output_final_state=True))
    y, same = op(x[:, :5], *filters, pool, output_final_state=True, state_indices=slots)
    assert same is pool
    z = op.step(x[:, 5:], pool, *filters, state_indices=slots)
    for got, (wanted, _) in zip((y, z), want, strict=True):
        same_numbers(got[[0, 2]], wanted[[0, 2]], **CLOSE)
        assert not got[1].any()
    same_numbers(pool.modes[[4, 2]], want[1][1].modes[[0, 2]], **CLOSE)
    same_numbers(pool.modes[[0, 1, 3]], begun[[0, 1, 3]], **EXACT)


@public
def test_packed_and_padded_calls(op: Variant) -> None:
    x, *filters = tensors(op, 12, batch=1)
    offsets = torch.tensor([0, 5, 5, 12])
    y, final = op(x, *filters, output_final_state=True, cu_seqlens=offsets)
    want = op.reference(x, *filters, output_final_state=True, cu_seqlens=offsets)
    same_numbers((y, final.modes), (want[0], want[1].modes), **CLOSE)
    x, *filters = tensors(op, 7)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [1] * 7])
    y, final = op(x, *filters, output_final_state=True, attention_mask=mask)
    alone, end = op(x[:1, 2:6], *filters, output_final_state=True)
    same_numbers((y[:1, 2:6], final.modes[:1]), (alone, end.modes), **CLOSE)
    assert not y[0, :2].any()
    same_numbers(op(x, *filters, batch_invariant=True)[0], op(x, *filters)[0], **CLOSE)


@public
@pytest.mark.parametrize(("batch", "length", "units"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty_calls(op: Variant, batch: int, length: int, units: int) -> None:
    inputs = tensors(op, length, units=units, batch=batch, grad=True)
    modes = torch.randn(batch, op.modes, *units_of(op, units), 2, dtype=F64)
    state = StateSpaceState(modes.requires_grad_())
    y, final = op(*inputs, initial_state=state, output_final_state=True)
    assert y.shape == (batch, length, *units_of(op, units))
    same_numbers(final.modes.detach(), state.modes.detach(), **EXACT)
    leaves = [*inputs, state.modes]
    for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves, retain_graph=True), strict=True):
        assert gradient.shape == leaf.shape and not gradient.any()


@public
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled(op: Variant, dynamic: bool) -> None:
    def run(inputs: list[Tensor], state: StateSpaceState) -> Any:
        x, *filters = inputs
        return op(2 * x, *filters, state, output_final_state=True)

    inputs, state = tensors(op, grad=True), past(op, grad=True)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    got, want = (f(inputs, state) for f in (compiled, run))
    same_numbers((got[0], got[1].modes), (want[0], want[1].modes), **CLOSE)
    leaves = [*inputs, state.modes]
    got, want = (torch.autograd.grad(y.sin().sum() + s.modes.sum(), leaves) for y, s in (got, want))
    same_numbers(got, want, **CLOSE)
    with torch.no_grad():
        states = [StateSpaceState(state.modes.detach().clone()) for _ in range(2)]
        x, *filters = (t.detach() for t in inputs)
        step = torch.compile(op.step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        a, b = (f(x[:, :1], s, *filters) for f, s in zip((step, op.step), states, strict=True))
        same_numbers((a, states[0].modes), (b, states[1].modes), **CLOSE)


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
    same_numbers((got[0], got[1].modes), (want[0], want[1].modes), **CLOSE)
    assert pickle.loads(pickle.dumps(op)) is op is copy.deepcopy(op)
    file = io.BytesIO()
    torch.save(want[1], file)
    file.seek(0)
    for found in (torch.load(file), pickle.loads(pickle.dumps(want[1])), copy.deepcopy(want[1])):
        assert type(found) is StateSpaceState
        same_numbers(found.modes, want[1].modes, **EXACT)


@public
def test_transforms(op: Variant) -> None:
    """Calls mapped over samples, and the gradients of what samples share."""
    x, *filters = tensors(op, batch=6)
    x = x.unflatten(0, (3, 2))

    def loss(function: Any) -> Any:
        def of(*inputs: Tensor) -> Tensor:
            y = function(*inputs)
            return (y[0] if isinstance(y, tuple) else y).sin().sum()

        return of

    dims = (0, None, None, None, None)
    got = func.vmap(func.grad(loss(op), tuple(range(5))), dims)(x, *filters)
    want = [func.grad(loss(op), tuple(range(5)))(sample, *filters) for sample in x]
    same_numbers(got, tuple(map(torch.stack, zip(*want, strict=True))), **CLOSE)


@public
def test_autocast(op: Variant) -> None:
    """Inputs are cast; poles, residues and states stay wide."""
    inputs, state = tensors(op, dtype=torch.float32, grad=True), past(op, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = op(*inputs, initial_state=state, output_final_state=True)
    assert y.dtype == torch.bfloat16 and final.modes.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in torch.autograd.grad(y.sum(), inputs))


@public
def test_wrong_arguments(op: Variant) -> None:
    x, log_decay, angle, residues, skip = tensors(op)
    given = {"x": x, "log_decay": log_decay, "angle": angle, "residues": residues, "skip": skip}
    above, nan = log_decay.clone(), log_decay.clone()
    above[0, 0], nan[0, 0] = 1e-6, float("nan")
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (errors.ShapeError, "^x: .*B, T, ", {"x": x[0]}),
        (errors.ShapeError, "^log_decay: .*32, ", {"log_decay": log_decay[:, 1:]}),
        (errors.ShapeError, "^angle: ", {"angle": angle[1:]}),
        (errors.ShapeError, "^residues: ", {"residues": residues[..., 0]}),
        (errors.ShapeError, "^skip: ", {"skip": skip[None]}),
        (errors.DtypeError, "^x: got torch.int64", {"x": x.long()}),
        (errors.DtypeError, "^angle: got torch.int64, must be torch.float64", {"angle": angle.long()}),
        (errors.DtypeError, "^log_decay: got torch.complex128", {"log_decay": log_decay + 0j}),
        (errors.DeviceError, "^skip: got meta", {"skip": skip.to("meta")}),
        (errors.ArgumentTypeError, "^log_decay: ", {"log_decay": None}),
        (errors.ArgumentTypeError, "^skip: ", {"skip": 1.0}),
        (errors.ArgumentValueError, "^log_decay: got .*, must be log", {"log_decay": above}),
        (errors.ArgumentValueError, "^log_decay: got nan", {"log_decay": nan}),
        (errors.ArgumentValueError, "^angle: got inf", {"angle": angle.abs() / 0.0}),
        (errors.StateError, "^initial_state: ", {"initial_state": x}),
        (errors.StateError, "^initial_state.modes: ", {"initial_state": StateSpaceState(x)}),
        (errors.BackendUnavailable, "backend", {"backend": "cuda"}),
    ]
    for error, match, changed in wrong:
        with pytest.raises(error, match=match):
            op(**given | changed)
    with pytest.raises(errors.ShapeError, match="^x: "):
        op.step(x.repeat_interleave(17, 1), past(op), log_decay, angle, residues)
    with pytest.raises(errors.GradientError, match="^residues: .*not differentiable"):
        op.step(x[:, :1], past(op), log_decay, angle, residues.requires_grad_())
    with pytest.raises(errors.ArgumentValueError, match="^units: got -1"):
        op.init_state(2, -1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("order: 7", "order.*must be even"),
        ("order: 0", "order"),
        ("order: 8\nfilters: head", "filters.*needs a `width`"),
        ("order: 8\nwidth: 4", "width.*`filters: head`"),
        ("order: 8\nbasis: leg", "basis.*legs"),
    ],
)
def test_specs_that_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "layer.yaml"
    path.write_text(f"name: layer\nmixer: state_space\n{lines}\n")
    with pytest.raises(Exception, match=f"(?s){message}"):
        based_ops.load(path)
