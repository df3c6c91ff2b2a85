"""Layers of the delta rule as users call them."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.heads import multiple
from based_ops.variant import Variant
from tests.runtime.conftest import DELTA

F64 = torch.float64
HEADS = ((2, 2, 2), (4, 2, 2), (1, 1, 4), (6, 2, 3))
"""Heads of q, k and v."""


class Inputs(NamedTuple):
    """What a call takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    more: dict[str, Tensor]
    """beta, and g of a layer that fades."""

    @property
    def leaves(self) -> list[Tensor]:
        return [*self[:3], *self.more.values()]

    def each(self, function: Any) -> Inputs:
        """With a function of every tensor."""
        return Inputs(*map(function, self[:3]), {name: function(x) for name, x in self.more.items()})

    def tokens(self, start: int, stop: int) -> Inputs:
        return self.each(lambda x: x[:, start:stop])


def inputs(
    op: Variant, batch: int, length: int, heads: tuple[int, int, int] = (2, 2, 2), dtype: torch.dtype = F64
) -> Inputs:
    torch.manual_seed(length)
    q, k, v = (
        torch.randn(batch, length, n, width, dtype=F64).to(dtype)
        for n, width in zip(heads, (op.qk, op.qk, op.v), strict=True)
    )
    rates = torch.rand(2, batch, length, multiple(heads[1:]), dtype=F64)
    more = {"beta": rates[0]} | ({"g": -rates[1]} if op.spec.decay == "token" else {})
    return Inputs(
        q, k, v, {name: x.to(torch.promote_types(dtype, torch.float32)) for name, x in more.items()}
    )


@pytest.fixture(params=DELTA)
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_call_is_its_reference(op: Variant, heads: tuple[int, int, int]) -> None:
    """With gradients of everything, through the lengths of queries and keys too."""
    given = inputs(op, 2, 29, heads).each(lambda x: x.requires_grad_())
    o, state = op(*given[:3], output_final_state=True, **given.more)
    wanted, final = op.reference(*given[:3], output_final_state=True, **given.more)
    assert_close(o, wanted)
    assert_close(state.state, final.state)
    losses = (x.sin().sum() + y.state.sin().sum() for x, y in ((o, state), (wanted, final)))
    for found, exact in zip(*(torch.autograd.grad(x, given.leaves) for x in losses), strict=True):
        assert_close(found, exact)


@pytest.mark.filterwarnings("ignore::based_ops.errors.LayoutWarning")
@given(data=st.data())
def test_sequences_of_several_lengths(data: st.DataObject) -> None:
    """Packed and padded ones, with states before them, are each as if it were alone."""
    op = based_ops.get(data.draw(st.sampled_from(DELTA)))
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any), "lengths")
    heads = data.draw(st.sampled_from(HEADS))
    states = multiple(heads[1:])
    total, most = sum(lengths), max(*lengths, 1)
    given, ends = inputs(op, 1, total, heads), torch.tensor([0, *lengths]).cumsum(0)
    initial = op.init_state(len(lengths), states, dtype=F64)
    initial.state.copy_(torch.randn_like(initial.state))
    begun = {"initial_state": initial, "output_final_state": True}
    with torch.no_grad():
        o, final = op(*given[:3], cu_seqlens=ends, **begun, **given.more)
        mask = torch.arange(most) < torch.tensor(lengths)[:, None]
        room = given.each(lambda x: x.new_full((len(lengths), most, *x.shape[2:]), 0.0))
        for x, y in zip(room.leaves, given.leaves, strict=True):
            x[mask] = y[0]
        padded, after = op(*room[:3], attention_mask=mask, **begun, **room.more)
        for n, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
            own = given.tokens(start, stop)
            state = type(initial)(initial.state[n : n + 1], None)
            alone, end = op(*own[:3], initial_state=state, output_final_state=True, **own.more)
            assert_close(o[:, start:stop], alone)
            assert_close(padded[n : n + 1, : lengths[n]], alone)
            for found in (final, after):
                assert_close(found.state[n : n + 1], end.state)
    assert not padded[~mask].any()


