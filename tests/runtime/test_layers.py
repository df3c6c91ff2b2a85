"""The layers: a sequence, pieces of it, and token by token agree; they train and compile."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.layers import LinearAttention, SlidingWindowAttention, rotate
from based_ops.layers.base import layer_of
from based_ops.variant import Variant

WIDTH, HEADS = 32, 2


def layer_for(variant: Variant, dtype: torch.dtype = torch.float64) -> Any:
    kind: Any = layer_of(variant)
    return kind(WIDTH, HEADS, variant, dtype=dtype)


def test_pieces_and_steps_are_the_whole(variant: Variant) -> None:
    layer = layer_for(variant)
    x = torch.randn(2, 23, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        want, nothing = layer(x)
        assert nothing is None
        head, state = layer(x[:, :9], output_state=True)
        middle, state = layer(x[:, 9:20], state=state, output_state=True)
        steps = [layer.step(x[:, t : t + 1], state) for t in range(20, 23)]
        assert_close(torch.cat([head, middle, *steps], dim=1), want)
        state = layer.init_state(2)
        assert_close(torch.cat([layer.step(x[:, t : t + 1], state) for t in range(23)], dim=1), want)


def test_state_of_the_layer(variant: Variant) -> None:
    layer = layer_for(variant, torch.float32)
    assert sum(x.nbytes for x in layer.init_state(3) if x is not None) == layer.state_bytes(3)


def test_every_weight_gets_a_gradient(variant: Variant) -> None:
    layer = layer_for(variant, torch.float32)
    y, _ = layer(torch.randn(2, 9, WIDTH))
    y.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in layer.parameters())


def test_gradients_cross_pieces(variant: Variant) -> None:
    layer = layer_for(variant)
    x = torch.randn(2, 12, WIDTH, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x)[0].square().sum(), x)
    head, state = layer(x[:, :5], output_state=True)
    tail, _ = layer(x[:, 5:], state=state)
    (got,) = torch.autograd.grad(torch.cat([head, tail], dim=1).square().sum(), x)
    assert_close(got, want)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled(variant: Variant, dynamic: bool) -> None:
    layer = layer_for(variant)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x = torch.randn(2, 19, WIDTH, dtype=torch.float64)
    y, state = compiled(x, output_state=True)
    assert_close(y, layer(x)[0])
    with torch.no_grad():
        step = torch.compile(layer.step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        want_state = tuple.__new__(type(state), [None if part is None else part.clone() for part in state])
        assert_close(step(x[:, :1], state), layer.step(x[:, :1], want_state))


def test_autocast(variant: Variant) -> None:
    layer = layer_for(variant, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(torch.randn(2, 9, WIDTH))
    assert y.dtype == torch.bfloat16


INSIDE = list(itertools.product([False, True], repeat=3))


def within(inside: bool, dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype=dtype, enabled=inside)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_cross_autocast(variant: Variant, dtype: torch.dtype, compiled: bool) -> None:
    """A state from `init_state`, a sequence or steps, inside or outside, goes on inside or outside.

    But for a window's state that autocast has made: outside its dtype is refused with the way out.
    """
    layer = layer_for(variant, torch.float32)
    run, step = layer, layer.step
    if compiled:
        run, step = (torch.compile(f, fullgraph=True, backend="aot_eager") for f in (run, step))
    x = torch.randn(2, 9, WIDTH)

    def steps(x: torch.Tensor, state: Any) -> torch.Tensor:
        return torch.cat([step(x[:, t : t + 1], state).float() for t in range(x.shape[1])], dim=1)

    with torch.no_grad():
        want, _ = layer(x)
        for start, first, second in INSIDE:
            with within(start, dtype):
                state = layer.init_state(2)
            with within(first, dtype):
                head = steps(x[:, :3], state)
                middle, state = run(x[:, 3:6], state=state, output_state=True)
            refused = hasattr(state, "k") and first and not second
            if refused:
                with pytest.raises(errors.StateError, match=rf"^state\.k: got {dtype}, .* or convert it, `"):
                    step(x[:, 6:7], state)
                state = state._replace(k=state.k.float(), v=state.v.float())
            with within(second, dtype):
                tail = steps(x[:, 6:], state)
            assert_close(torch.cat([head, middle.float(), tail], dim=1), want, rtol=3e-2, atol=1e-2)


def test_the_state_of_a_layer_whose_dtype_no_call_can_have(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in float32, computed under autocast alone."""
    layer = layer_for(variant, torch.float32)
    monkeypatch.setattr(variant, "dtypes", (torch.bfloat16, torch.float16, torch.float64))
    monkeypatch.setattr(variant._plain, "dtypes", variant.dtypes)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            state = layer.init_state(2)
            layer.step(torch.randn(2, 1, WIDTH), state)
            layer(torch.randn(2, 3, WIDTH), state=state)
            assert sum(x.nbytes for x in state if x is not None) == layer.state_bytes(2)


