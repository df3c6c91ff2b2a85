"""States whose sums are seldom written: tokens taken back, calls from rings, and what steps write."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops import ReplayState, errors
from based_ops.generate import Engine
from based_ops.models import LanguageModel
from based_ops.variant import Variant
from tests.conftest import ROOT

F64 = torch.float64
PLAIN: Variant = based_ops.get("taylor2_qk16_v64")
REPLAY: Variant = based_ops.get("taylor2_replay_qk16_v64")
PERIOD = 16
PARTS = """name: replay_signs
mixer: linear_attention
feature_map: {kind: elementwise, expression: x}
head_dims: {qk: 8, v: 16}
parts:
  - {kind: elementwise, expression: elu(x) + 1}
  - {kind: signs}
normalize: false
replay: 3
dtypes: [float32]
"""


def tokens(length: int, heads: int = 2, batch: int = 2, dtype: torch.dtype = F64) -> list[Tensor]:
    return [torch.randn(batch, length, heads, width, dtype=dtype) * 0.5 for width in (16, 16, 64)]


def cut(x: list[Tensor], start: int, stop: int) -> list[Tensor]:
    return [t[:, start:stop] for t in x]


def stepped(op: Variant, x: list[Tensor], state: Any, most: int = 16) -> Tensor:
    length = x[0].shape[1]
    with torch.no_grad():
        return torch.cat([op.step(*cut(x, t, t + most), state) for t in range(0, length, most)], 1)


@pytest.mark.parametrize("name", ["taylor2_replay_qk16_v64", "taylor2_replay_qk16_v112"])
def test_shipped_layers_mean_what_those_without_a_ring_do(name: str) -> None:
    spec, plain = based_ops.get(name).spec, based_ops.get(name.replace("replay_", "")).spec
    assert replace(spec, name=plain.name, replay=0) == plain and spec.replay == PERIOD


@given(st.lists(st.tuples(st.sampled_from("csr"), st.integers(1, 40)), min_size=1, max_size=6))
def test_calls_steps_and_rollbacks_in_any_order(pieces: list[tuple[str, int]]) -> None:
    """As the layer without a ring has it, of the tokens that stay."""
    state, x = REPLAY.init_state(2, 2, dtype=F64), tokens(0)
    for what, count in pieces:
        if what == "r":  # as many as the ring holds
            count = min(count, int(state.held.min()))
            state.rollback(count)
            x = cut(x, 0, x[0].shape[1] - count)
            continue
        new = tokens(count)
        x = [torch.cat(pair, 1) for pair in zip(x, new, strict=True)]
        if what == "c":
            o, state = REPLAY(*new, initial_state=state, output_final_state=True)
        else:
            o = stepped(REPLAY, new, state)
        want = PLAIN(*x)[0][:, -count:]
        assert_close(o, want, rtol=1e-9, atol=1e-10)
    last = tokens(3)
    want = PLAIN(*(torch.cat(pair, 1) for pair in zip(x, last, strict=True)))[0][:, -3:]
    assert_close(REPLAY(*last, initial_state=state)[0], want, rtol=1e-9, atol=1e-10)
    assert_close(REPLAY.reference(*last, initial_state=state), want, rtol=1e-9, atol=1e-10)


def test_sums_are_written_once_in_a_period() -> None:
    state = REPLAY.init_state(2, 2)
    x, written = tokens(5 * PERIOD, dtype=torch.float32), []
    for t in range(5 * PERIOD):
        before = state.state.clone(), state.normalizer.clone()
        stepped(REPLAY, cut(x, t, t + 1), state)
        if not torch.equal(before[0], state.state):
            written.append(t + 1)
        else:
            assert torch.equal(before[1], state.normalizer)
    assert written == [n * PERIOD for n in (2, 3, 4, 5)]
    assert state.held.tolist() == [PERIOD, PERIOD]


def test_sequences_take_back_tokens_of_their_own() -> None:
    x, kept = tokens(9), torch.tensor([5, 8])
    state = REPLAY.init_state(2, 2, dtype=F64)
    stepped(REPLAY, x, state)
    state.rollback(9 - kept)
    assert state.held.tolist() == kept.tolist()
    next_one = tokens(1)
    got = stepped(REPLAY, next_one, state)
    for b, count in enumerate(kept.tolist()):
        alone = [torch.cat([t[b : b + 1, :count], n[b : b + 1]], 1) for t, n in zip(x, next_one, strict=True)]
        assert_close(got[b], PLAIN(*alone)[0][0, -1:], rtol=1e-9, atol=1e-10)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "more than the ring holds": (lambda: 4, errors.StateError, "got 4 of sequence 0, must be up to 3, which"),
    "of one sequence": (lambda: torch.tensor([3, 4]), errors.StateError, "got 4 of sequence 1, must be up"),
    "forward": (lambda: -1, errors.ArgumentValueError, "got -1 of sequence 0, must be 0 or more"),
    "a float": (lambda: 1.0, errors.ArgumentTypeError, "got float, must be an int, or a tensor of int32"),
    "a truth value": (lambda: True, errors.ArgumentTypeError, "got bool"),
    "floats": (lambda: torch.ones(2), errors.ArgumentTypeError, "got torch.float32"),
    "of others": (lambda: torch.tensor([1]), errors.ShapeError, r"must be of shape \[2\]"),
    "elsewhere": (lambda: torch.ones(2, dtype=torch.int32, device="meta"), errors.DeviceError, "got meta"),
}


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_what_cannot_be_taken_back(wrong: str) -> None:
    made, error, message = REFUSED[wrong]
    state = REPLAY.init_state(2, 2)
    stepped(REPLAY, tokens(3, dtype=torch.float32), state)
    before = state.clone()
    with pytest.raises(error, match=message):
        state.rollback(made())
    assert_close(tuple(state), tuple(before), rtol=0.0, atol=0.0)


def test_a_call_leaves_nothing_to_take_back() -> None:
    _, state = REPLAY(*tokens(9), output_final_state=True)
    with pytest.raises(errors.StateError, match="up to 0"):
        state.rollback(1)


def test_gradients_of_a_call_from_a_ring() -> None:
    """Those of keys and values in the ring are those of a sequence with them; places of nobody have none."""
    x, more = tokens(7), tokens(5)
    state = REPLAY.init_state(2, 2, dtype=F64)
    stepped(REPLAY, x, state)
    for ring in state[:2]:
        ring[:, :, 7:] = float("nan")
    moving = [t.requires_grad_() for t in (state.k, state.v, state.state, state.normalizer)]
    o, final = REPLAY(*more, initial_state=state, output_final_state=True)
    loss = o.square().sum() + final.state.sin().sum() + final.normalizer.sum()
    got = torch.autograd.grad(loss, moving)
    leaves = [t.requires_grad_() for t in x]
    whole = [torch.cat(pair, 1) for pair in zip(leaves, more, strict=True)]
    want_o, want = PLAIN(*whole, output_final_state=True)
    loss = want_o[:, 7:].square().sum() + want.state.sin().sum() + want.normalizer.sum()
    for ring, sequence in zip(got, torch.autograd.grad(loss, leaves[1:]), strict=False):
        assert_close(ring[:, :, :7], sequence.transpose(1, 2), rtol=1e-9, atol=1e-9)
        assert not ring[:, :, 7:].any()


def test_heads_share_a_ring() -> None:
    """Four of queries and two of keys to one of values."""
    q, k, v = tokens(40, heads=4)[0], tokens(40, heads=2)[1], tokens(40, heads=1)[2]
    state = REPLAY.init_state(2, 2, dtype=F64)
    want, end = PLAIN(q, k, v, output_final_state=True)
    assert_close(stepped(REPLAY, [q, k, v], state, 7), want, rtol=1e-9, atol=1e-10)
    assert_close(REPLAY(q, k, v, initial_state=state)[0], PLAIN(q, k, v, initial_state=end)[0])


def test_packed_sequences_go_on_from_rings() -> None:
    state = REPLAY.init_state(2, 2, dtype=F64)
    x = tokens(11)
    stepped(REPLAY, x, state)
    state.rollback(torch.tensor([4, 0]))
    packed = [t[:1] for t in tokens(9)]
    o, final = REPLAY(
        *packed, initial_state=state, output_final_state=True, cu_seqlens=torch.tensor([0, 6, 9])
    )
    for b, (start, stop, kept) in enumerate(((0, 6, 7), (6, 9, 11))):
        pairs = zip(x, packed, strict=True)
        whole = [torch.cat([t[b : b + 1, :kept], p[:, start:stop]], 1) for t, p in pairs]
        want, end = PLAIN(*whole, output_final_state=True)
        assert_close(o[0, start:stop], want[0, kept:], rtol=1e-9, atol=1e-10)
        assert_close(final.state[b], end.state[0], rtol=1e-9, atol=1e-9)


def test_nothing_reaches_other_slots() -> None:
    pool = REPLAY.init_state(4, 2)
    for part in (pool.k, pool.v, pool.state, pool.normalizer):
        part[[0, 2]] = float("nan")
    before, x = pool.clone(), tokens(2 * PERIOD + 3, batch=3, dtype=torch.float32)
    where = torch.tensor([1, -1, 3], dtype=torch.int32)
    state = REPLAY.init_state(3, 2)
    with torch.no_grad():
        for t in range(0, x[0].shape[1], 5):
            got = REPLAY.step(*cut(x, t, t + 5), pool, state_indices=where)
            want = REPLAY.step(*cut(x, t, t + 5), state)
            assert torch.equal(got[[0, 2]], want[[0, 2]]) and not got[1].any()
    for part, old, new in zip(pool, before, state, strict=True):
        assert torch.equal(part[[1, 3]], new[[0, 2]])
        assert torch.equal(part[[0, 2]].nan_to_num(7.0), old[[0, 2]].nan_to_num(7.0))


def test_what_states_can_do() -> None:
    state = REPLAY.init_state(3, 2, dtype=torch.bfloat16)
    stepped(REPLAY, tokens(5, batch=3, dtype=torch.bfloat16), state)
    assert state.nbytes == REPLAY.state_bytes(3, 2, torch.bfloat16)
    chosen = state.index_select(torch.tensor([2, 0]))
    both = ReplayState.cat([chosen, state])
    assert both.k.shape[0] == 5 and torch.equal(both.k[0], state.k[2])
    wide = state.to(torch.float32)
    assert wide.k.dtype == torch.float32 and wide.position.dtype == torch.int32
    again = pickle.loads(pickle.dumps(state))
    assert type(again) is ReplayState and again.variant == REPLAY.name
    with pytest.raises(errors.StateError, match="got LinearAttentionState, must be a ReplayState"):
        REPLAY.step(*tokens(1, batch=3), PLAIN.init_state(3, 2, dtype=F64))


def test_features_of_parts_are_what_a_ring_has(tmp_path: Any) -> None:
    path = tmp_path / "replay_signs.yaml"
    path.write_text(PARTS, encoding="utf-8")
    op: Variant = based_ops.load(path)
    path = tmp_path / "plain_signs.yaml"
    path.write_text(PARTS.replace("replay: 3\n", "").replace("replay_", "plain_"), encoding="utf-8")
    plain: Variant = based_ops.load(path)
    x = [torch.randn(2, 14, 2, width, dtype=F64) for width in (8, 8, 16)]
    state = op.init_state(2, 2, dtype=F64)
    assert isinstance(state, ReplayState) and state.k.shape == (2, 2, 6, 16)
    assert_close(stepped(op, x, state, 4), plain(*x)[0])


def test_a_model_generates_the_same(tmp_path: Any) -> None:
    text = (ROOT / "specs" / "models" / "based-tiny.yaml").read_text(encoding="utf-8")
    path = tmp_path / "based-replay.yaml"
    path.write_text(text.replace("taylor2_", "taylor2_replay_").replace("based-tiny", "based-replay"))
    plain, replayed = LanguageModel("based-tiny"), LanguageModel(path)
    replayed.load_state_dict(plain.state_dict())
    prompts = [[1, 2, 3], [4, 5], [7, 8, 9, 10, 11]]
    found = [Engine(net, slots=2).generate(prompts, most=40) for net in (plain, replayed)]
    assert found[0] == found[1]


@pytest.mark.parametrize("batch", [0, 2])
def test_a_call_of_no_token_empties_the_ring(batch: int) -> None:
    """As every call does: what comes out has gradients where it does after tokens."""
    layer = based_ops.get("taylor2_replay_qk16_v64")
    state = layer.init_state(batch, 2, dtype=torch.float64)
    step = [torch.randn(batch, 3, 2, width, dtype=torch.float64) for width in (16, 16, 64)]
    with torch.no_grad():
        layer.step(*step, state)
    parts = [x.clone().requires_grad_() if x.is_floating_point() else x for x in state]
    nothing = [x[:, :0].clone().requires_grad_() for x in step]
    _, final = layer(*nothing, initial_state=type(state)(*parts), output_final_state=True)
    assert not final.held.any() and [x.requires_grad for x in final] == [False] * 4 + [True] * 2
    if batch:
        _, want = layer.reference(*step, output_final_state=True)
        assert_close(final.state, want.state)
        assert_close(final.normalizer, want.normalizer)
