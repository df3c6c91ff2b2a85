"""Packed and padded sequences through the public functions."""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim, export
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.packed import TOKENS
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import leaves, tensors_of

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
H = 2


def packs(name: str) -> bool:
    """Whether calls of a variant take several sequences."""
    return "cu_seqlens" in inspect.signature(type(based_ops.get(name)).__call__).parameters


@pytest.fixture(params=filter(packs, every_kind()), scope="module")
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


def drawn(op: Variant, batch: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """All inputs of a call."""
    return [x for x in tensors_of(op, batch, length, dtype, H) if x is not None]


def moves(op: Variant) -> list[bool]:
    """Which of them have tokens."""
    return [x.dims[:2] in TOKENS for x in op.signature.inputs if x.present]


def states(op: Variant, count: int) -> Any:
    """The states after some tokens."""
    with torch.no_grad():
        return op(*drawn(op, count, 7), output_final_state=True)[1]


def cut(op: Variant, tensors: list[Tensor], row: slice, start: int, stop: int) -> list[Tensor]:
    return [x[row, start:stop] if has else x for x, has in zip(tensors, moves(op), strict=True)]


def run(op: Variant, tensors: list[Tensor], begun: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and final states of a call, and gradients of all that it is given."""
    given = [x.detach().requires_grad_() for x in tensors]
    state = None
    if begun is not None:
        state = type(begun)(*(x if x is None else x.detach() for x in begun))
        given += [x.requires_grad_() for x in leaves(state) if x.is_floating_point()]
    o, final = op(*given[: len(tensors)], initial_state=state, output_final_state=True, **options)
    outputs = [o, *leaves(final)]
    floating = [x for x in outputs if x.is_floating_point()]
    # Slots of a ring to which nothing has been written are 0, and have no gradient worth asking for.
    loss = sum((x * x.detach().sin()).sum() for x in floating)
    return outputs, list(torch.autograd.grad(loss, given))


def run_forward(op: Variant, function: Any, *given: Any) -> tuple[Tensor, list[Tensor]]:
    """The output of a forward pass, and what its backward reads of it and of what was kept."""
    results = function(*given)
    o, *others = results if isinstance(results, tuple) else (results,)
    kept = others[: len(op.signature.kept)]
    return o, [o, *kept] if op.signature.keeps_output else kept


def check(
    op: Variant, tensors: list[Tensor], begun: Any, places: list[tuple[int, int, int]], **options: Any
) -> None:
    """A call of sequences, each with its row and its tokens, against a call for each."""
    outputs, gradients = run(op, tensors, begun, **options)
    nobodys = torch.ones(tensors[0].shape[:2], dtype=torch.bool)
    shared = [torch.zeros_like(x) for x in tensors]
    for n, (row, start, stop) in enumerate(places):
        nobodys[row, start:stop] = False
        one = slice(row, row + 1)
        own = None if begun is None else type(begun)(*(x if x is None else x[n : n + 1] for x in begun))
        wanted, of_own = run(op, cut(op, tensors, one, start, stop), own)
        assert_close(outputs[0][one, start:stop], wanted[0], **CLOSE)
        for got, want in zip(outputs[1:], wanted[1:], strict=True):
            assert_close(got[n : n + 1], want, **CLOSE)
        for has, total, got, want in zip(moves(op), shared, gradients, of_own, strict=False):
            if has:
                assert_close(got[one, start:stop], want, **CLOSE)
            else:
                total += want
        for got, want in zip(gradients[len(tensors) :], of_own[len(tensors) :], strict=True):
            assert_close(got[n : n + 1], want, **CLOSE)
    for has, total, got in zip(moves(op), shared, gradients, strict=False):
        if has:
            assert not got[nobodys].any()
        else:
            assert_close(got, total, **CLOSE)
    assert not outputs[0][nobodys].any()


@given(data=st.data())
def test_packed_sequences_are_calls_of_their_own(op: Variant, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.sampled_from((0, 0, 1, 2, 17, 130)), min_size=1, max_size=4))
    more = data.draw(st.sampled_from((0, 3)), "tokens behind the last")
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    tensors = drawn(op, 1, edges[-1] + more)
    begun = states(op, len(lengths)) if data.draw(st.booleans(), "initial states") else None
    dtype = data.draw(st.sampled_from((torch.int32, torch.int64)))
    places = [(0, start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
    check(op, tensors, begun, places, cu_seqlens=torch.tensor(edges, dtype=dtype))


@given(data=st.data())
def test_padding_reaches_nothing(op: Variant, data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.sampled_from((1, 5, 140)))
    tensors, mask, places = drawn(op, batch, length), torch.zeros(batch, length, dtype=torch.bool), []
    for row in range(batch):
        start = data.draw(st.integers(0, length))
        stop = data.draw(st.integers(start, length))
        mask[row, start:stop] = True
        places.append((row, start, stop))
        for x, has in zip(tensors, moves(op), strict=True):
            if has:
                x[row, :start] = x[row, stop:] = float("nan")
    begun = states(op, batch) if data.draw(st.booleans(), "initial states") else None
    check(op, tensors, begun, places, attention_mask=mask if data.draw(st.booleans()) else mask.long())


def test_the_reference_takes_them_too(op: Variant) -> None:
    tensors, begun = drawn(op, 1, 40), states(op, 4)
    options = {
        "cu_seqlens": torch.tensor([0, 9, 9, 10, 33]),
        "initial_state": begun,
        "output_final_state": True,
    }
    for got, want in zip(op(*tensors, **options), op.reference(*tensors, **options), strict=True):
        assert_close(got, want, **CLOSE)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    tensors = drawn(op, 2, 5)
    assert_close(op(*tensors, attention_mask=mask)[0], op.reference(*tensors, attention_mask=mask), **CLOSE)


def test_slots_of_a_pool(op: Variant) -> None:
    """One has no slot: its output is 0, and it leaves no state."""
    tensors, pool = drawn(op, 1, 30), states(op, 5)
    edges, indices = torch.tensor([0, 11, 12, 30]), torch.tensor([4, -1, 0], dtype=torch.int32)
    begun = type(pool)(*(x if x is None else x[[4, 1, 0]] for x in pool))
    o, final = op(*tensors, cu_seqlens=edges, initial_state=begun, output_final_state=True)
    before = [x.clone() for x in leaves(pool)]
    with torch.no_grad():
        got, same = op(
            *tensors, cu_seqlens=edges, initial_state=pool, output_final_state=True, state_indices=indices
        )
    assert same is pool
    assert_close(got[:, :11], o[:, :11])
    assert_close(got[:, 12:], o[:, 12:])
    assert not got[:, 11].any()
    for x, was, after in zip(leaves(pool), before, leaves(final), strict=True):
        assert_close(x[[4, 0]], after[[0, 2]])
        assert_close(x[1:4], was[1:4])


def test_nothing_at_all(op: Variant) -> None:
    """No tokens: the states stay as they are."""
    begun = states(op, 2)
    o, final = op(
        *drawn(op, 1, 0), cu_seqlens=torch.tensor([0, 0, 0]), initial_state=begun, output_final_state=True
    )
    assert o.shape[:2] == (1, 0)
    assert_close(tuple(leaves(final)), tuple(leaves(begun)))
    mask = torch.zeros(2, 3, dtype=torch.bool)
    o, final = op(*drawn(op, 2, 3), attention_mask=mask, initial_state=begun, output_final_state=True)
    assert not o.any()
    assert_close(tuple(leaves(final)), tuple(leaves(begun)))


def test_lengths_change_without_compiling_again(op: Variant) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda *x: op(*x[:-1], cu_seqlens=x[-1], output_final_state=True), backend=counter, fullgraph=True
    )
    tensors = drawn(op, 1, 40, torch.float32)
    for edges in ([0, 9, 40], [0, 0, 40], [0, 39, 39], [0, 1, 2]):
        offsets = torch.tensor(edges)
        got, want = compiled(*tensors, offsets), op(*tensors, cu_seqlens=offsets, output_final_state=True)
        assert_close(got, want, rtol=0, atol=0)
    assert counter.frame_count == 1
    masked = torch.compile(lambda *x: op(*x[:-1], attention_mask=x[-1])[0], backend=counter, fullgraph=True)
    tensors = drawn(op, 2, 5, torch.float32)
    for mask in ([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]], [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]):
        given = torch.tensor(mask, dtype=torch.bool)
        assert_close(masked(*tensors, given), op(*tensors, attention_mask=given)[0], rtol=0, atol=0)
    assert counter.frame_count == 2


def test_kernels_are_the_same_for_all_lengths(op: Variant) -> None:
    """What Triton would compile is compiled once, however many sequences there are, of whatever lengths."""
    pytest.importorskip("triton")
    from .fake_triton import LAUNCHES, fake_device

    if not op.signature.packs:
        return
    module, launched = op._record.module("triton"), []
    numbers, nothing = op.signature.numbers.values(), (None,) * len(op.signature.carried)
    asked = (False,) if op.signature.final else ()
    with fake_device():
        for places in ([[0, 9], [9, 40]], [[0, 57]], [[0, 0], [3, 4], [4, 40], [50, 600]]):
            # Of so many channels that strides are multiples of 16 for all lengths, which Triton tells apart.
            drawn = tensors_of(op, 1, places[-1][-1], torch.bfloat16, 16)
            tensors = [x for x in drawn if x is not None]
            given = torch.tensor(places, dtype=torch.int32)
            LAUNCHES.clear()
            o, read = run_forward(op, module.forward, *tensors, *numbers, *nothing, *asked, given)
            no_final = (None,) * len(op.signature.final)
            module.backward(o, *no_final, *tensors, *read, *numbers, *nothing, given)
            launched.append([launch["kernel"] for launch in LAUNCHES])
    assert launched[0] and all(kernels == launched[0] for kernels in launched)


class Packed(torch.nn.Module):
    def __init__(self, op: Variant) -> None:
        super().__init__()
        self.op = op

    def forward(self, tensors: list[Tensor], offsets: Tensor) -> Any:
        return self.op(*tensors, cu_seqlens=offsets, output_final_state=True)


def test_exported_programs_take_any_lengths(op: Variant) -> None:
    length, count = Dim("length", min=2, max=4096), Dim("count", min=3, max=64)
    tensors = drawn(op, 1, 40, torch.float32)
    shapes = [{1: length} if has else {} for has in moves(op)], {0: count}
    program = export(Packed(op), (tensors, torch.tensor([0, 9, 40])), dynamic_shapes=shapes).module()
    for edges in ([0, 9, 9, 17], [0, 0, 140]):
        given = drawn(op, 1, edges[-1], torch.float32), torch.tensor(edges)
        assert_close(program(*given), Packed(op)(*given), rtol=0, atol=0)


def test_operators_pass_the_checks_of_pytorch(op: Variant) -> None:
    if not op.signature.packs:
        return  # its operators have nothing of this
    tensors = [x.float() for x in drawn(op, 1, 12)]
    places = torch.tensor([[0, 5], [6, 12]], dtype=torch.int32)
    numbers, carried = tuple(op.signature.numbers.values()), (None,) * len(op.signature.carried)
    asked = (True,) if op.signature.final else ()
    promised = (True,) if op.signature.adapts else ()
    given = (*(x.requires_grad_() for x in tensors), *numbers, *carried)
    arguments = (*given, *asked, "torch", places, *promised)
    torch.library.opcheck(op.operators.forward, arguments)
    results = op.operators.forward(*arguments)
    for x in results if isinstance(results, tuple) else ():  # whatever memory held of nobody's tokens
        assert 12 not in x.shape or not x.select(x.shape.index(12), 5).any()


@pytest.mark.parametrize("promised", [False, True])
def test_gradients_are_cut_as_outputs_were(
    op: Variant, promised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an operator was promised, its backward operator is, under `vmap` too."""
    if not op.signature.adapts:
        return
    module, seen = op._ops.kernels["torch"], []

    def watched(which: str, function: Any, *arguments: Any) -> Any:
        seen.append((which, arguments[-1]))
        return function(*arguments)

    for which in ("forward", "backward"):
        monkeypatch.setattr(module, which, partial(watched, which, getattr(module, which)))
    tensors, places = drawn(op, 1, 12), torch.tensor([[0, 5], [6, 12]], dtype=torch.int32)
    numbers, carried = op.signature.numbers.values(), (None,) * len(op.signature.carried)

    def run(x: Tensor) -> Tensor:
        rest = (*tensors[1:], *numbers, *carried, False, "torch", places, promised)
        return op.operators.forward(x, *rest)[0].sum()

    for function, x in ((run, tensors[0]), (torch.vmap(run), torch.stack((tensors[0], tensors[0])))):
        seen.clear()
        given = x.detach().requires_grad_()
        torch.autograd.grad(function(given).sum(), given)
        assert {*seen} == {("forward", promised), ("backward", promised)}


def test_vmap_is_a_call_for_each(op: Variant) -> None:
    tensors = drawn(op, 1, 20)
    offsets = torch.tensor([0, 3, 20])
    two = torch.stack((tensors[0], 2 * tensors[0]))
    got = torch.vmap(lambda x: op(x, *tensors[1:], cu_seqlens=offsets)[0])(two)
    for i in range(2):
        assert_close(got[i], op(two[i], *tensors[1:], cu_seqlens=offsets)[0])


WRONG: list[tuple[Any, type[Exception], str]] = [
    ([0, 3, 20], errors.ArgumentTypeError, "cu_seqlens: got list, must be a torch.Tensor"),
    (torch.tensor([0.0, 20.0]), errors.DtypeError, "cu_seqlens: got torch.float32, must be torch.int32 or"),
    (torch.tensor([[0, 20]]), errors.ShapeError, "cu_seqlens: got (1, 2), must be of shape [N + 1]"),
    (torch.tensor([0]), errors.ShapeError, "cu_seqlens: got (1,), must be of shape [N + 1]"),
    (torch.tensor([0, 20], device="meta"), errors.DeviceError, "cu_seqlens: got meta, must be on the device"),
    (torch.tensor([1, 20]), errors.ArgumentValueError, "cu_seqlens: got 1 as the first, must be 0 there"),
    (torch.tensor([0, 9, 8, 20]), errors.ArgumentValueError, "cu_seqlens: got 8 behind 9 at 2"),
    (torch.tensor([0, 21]), errors.ArgumentValueError, "cu_seqlens: got 21 as the last, must be up to 20"),
]


@pytest.mark.parametrize("offsets, error, text", WRONG, ids=[text[16:40] for *_, text in WRONG])
def test_wrong_offsets(op: Variant, offsets: Any, error: type[Exception], text: str) -> None:
    for function in (op, op.reference):
        with pytest.raises(error, match="^" + re.escape(text)):
            function(*drawn(op, 1, 20), cu_seqlens=offsets)


MASKS: list[tuple[Any, type[Exception], str]] = [
    ([[1, 1]], errors.ArgumentTypeError, "attention_mask: got list, must be a torch.Tensor of bool"),
    (torch.ones(2, 5), errors.DtypeError, "attention_mask: got torch.float32, must be torch.bool"),
    (
        torch.ones(2, 4, dtype=torch.bool),
        errors.ShapeError,
        "attention_mask: got (2, 4), must be of shape [2, 5]",
    ),
    (torch.ones(5, dtype=torch.bool), errors.ShapeError, "attention_mask: got (5,), must be of shape [2, 5]"),
    (torch.full((2, 5), 2), errors.ArgumentValueError, "attention_mask: got 2, must be 1 for a token and 0"),
    (
        torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 0]]),
        errors.ArgumentValueError,
        "attention_mask: got padding between tokens of sequence 1, must be padding before or behind",
    ),
]


