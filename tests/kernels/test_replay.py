"""Steps that write their sums seldom are those that write them always, of any map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from tests.kernels.replay import REPLAY
from tests.kernels.runners import Runner, any_linear_attention
from tests.kernels.steps import Steps, Tensors, copied, there

SUMS = slice(4, None)
"""Where the sums are in a state."""


def specs(runner: Runner) -> st.SearchStrategy[LinearAttention]:
    """Layers that replay, of any map where compiling is cheap."""
    if runner.backend == "tilelang":
        return st.just(REPLAY[0])
    pool = st.sampled_from(REPLAY)
    drawn = st.builds(
        lambda spec, replay: replace(spec, replay=replay, decay="none"),
        any_linear_attention(),
        st.integers(1, 7),
    )
    return pool | drawn if runner.backend == "torch" else pool


def begun(call: Steps) -> tuple[Tensors, Tensors]:
    """A state after some tokens with an empty ring of NaN, and the same of the layer without one."""
    sums = call.state()[SUMS]
    rings = [torch.full_like(x, float("nan")) for x in call.state()[:2] if x is not None]
    counts = [torch.zeros(call.batch, call.units, dtype=torch.int32, device=call.device) for _ in range(2)]
    return [*rings, *counts, *copied(sums)], copied(sums)


def tolerance(call: Steps) -> dict[str, float]:
    """Sums of a narrow dtype are rounded at random, here and there at other tokens."""
    narrow = call.spec.state_dtype != "float32" and call.dtype != torch.float64
    close = {torch.float64: 1e-9, torch.float32: 1e-4}.get(call.dtype, 2e-2)
    return {"rtol": 2e-2 if narrow else close, "atol": 2e-2 if narrow else close}


@given(data=st.data())
def test_steps_are_those_that_write_every_time(runner: Runner, data: st.DataObject) -> None:
    """Outputs are close; sums are written once in so many steps, and then to the bit what the others were.

    But for what compilers for GPUs make of a product that is added: one rounding or two.
    """
    spec = data.draw(specs(runner), "spec")
    dtype = data.draw(st.sampled_from(runner.dtypes), "dtype")
    length = 3 * spec.replay + data.draw(st.integers(0, 3), "more")
    call = Steps(spec, runner.module(spec), 2, length, 2, dtype, runner.device, data.draw(st.integers(0, 99)))
    plain = replace(call, spec=replace(spec, replay=0), module=runner.module(replace(spec, replay=0)))
    inputs = call.inputs()
    state, other = begun(call)
    passed = [there(other)]
    written = 0
    for t in range(length):
        before = copied(state[SUMS])
        token = call.tokens(inputs, t, t + 1)
        got, want = call.step(token, state), plain.step(token, other)
        torch.testing.assert_close(got, want, **tolerance(call))
        passed.append(there(copied(other)))
        held = t + 1 - written
        if held == 2 * spec.replay:
            written += spec.replay
            if spec.state_dtype == "float32" or dtype == torch.float64:
                compiled = runner.backend != "torch" and not runner.interpreted
                exact = {} if compiled else {"rtol": 0.0, "atol": 0.0}
                torch.testing.assert_close(there(state[SUMS]), passed[written], **exact)
        else:
            assert all(map(torch.equal, there(before), there(state[SUMS])))
        position, entered = state[2], state[3]
        assert position is not None and bool((position == t + 1).all())
        assert entered is not None and bool((entered == written).all())
    assert written == spec.replay * max(0, length // spec.replay - 1)


@given(data=st.data())
def test_tokens_that_are_taken_back(runner: Runner, data: st.DataObject) -> None:
    """A position that is lowered, and other tokens, are as if the first had never been, to the bit."""
    spec = data.draw(specs(runner), "spec")
    first = data.draw(st.integers(0, 2 * spec.replay), "first")
    drafts = data.draw(st.integers(1, spec.replay), "drafts")
    call = Steps(spec, runner.module(spec), 2, first + drafts + 2, 2, torch.float32, runner.device, 7)
    inputs = call.inputs()
    state, _ = begun(call)
    for t in range(first):
        call.step(call.tokens(inputs, t, t + 1), state)
    other = copied(state)
    for t in range(first, first + drafts):
        call.step(call.tokens(inputs, t, t + 1), state)
    position = state[2]
    assert position is not None
    position.sub_(drafts)
    last = call.tokens(inputs, first + drafts, call.length)
    got, want = call.step(last, state), call.step(last, other)
    # The sums may have taken in tokens from the ring meanwhile, which they answer for with other roundings.
    narrow = spec.state_dtype != "float32"
    torch.testing.assert_close(got, want, rtol=2e-2 if narrow else 1e-4, atol=2e-2 if narrow else 1e-4)


@pytest.mark.parametrize("spec", REPLAY[:2], ids=lambda spec: spec.name)
def test_what_slots_of_a_ring_held_before_reaches_nothing(runner: Runner, spec: LinearAttention) -> None:
    """NaN in places that no token has; `begun` has it in all of them."""
    call = Steps(spec, runner.module(spec), 1, 2 * spec.replay + 1, 1, torch.float32, runner.device, 3)
    state, _ = begun(call)
    got = call.one_by_one(call.inputs(), state)
    assert bool(got.isfinite().all()) and all(bool(x.isfinite().all()) for x in there(state[SUMS]))


def grouped(x: Tensor | None, heads: int) -> Tensor | None:
    return None if x is None else x.repeat_interleave(heads, 1)


def test_queries_that_share_a_state(runner: Runner) -> None:
    """As with a state for each of them, to the bit."""
    spec = REPLAY[0]
    call = Steps(spec, runner.module(spec), 2, 2 * spec.replay + 2, 2, torch.float32, runner.device, 5)
    state, _ = begun(call)
    _, k, v = call.inputs()
    assert k is not None and v is not None
    q = torch.cat([call.inputs()[0], -0.5 * v[..., : spec.head_dims.qk]], 2)  # type: ignore[list-item]
    each = [grouped(x, 2) for x in state]
    wide = replace(call, units=4)
    for t in range(call.length):
        now = slice(t, t + 1)
        got = call.step([q[:, now], k[:, now], v[:, now]], state)
        several = [q[:, now], *(x[:, now].repeat_interleave(2, 2) for x in (k, v))]
        assert torch.equal(got, wide.step(several, each))
    assert all(map(torch.equal, there([grouped(x, 2) for x in state]), there(each)))
