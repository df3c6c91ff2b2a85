"""Steps of every mixer: of several tokens at once, and of states in slots of a pool.

Both are to the bit what single steps of states by themselves are.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.mixers.long_conv import LongConv
from based_ops.codegen.mixers.short_conv import ShortConv
from based_ops.codegen.mixers.state_space import StateSpace
from based_ops.codegen.spec.model import LayerSpec
from based_ops.codegen.spec.signature import MOST_TOKENS
from tests.kernels.delta import DELTA
from tests.kernels.replay import REPLAY
from tests.kernels.runners import Runner
from tests.kernels.steps import Steps, Tensors, copied, there

CONVOLUTIONS = (ShortConv("conv4", 4), ShortConv("conv2", 2, None, bias=False, gate=False))
LONG_CONVOLUTIONS = (LongConv("taps24", 24), LongConv("taps9_shared", 9, "head", 8, gate=False))
STATE_SPACES = (StateSpace("order6", 6), StateSpace("order10_shared", 10, filters="head", width=8))


def layers(runner: Runner) -> tuple[LayerSpec, ...]:
    slow = runner.backend == "tilelang"
    linear = runner.linear_pool()
    hybrids = runner.hybrid_pool()
    deltas = DELTA[:1] if slow else DELTA
    replays = REPLAY[:1] if slow else REPLAY
    hybrids = hybrids[:1] if slow else hybrids
    pools = linear[:1] if slow else linear, deltas, replays, runner.window_pool(), hybrids
    others = CONVOLUTIONS, LONG_CONVOLUTIONS, STATE_SPACES
    return (
        *(spec for pool in pools for spec in pool),
        *(spec for pool in others for spec in pool[: 1 if slow else 2]),
    )


@st.composite
def steps(draw: st.DrawFn, runner: Runner, most: int = MOST_TOKENS) -> Steps:
    """A few tokens of any layer of the pool."""
    spec = draw(st.sampled_from(layers(runner)))
    return Steps(
        spec,
        runner.module(spec),
        draw(st.integers(1, 3)),
        draw(st.integers(0, min(most, 5) if runner.interpreted else most)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(runner.dtypes)),
        runner.device,
        draw(st.integers(0, 1000)),
    )


@given(data=st.data())
def test_several_tokens_are_single_steps(runner: Runner, data: st.DataObject) -> None:
    call = data.draw(steps(runner), "call")
    inputs, state = call.inputs(), call.state()
    other = copied(state)
    got = call.step(inputs, state)
    want = call.one_by_one(inputs, other) if call.length else got.new_empty(got.shape)
    assert got.shape[1] == call.length and torch.equal(got, want) and bool(got.isfinite().all())
    for mine, theirs in zip(there(state), there(other), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_window_turns_round(runner: Runner, tokens: int) -> None:
    """More tokens than the ring has slots, in pieces."""
    spec = min(runner.window_pool(), key=lambda spec: spec.window)
    call = Steps(spec, runner.module(spec), 2, 12, 2, torch.float32, runner.device, 1)
    inputs, state = call.inputs(), call.state()
    other = copied(state)
    pieces = range(0, call.length, tokens)
    got = torch.cat([call.step(call.tokens(inputs, t, t + tokens), state) for t in pieces], 1)
    assert torch.equal(got, call.one_by_one(inputs, other))
    assert all(map(torch.equal, there(state), there(other)))


LAYOUTS = ("dense", "apart", "interleaved")


def pools(call: Steps, slots: int, layout: str) -> Tensors:
    """Pools of NaN, of which the entries lie `apart`, or even all parts of an entry side by side."""
    like = call.state(1)
    parts = there(like)
    if layout == "dense":
        made = [torch.cat([x] * slots) for x in parts]
    elif layout == "apart":
        made = [torch.cat([x.unsqueeze(1)] * 2 * slots).view(slots, 2, *x.shape[1:])[:, 1] for x in parts]
    else:
        pages = sum(x.nbytes + 16 for x in parts) // 16 * 16
        memory = torch.zeros(slots, pages, dtype=torch.uint8, device=call.device)
        made, place = [], 0
        for x in parts:
            row = memory.view(x.dtype)
            start, width = place // x.itemsize, x[0].numel()
            strides = (row.stride(0), *x.stride()[1:])
            made.append(row.as_strided((slots, *x.shape[1:]), strides, start))
            place += -(-width * x.itemsize // 16) * 16
    for x in made:
        x.fill_(float("nan") if x.is_floating_point() else -(1 << 30))
    left = iter(made)
    return [None if x is None else next(left) for x in like]


def bits(x: Tensor, converted: bool) -> Tensor:
    """What can be compared to the bit, NaN included; what was `converted` and back has NaN, but any."""
    if converted and x.itemsize == 2:
        return x.nan_to_num(-7.0)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    return x.contiguous().view(integer)


@given(data=st.data())
def test_slots_are_states_by_themselves(runner: Runner, data: st.DataObject) -> None:
    """What lies in other slots, and in inputs that have none, is NaN: it reaches nothing."""
    call = data.draw(steps(runner, most=4).filter(lambda call: call.length), "call")
    slots = data.draw(st.integers(call.batch, 6), "slots")
    order = data.draw(st.permutations(range(slots)), "order")[: call.batch]
    none = st.sampled_from([-1, -1, slots, -(1 << 31), (1 << 31) - 1])
    named = [data.draw(st.just(slot) | none, "slot") for slot in order]
    indices = torch.tensor(named, dtype=torch.int32, device=call.device)
    rows = [b for b, slot in enumerate(named) if 0 <= slot < slots]
    inputs, state = call.inputs(), call.state()
    pool = pools(call, slots, data.draw(st.sampled_from(LAYOUTS), "layout"))
    for whole, part in zip(there(pool), there(state), strict=True):
        for b in rows:
            whole[named[b]] = part[b]
    for kind, x in zip(call.spec.signature().stepped, inputs, strict=True):
        if x is not None and kind.dims[0] == "B":
            x[[b for b in range(call.batch) if b not in rows]] = float("nan")
    before = copied(pool)
    got = call.step(inputs, pool, indices)
    want = call.one_by_one(inputs, state)
    assert torch.equal(got[rows], want[rows]) and bool(got[rows].isfinite().all())
    others = [b for b in range(call.batch) if b not in rows]
    assert bool((got[others] == 0).all())
    for whole, old, part in zip(there(pool), there(before), there(state), strict=True):
        for slot in range(slots):
            taken = named.index(slot) if slot in named else None
            want = old[slot] if taken is None else part[taken]
            through_c = runner.id == "tilelang-cpu"
            assert torch.equal(bits(whole[slot], through_c), bits(want, through_c))


def test_nobody_has_a_slot(runner: Runner) -> None:
    for spec in layers(runner):
        call = Steps(spec, runner.module(spec), 3, 2, 2, torch.float32, runner.device, 1)
        pool = call.state(2)
        before = copied(pool)
        indices = torch.full((3,), -1, dtype=torch.int32, device=runner.device)
        assert not bool(call.step(call.inputs(), pool, indices).any())
        assert all(map(torch.equal, there(pool), there(before)))