@pytest.mark.parametrize("mask, error, text", MASKS, ids=[text[20:44] for *_, text in MASKS])
def test_wrong_masks(op: Variant, mask: Any, error: type[Exception], text: str) -> None:
    for function in (op, op.reference):
        with pytest.raises(error, match="^" + re.escape(text)):
            function(*drawn(op, 2, 5), attention_mask=mask)


def test_what_does_not_go_together(op: Variant) -> None:
    tensors, offsets = drawn(op, 2, 5), torch.tensor([0, 5])
    with pytest.raises(errors.ShapeError, match="^cu_seqlens: got sequences packed into a batch of 2"):
        op(*tensors, cu_seqlens=offsets)
    tensors = drawn(op, 1, 5)
    with pytest.raises(errors.ArgumentValueError, match="^attention_mask: got a mask besides cu_seqlens"):
        op(*tensors, cu_seqlens=offsets, attention_mask=torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(errors.StateError, match=r"^initial_state\.\w+: got shape \(2, "):
        op(*tensors, cu_seqlens=offsets, initial_state=states(op, 2))
    with pytest.raises(errors.ArgumentTypeError, match="^cu_seqlens: no argument of .*step"):
        op.step(
            cu_seqlens=offsets, **dict.fromkeys(inspect.signature(op.step).parameters.keys() - {"foreign"})
        )


def test_operators_leave_out_what_is_not_there(op: Variant) -> None:
    """Places past the tensors, and sequences that end before they begin, as a GPU's offsets may name."""
    if not op.signature.packs:
        return
    tensors = drawn(op, 1, 20)
    numbers, carried = tuple(op.signature.numbers.values()), (None,) * len(op.signature.carried)
    places = torch.tensor([[-3, 5], [9, 7], [15, 40]], dtype=torch.int32)
    asked = (True,) if op.signature.final else ()
    run = partial(run_forward, op, op.operators.forward)
    o, _ = run(*tensors, *numbers, *carried, *asked, "torch", places)
    want = op(*tensors, attention_mask=None, cu_seqlens=torch.tensor([0, 5, 15, 20]))[0]
    assert_close(o[:, :5], want[:, :5])
    assert_close(o[:, 15:], want[:, 15:])
    assert not o[:, 5:15].any()
    many = torch.tensor([[0, 20]] * 50, dtype=torch.int32)  # each alone may be right: then all are as one
    assert run(*tensors, *numbers, *carried, *asked, "torch", many)[0].isfinite().all()