def test_layers_copy_and_save(variant: Variant) -> None:
    layer = layer_for(variant)
    twin = copy.deepcopy(layer)
    assert twin.op is variant
    assert sorted(layer.state_dict()) == [f"{name}_proj.weight" for name in "koqv"]
    x = torch.randn(1, 4, WIDTH, dtype=torch.float64)
    assert_close(twin(x)[0], layer(x)[0])
    assert variant.name in repr(layer)


def test_layers_take_names(linear: Variant, window: Variant) -> None:
    assert LinearAttention(WIDTH, HEADS, linear.name).op is linear
    with pytest.raises(errors.ArgumentTypeError, match="^variant: got .*, must be a linear_attention"):
        LinearAttention(WIDTH, HEADS, window)
    with pytest.raises(errors.ArgumentTypeError, match="^variant: got .*, must be a sliding_window"):
        SlidingWindowAttention(WIDTH, HEADS, linear.name)


@pytest.mark.parametrize("shape", [(2, WIDTH), (2, 3, WIDTH + 1)])
def test_bad_input(linear: Variant, shape: tuple[int, ...]) -> None:
    layer = layer_for(linear, torch.float32)
    for run in (layer, torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")):
        with pytest.raises(errors.ShapeError, match=r"^x: got .*, must be of shape \[B, T, 32\]"):
            run(torch.randn(shape))
    with pytest.raises(errors.ShapeError, match=r"^q: got 17 tokens in .*, must be of up to 16 tokens"):
        layer.step(torch.randn(2, 17, WIDTH), layer.init_state(2))


def test_rotation_knows_only_distances() -> None:
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64).unbind(0)

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, torch.tensor([[[i]]])) * rotate(k, torch.tensor([[[j]]]))).sum()

    assert_close(score(0, 0), (q * k).sum())
    assert_close(score(1007, 1003), score(4, 0))
    assert not torch.allclose(score(5, 0), score(4, 0))


def test_a_window_without_positions_is_its_operator(window: Variant) -> None:
    layer = SlidingWindowAttention(WIDTH, HEADS, window, dtype=torch.float64, rotary=False)
    x = torch.randn(2, 90, WIDTH, dtype=torch.float64)
    whole, _ = layer(x)
    assert_close(whole, layer._leave(window.reference(*layer._project(x))))
    with torch.no_grad():
        y, state = layer(x[:, :80], output_state=True)
        assert_close(torch.cat([y, layer.step(x[:, 80:], state)], 1), whole)