def test_pieces_steps_and_slots(op: Variant) -> None:
    given = inputs(op, 2, 20, (4, 2, 2))
    with torch.no_grad():
        whole, end = op(*given[:3], output_final_state=True, **given.more)
        first = given.tokens(0, 9)
        piece, state = op(*first[:3], output_final_state=True, **first.more)
        pool = op.init_state(5, 2, dtype=F64)
        indices = torch.tensor([3, 1], dtype=torch.int32)
        pool.state[[3, 1]] = state.state
        for start in range(9, 20, 4):
            some = given.tokens(start, min(start + 4, 20))
            o = op.step(*some[:3], state, **some.more)
            assert_close(o, whole[:, start : start + 4])
            assert_close(op.step(*some[:3], pool, state_indices=indices, **some.more), o)
        assert_close(piece, whole[:, :9])
        assert_close(state.state, end.state)
        assert_close(pool.state[[3, 1]], end.state)
        assert not pool.state[[0, 2, 4]].any()
        missing = torch.tensor([-1, 0], dtype=torch.int32)
        o, pool = op(
            *given[:3],
            initial_state=op.init_state(2, 2, dtype=F64),
            state_indices=missing,
            output_final_state=True,
            **given.more,
        )
        assert not o[0].any() and not pool.state[1].any()
        assert_close(o[1], whole[1])
        assert_close(pool.state[0], end.state[1])


def test_operators_are_right(op: Variant) -> None:
    q, k, v, more = inputs(op, 1, 5).each(lambda x: x.requires_grad_())
    decays = (more["g"],) if "g" in more else ()
    arguments = (q, normalize(k, dim=-1), v, *decays, more["beta"], 0.5, None, None, True, "torch")
    if op.core.qk != op.qk:
        pytest.skip("its operators take features of another width")
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op.operators.forward, arguments, test_utils=tests)


def test_compiled_and_under_autocast() -> None:
    op = based_ops.get("gated_delta_qk64_v64")
    q, k, v, more = inputs(op, 2, 17, dtype=torch.float32)

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
        o: Tensor = op(q, k, v, beta=beta, g=g)[0]
        return o

    wanted = run(q, k, v, **more)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert_close(compiled(q, k, v, **more), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(q, k, v, **more)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), wanted, rtol=0.05, atol=0.05)


def test_scales() -> None:
    """A factor on q·k in the map, of which κ(k, k) has as much; and a temperature, of queries alone."""
    op = based_ops.get("taylor2_delta_qk16_v64")
    given = inputs(op, 2, 11)
    for scale in (0.1, 3.0, torch.tensor([0.3, 2.0], dtype=F64)):
        found, wanted = (f(*given[:3], scale=scale, **given.more) for f in (op, op.reference))
        assert_close(found[0], wanted)
    plain = based_ops.get("delta_qk64_v64")
    given = inputs(plain, 2, 11)
    assert_close(plain(*given[:3], scale=0.2, **given.more), plain(*given[:3], **given.more))


def test_one_key_is_read_as_its_last_value(op: Variant) -> None:
    _, k, v, more = inputs(op, 1, 40)
    k = k[:, :1].expand_as(k)
    more = {name: torch.ones_like(x) if name == "beta" else torch.zeros_like(x) for name, x in more.items()}
    assert_close(op(k, k, v, **more)[0], v)


def test_a_pickle_finds_it_again(op: Variant) -> None:
    assert pickle.loads(pickle.dumps(op)).name == op.name


def test_arguments_are_told() -> None:
    op, plain = based_ops.get("gated_delta_qk64_v64"), based_ops.get("taylor2_qk16_v64")
    q, k, v, more = inputs(op, 2, 5)
    beta, g = more["beta"], more["g"]
    with pytest.raises(errors.ArgumentTypeError, match="^beta: got NoneType, must be a torch.Tensor"):
        op(q, k, v, g=g)
    with pytest.raises(errors.ShapeError, match=r"^beta: got \(2, 5, 1\), must be of shape \[2, 5, 2\]"):
        op(q, k, v, g=g, beta=beta[..., :1])
    for wrong, got in ((-0.5, "-0.5"), (2.5, "2.5")):
        with pytest.raises(
            errors.ArgumentValueError, match=f"^beta: got a number of {got}, must be from 0 to 2"
        ):
            op(q, k, v, g=g, beta=torch.full_like(beta, wrong))
        with pytest.raises(errors.ArgumentValueError, match="^beta"):
            op.step(q, k, v, op.init_state(2, 2, dtype=F64), g=g, beta=torch.full_like(beta, wrong))
    k[0, 3, 1] = 0.0
    with pytest.raises(errors.ArgumentValueError, match="^k: got a key of length 0, .*`unit_keys`"):
        op(q, k, v, g=g, beta=beta)
    q, k, v = (x[..., : plain.qk] for x in (q, k, v))
    with pytest.raises(errors.ArgumentTypeError, match="^beta: got a tensor, must be None, since taylor2"):
        plain(q, k, v, beta=beta)
