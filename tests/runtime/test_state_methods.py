"""States as objects: moved, copied, picked from, put together, and told apart by their variants."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_map

import based_ops
from based_ops import errors, state
from based_ops.variant import Variant

from .inputs import leaves, state_of, tensors_of

EXACT = {"rtol": 0, "atol": 0}
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def same(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x, y, **EXACT)


def test_a_state_says_what_its_parts_are(any_layer: Variant) -> None:
    made = any_layer.init_state(3, 2)
    assert made.roles == tuple(x.dtype for x in any_layer.signature.state)
    assert made.nbytes == any_layer.state_bytes(3, 2)
    assert made.variant == state_of(any_layer).variant == any_layer.name


@pytest.mark.parametrize("before", [F32, BF16, F64])
@pytest.mark.parametrize("after", [F32, BF16, F64])
def test_to_a_dtype_is_for_inputs_of_it(any_layer: Variant, before: torch.dtype, after: torch.dtype) -> None:
    begun = state_of(any_layer, dtype=before)
    moved = begun.to(after)
    assert moved.variant == any_layer.name
    for got, want, x in zip(moved, any_layer.init_state(3, 2, dtype=after), begun, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close(got, x.to(want.dtype), **EXACT)
            assert got.dtype == want.dtype and (got is x) == (x.dtype == want.dtype)
    any_layer._step(tensors_of(any_layer, 3, 1, after), None, moved, None)


def test_to_a_device(layer: Variant) -> None:
    begun = state_of(layer)
    there = begun.to("meta", BF16)
    for got, want in zip(there, begun.to(BF16), strict=True):
        assert (got is None) == (want is None)
        assert got is None or (got.is_meta and got.dtype == want.dtype and got.shape == want.shape)
    assert all(x is y for x, y in zip(begun.to("cpu"), begun, strict=True))
    with pytest.raises(errors.DtypeError, match="^dtype: got torch.int32, must be a floating dtype"):
        begun.to(torch.int32)
    with pytest.raises(errors.ArgumentTypeError, match="^device: got torch.float32, must be a device"):
        begun.to(F32, F32)


@pytest.mark.parametrize("kept", ["bfloat16", "float16"])
def test_sums_of_two_bytes_come_back_from_float64(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "narrow.yaml"
    path.write_text(
        "name: narrow\nmixer: linear_attention\nfeature_map: {kind: elementwise, expression: elu(x) + 1}\n"
        f"head_dims: {{qk: 8, v: 16}}\nstate_dtype: {kept}\n"
    )
    op = based_ops.load(path)
    begun = state_of(op)
    back = begun.to(F64).to(BF16)
    same(back, begun)
    assert (back.state.dtype, back.normalizer.dtype) == (getattr(torch, kept), F32)
    nameless = based_ops.LinearAttentionState(*begun)
    same(nameless.to(BF16), begun)
    assert nameless.to(F64).to(BF16).state.dtype == F32  # what it was is not known any more


def test_copies_have_their_own_memory_and_views_do_not(layer: Variant) -> None:
    begun = state_of(layer)
    views = [None if x is None else x.transpose(0, 1).contiguous().transpose(0, 1) for x in begun]
    strided = type(begun)(*views)
    copy = strided.clone()
    same(copy, begun)
    assert all(x.is_contiguous() for x in leaves(copy))
    layer._step(tensors_of(layer, 3, 1), None, copy, None)
    same(strided, begun)
    shared = begun.detach()
    assert shared.variant == begun.clone().variant == layer.name
    assert all(x.data_ptr() == y.data_ptr() for x, y in zip(leaves(shared), leaves(begun), strict=True))
    inputs = [x if x is None else x.requires_grad_() for x in tensors_of(layer)]
    _, final = layer._call(tuple(inputs), None, None, True, None)
    assert any(x.requires_grad for x in leaves(final))
    assert not any(x.requires_grad for x in leaves(final.detach()))


def test_beams_go_on_from_the_states_that_they_choose(layer: Variant) -> None:
    begun, index = state_of(layer), torch.tensor([2, 0, 0, 1])
    chosen = begun.index_select(index)
    assert chosen.variant == layer.name
    for got, x in zip(leaves(chosen), leaves(begun), strict=True):
        assert_close(got, x[[2, 0, 0, 1]], **EXACT)
        assert got.is_contiguous() and got.data_ptr() != x.data_ptr()
    tokens = tensors_of(layer, 4, 1)
    together = layer._step(tokens, None, chosen, None)
    for i, row in enumerate(index):
        alone = begun.index_select(row[None].to(torch.int32))
        of_row = [x if x is None or x.shape[0] != 4 else x[i : i + 1] for x in tokens]
        assert_close(layer._step(tuple(of_row), None, alone, None)[0], together[i])


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        ([0, 1], errors.ArgumentTypeError, "index: got list, must be a tensor of int32 or int64"),
        (torch.ones(2), errors.ArgumentTypeError, "index: got torch.float32, must be"),
        (torch.zeros(1, 1, dtype=torch.int64), errors.ShapeError, "index: got 2 dimensions"),
    ],
)
def test_an_index_is_checked(window: Variant, index: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"^{match}"):
        window.init_state(2, 1).index_select(index)


def test_states_are_put_together(layer: Variant) -> None:
    parts = [state_of(layer, batch) for batch in (1, 0, 3)]
    whole = type(parts[0]).cat(parts)
    assert whole.variant == layer.name
    for x, *rows in zip(whole, *parts, strict=True):
        assert (x is None) == (rows[0] is None)
        if x is not None:
            assert_close(x, torch.cat(rows), **EXACT)
    begun = state_of(layer)
    same(type(begun).cat(begun.index_select(torch.tensor([i])) for i in range(3)), begun)


def test_what_cannot_be_one_batch_is_named(linear: Variant, window: Variant) -> None:
    sums, ring = linear.init_state(1, 2), window.init_state(1, 2)
    cat = type(sums).cat
    with pytest.raises(errors.StateError, match="^states: got none, must be one state at least"):
        cat([])
    with pytest.raises(errors.StateError, match=r"^states\[1\]: got SlidingWindowState, must be a Linear"):
        cat([sums, ring])
    with pytest.raises(
        errors.StateError, match=r"^states\[1\].normalizer: got None, must be a tensor, as of"
    ):
        cat([sums, sums._replace(normalizer=None)])
    with pytest.raises(
        errors.StateError, match=r"^states\[1\].state: got \[3, .* behind the batch, must be \[2"
    ):
        cat([sums, linear.init_state(1, 3)])
    with pytest.raises(errors.StateError, match=r"^states\[1\].k: got torch.bfloat16, must be torch.float32"):
        type(ring).cat([ring, ring.to(BF16)])
    with pytest.raises(errors.DeviceError, match=r"^states\[1\].k: got meta, must be on cpu"):
        type(ring).cat([ring, ring.to("meta")])


def equal_shapes() -> tuple[Variant, Variant]:
    """Two layers whose states have the same shapes, and mean something else."""
    return based_ops.get("pos_elu_qk64_v64"), based_ops.get("relu_qk64_v64")


def test_a_state_of_another_variant_is_refused() -> None:
    mine, other = equal_shapes()
    foreign, inputs = state_of(other), tensors_of(mine)
    calls: list[Callable[[Any], Any]] = [
        lambda state: mine(*inputs, initial_state=state),
        lambda state: mine.step(*(x[:, :1] for x in inputs), state),
        lambda state: mine.reference(*inputs, initial_state=state),
    ]
    for call in calls:
        for begun in (foreign, foreign.clone(), pickle.loads(pickle.dumps(foreign))):
            with pytest.raises(errors.StateError, match=f"state of {other.name}, must be one of {mine.name}"):
                call(begun)
        call(type(foreign)(*foreign))  # nobody knows whose it is
    with pytest.raises(errors.StateError, match=rf"^states\[1\]: got a state of {other.name}, must be of"):
        type(foreign).cat([mine.init_state(1, 2), other.init_state(1, 2)])


def test_a_variant_of_the_same_meaning_is_none_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    text = "mixer: sliding_window\nwindow: 7\nhead_dims: {qk: 8, v: 16}\n"
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"name: first\n{text}")
    second.write_text(f"name: second\n{text}")
    one, two = based_ops.load(first), based_ops.load(second)
    made = state_of(one)
    assert made.variant == one.name != two.name
    two.step(*(x[:, :1] for x in tensors_of(two)), made)
    made.variant = "first_00000000"  # of a build that this process does not have
    two.step(*(x[:, :1] for x in tensors_of(two)), made)


def test_the_variant_goes_to_disk(layer: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, file = state_of(layer), io.BytesIO()
    torch.save([begun, type(begun)(*begun)], file)
    file.seek(0)
    found, nameless = torch.load(file, weights_only=True)
    same(found, begun)
    assert (found.variant, nameless.variant) == (layer.name, None)
    kind = type(begun).__name__
    monkeypatch.setitem(state.LAYOUTS, kind, state.LAYOUTS[kind] + 1)
    file.seek(0)
    with pytest.raises(Exception, match=f"{kind}: got layout 1 of a saved state, must be 2"):
        torch.load(file, weights_only=True)


def test_methods_are_traced_and_mapped(layer: Variant) -> None:
    begun, index = state_of(layer), torch.tensor([1, 1, 0])

    def use(state: Any, index: torch.Tensor) -> Any:
        moved = state.to(BF16).to(F32).detach()
        return type(state).cat([moved.clone(), moved.index_select(index)])

    want = use(begun, index)
    got = torch.compile(use, fullgraph=True, backend="aot_eager")(begun, index)
    same(got, want)
    same(tree_map(lambda x: x, begun), begun)
    stack = tree_map(lambda x: None if x is None else torch.stack([x, x]), begun)
    dims = type(begun)(*[None if x is None else 0 for x in begun])
    rows = leaves(torch.vmap(lambda s: [x for x in s.clone() if x is not None], in_dims=(dims,))(stack))
    for x, y in zip(rows, leaves(stack), strict=True):
        assert_close(x, y, **EXACT)


def test_compiled_code_takes_and_returns_states(layer: Variant) -> None:
    """Those that know their variant, and those that do not, are one to it."""
    inputs, begun = tensors_of(layer), state_of(layer)

    def use(state: Any) -> Any:
        return layer._call(inputs, None, state, True, None)[1]

    compiled, want = torch.compile(use, fullgraph=True, backend="aot_eager"), use(begun)
    for known in (begun, type(begun)(*begun)):
        made = compiled(known)
        same(made, want)
        same(use(made), use(want))