def test_rotation_keeps_its_precision_far_out() -> None:
    x = torch.randn(1, 1, 1, 64)
    far = torch.tensor([[[10_000_000]]], dtype=torch.int32)
    assert_close(rotate(x, far), rotate(x.double(), far).float())
    with pytest.raises(errors.DtypeError, match="position"):
        rotate(x, far.float())


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("relu_qk64_v64", True),
        ("pos_elu_qk64_v64", False),
        ("taylor2_qk16_v64", False),
        ("window64_d64", False),
    ],
)
def test_zeros_are_padding_only_where_they_weigh_nothing(name: str, harmless: bool) -> None:
    """As the docstrings say: masks are for that."""
    op = based_ops.get(name)
    inputs = [torch.randn(1, 7, 2, width, dtype=torch.float64) for width in (op.qk, op.qk, op.v)]
    o, final = op(*inputs, output_final_state=True)
    padded, _ = op(*(pad(x, (0, 0, 0, 0, 3, 0)) for x in inputs))
    assert torch.allclose(padded[:, 3:], o) == harmless
    padded, padded_final = op(*(pad(x, (0, 0, 0, 0, 0, 3)) for x in inputs), output_final_state=True)
    assert_close(padded[:, :7], o)
    assert torch.allclose(padded_final[-1], final[-1]) == harmless


@pytest.mark.parametrize(
    "name", ["window16_d64", "pos_elu_qk64_v64", "retention_qk64_v64", "hedgehog_qk64_v64"]
)
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_sequences_of_several_lengths(name: str, kv_heads: int) -> None:
    """Packed and padded sequences, in two pieces, are those by themselves; positions are each one's own."""
    op = based_ops.get(name)
    layer: Any = layer_of(op)(WIDTH, 2, op, dtype=torch.float64, kv_heads=kv_heads)  # type: ignore[misc]
    ones, rest = (
        [torch.randn(1, n, WIDTH, dtype=torch.float64) for n in lengths]
        for lengths in ((23, 1, 9), (5, 18, 2))
    )
    with torch.no_grad():
        alone = [layer(torch.cat(pair, 1))[0] for pair in zip(ones, rest, strict=True)]
        first, states = layer(
            torch.cat(ones, 1), output_state=True, cu_seqlens=torch.tensor([0, 23, 24, 33], dtype=torch.int32)
        )
        second, final = layer(
            torch.cat(rest, 1), state=states, output_state=True, cu_seqlens=torch.tensor([0, 5, 23, 25])
        )
        mask = torch.zeros(3, 30, dtype=torch.int64)
        padded = torch.full((3, 30, WIDTH), float("nan"), dtype=torch.float64)
        for n, x in enumerate(rest):
            mask[n, n : n + x.shape[1]] = 1
            padded[n, n : n + x.shape[1]] = x[0]
        padded_second, padded_final = layer(padded, state=states, output_state=True, attention_mask=mask)
    for n, want in enumerate(alone):
        cut = ones[n].shape[1]
        place = slice([0, 23, 24][n], [23, 24, 33][n]), slice([0, 5, 23][n], [5, 23, 25][n])
        assert_close(first[0, place[0]], want[0, :cut])
        assert_close(second[0, place[1]], want[0, cut:])
        assert_close(padded_second[n, n : n + rest[n].shape[1]], want[0, cut:])
    for x, y in zip(final, padded_final, strict=True):
        assert x is None or assert_close(x, y) is None


@pytest.mark.parametrize("name", ["window16_d64", "taylor2_qk16_v64", "hedgehog_qk64_v64"])
def test_steps_in_slots(name: str) -> None:
    layer = layer_for(based_ops.get(name))
    x = torch.randn(3, 40, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        want = layer(x)[0]
        _, first = layer(x[:, :20], output_state=True)
        _, other = layer(x[:1, :7], output_state=True)
        pool = type(first).cat([other, first])
        indices = torch.tensor([2, -1, 1], dtype=torch.int32)
        steps = [layer.step(x[[1, 0, 0], t : t + 4], pool, state_indices=indices) for t in range(20, 40, 4)]
    got = torch.cat(steps, 1)
    assert_close(got[0], want[1, 20:])
    assert_close(got[2], want[0, 20:])
