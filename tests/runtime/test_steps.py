"""Steps of several tokens at once, through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, func
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.codegen.spec.signature import MOST_TOKENS
from based_ops.inputs import draw, filled, tokens
from based_ops.layers import GatedShortConv, LinearAttention, SlidingWindowAttention
from based_ops.slots import in_place
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import leaves, meaning, qkv

SAME = {"rtol": 0.0, "atol": 0.0}
UNITS = 3


def drawn(variant: Variant, length: int, batch: int = 2) -> tuple[Tensor, ...]:
    """An input for everything that the layer takes."""
    normal: Callable[..., Tensor] = lambda shape: torch.randn(*shape) * 0.5  # noqa: E731
    return draw(variant, batch, length, UNITS, normal, lambda x: x)


def step(variant: Variant, inputs: tuple[Tensor, ...], state: Any) -> Tensor:
    return variant._step(filled(variant, inputs), None, state, None)


def after_some(variant: Variant, batch: int = 2) -> Any:
    """A state after some tokens."""
    state = variant.init_state(batch, UNITS)
    step(variant, drawn(variant, 7, batch), state)
    return state


def cloned(state: Any) -> Any:
    return type(state)(*(x if x is None else x.clone() for x in state))


@given(st.sampled_from(every_kind()), st.integers(1, MOST_TOKENS), st.integers(0, MOST_TOKENS))
def test_pieces_of_a_sequence(name: str, length: int, cut: int) -> None:
    variant = based_ops.get(name)
    inputs, state, cut = drawn(variant, length), after_some(variant), min(cut, length)
    other = cloned(state)
    pieces = [step(variant, tokens(variant, inputs, *ends), state) for ends in ((0, cut), (cut, length))]
    singly = [step(variant, tokens(variant, inputs, t, t + 1), other) for t in range(length)]
    assert_close(torch.cat(pieces, 1), torch.cat(singly, 1), **SAME)
    assert_close(leaves(state), leaves(other), **SAME)


def test_no_tokens(layer: Variant) -> None:
    state = after_some(layer)
    before = cloned(state)
    assert step(layer, drawn(layer, 0), state).shape[1] == 0
    assert_close(leaves(state), leaves(before), **SAME)
    # The operator itself takes none as well.
    op = getattr(torch.ops.based_ops, f"{layer.name}_step")
    numbers = layer._numbers(layer, None)
    found = op(*filled(layer, drawn(layer, 0)), *numbers, *state, "torch")
    assert found.shape[1] == 0
    assert_close(leaves(state), leaves(before), **SAME)


def test_too_many_tokens(layer: Variant) -> None:
    state = after_some(layer)
    inputs = drawn(layer, MOST_TOKENS + 1)
    with pytest.raises(errors.ShapeError, match="must be of up to 16 tokens: .* `initial_state`"):
        step(layer, inputs, state)
    op = getattr(torch.ops.based_ops, f"{layer.name}_step")
    with pytest.raises(errors.ShapeError, match="T <= 16"):
        op(*filled(layer, inputs), *layer._numbers(layer, None), *state, "torch")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(variant: Variant, dynamic: bool) -> None:
    compiled = torch.compile(variant.step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    state = after_some(variant)
    other = cloned(state)
    for length in (3, 5, 1):
        inputs = drawn(variant, length)
        assert_close(compiled(*inputs, state), variant.step(*inputs, other), **SAME)
        assert_close(leaves(state), leaves(other), **SAME)


def test_exported(variant: Variant) -> None:
    class Step(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, state: Any) -> Tensor:
            return variant.step(q, k, v, state)

    length = torch.export.Dim("length", min=2, max=MOST_TOKENS)
    state = after_some(variant)
    moving = {1: length}
    fixed = type(state)(*[None] * len(state))
    program = torch.export.export(
        Step(), (*drawn(variant, 4), state), dynamic_shapes=(moving, moving, moving, fixed)
    ).module()
    other = cloned(state)
    for count in (2, 16):
        inputs = drawn(variant, count)
        assert_close(program(*inputs, state), variant.step(*inputs, other), **SAME)
        assert_close(leaves(state), leaves(other), **SAME)


def test_mapped(variant: Variant) -> None:
    inputs = [torch.stack(pair) for pair in zip(drawn(variant, 4), drawn(variant, 4), strict=True)]
    states = [after_some(variant), after_some(variant)]
    kind = type(states[0])
    pairs = zip(*states, strict=True)
    stacked = kind(*(None if parts[0] is None else torch.stack(parts) for parts in pairs))
    dims = kind(*(None if x is None else 0 for x in stacked))
    got = func.vmap(variant.step, in_dims=(0, 0, 0, dims))(*inputs, stacked)
    for i, state in enumerate(states):
        assert_close(got[i], variant.step(*(x[i] for x in inputs), state), **SAME)
        assert_close([x[i] for x in leaves(stacked)], leaves(state), **SAME)


def test_layers_step_several_tokens(linear: Variant, window: Variant) -> None:
    for layer in (
        LinearAttention(32, 2, linear),
        SlidingWindowAttention(32, 2, window),
        GatedShortConv(8, expand=2),
    ):
        x = torch.randn(2, 9, 8 if isinstance(layer, GatedShortConv) else 32)
        with torch.no_grad():
            want = layer(x)[0]
            state = layer.init_state(2)
            got = torch.cat([layer.step(x[:, :1], state), layer.step(x[:, 1:], state)], dim=1)
        assert_close(got, want)


def test_more_tokens_than_a_step_are_a_call(variant: Variant) -> None:
    q, k, v = qkv(variant, length=20, heads=UNITS)
    state = after_some(variant)
    _, final = variant(q, k, v, initial_state=state, output_final_state=True)
    with torch.no_grad():
        for start in (0, 10):
            variant.step(*(x[:, start : start + 10] for x in (q, k, v)), state)
    assert_close(meaning(variant, state), meaning(variant, final), rtol=1e-4, atol=1e-4)


# Slots of a pool


def pool_of(variant: Variant, slots: int = 5) -> Any:
    """A pool of states after some tokens."""
    return after_some(variant, slots)


def indexed(*slots: int) -> Tensor:
    return torch.tensor(slots, dtype=torch.int32)


def picked(pool: Any, slots: tuple[int, ...]) -> Any:
    return type(pool)(*(None if x is None else x[list(slots)].clone() for x in pool))


def call(variant: Variant, inputs: tuple[Tensor, ...], pool: Any, final: bool, indices: Tensor) -> Any:
    return variant._call(filled(variant, inputs), None, pool, final, None, indices)


def test_a_step_in_slots(layer: Variant) -> None:
    pool, inputs = pool_of(layer), drawn(layer, 3, 4)
    before, indices = cloned(pool), indexed(3, -1, 0, 4)
    there, slots = [0, 2, 3], (3, 0, 4)
    state = picked(pool, slots)
    with torch.no_grad():
        got = layer._step(filled(layer, inputs), None, pool, None, indices)
        kept = [x[there] if "B" in kind.dims else x for kind, x in zip(inputs_of(layer), inputs, strict=True)]
        want = step(layer, tuple(kept), state)
    assert_close(got[there], want)  # sums of another batch may be taken in another order
    assert not bool(got[1].any())
    for whole, old, part in zip(leaves(pool), leaves(before), leaves(state), strict=True):
        assert_close(whole[list(slots)], part, **SAME)
        assert_close(whole[[1, 2]], old[[1, 2]], **SAME)


def inputs_of(variant: Variant) -> list[Any]:
    return [x for x in variant.signature.inputs if x.present]


@pytest.mark.parametrize("called", ["function", "operator"])
def test_slots_that_begin_anywhere(layer: Variant, called: str) -> None:
    """Kernels read vectors of 16 bytes: slots that begin elsewhere are copied, and to the bit alike."""
    pool, inputs, indices = pool_of(layer), drawn(layer, 2, 3), indexed(3, -1, 0)
    odd = type(pool)(*(x if x is None else beside(x) for x in pool))
    wide = [x for x in leaves(odd) if x[0, 0].numel() % 2 == 0]
    assert in_place(pool) and in_place(odd) == (not wide)
    want = layer._step(filled(layer, inputs), None, pool, None, indices)
    if called == "function":
        got = layer._step(filled(layer, inputs), None, odd, None, indices)
    else:
        op = getattr(torch.ops.based_ops, f"{layer.name}_step")
        got = op(*filled(layer, inputs), *layer._numbers(layer, None), *odd, "torch", indices)
    assert_close(got, want, **SAME)
    assert_close(leaves(odd), leaves(pool), **SAME)


def beside(x: Tensor) -> Tensor:
    """The pool with an element beside each slot."""
    memory = x.new_zeros(len(x), x[0].numel() + 1)
    view = memory[:, 1:].view(x.shape)
    return view.copy_(x)


@pytest.mark.parametrize("final", [False, True])
def test_a_call_in_slots(layer: Variant, final: bool) -> None:
    pool, inputs = pool_of(layer), drawn(layer, 9, 3)
    before, indices = cloned(pool), indexed(4, -1, 1)
    kept = [x[[0, 2]] if "B" in kind.dims else x for kind, x in zip(inputs_of(layer), inputs, strict=True)]
    want, state = layer._call(filled(layer, tuple(kept)), None, picked(pool, (4, 1)), True, None)
    got, returned = call(layer, inputs, pool, final, indices)
    assert_close(got[[0, 2]], want)
    assert not bool(got[1].any()) and returned is (pool if final else None)
    for whole, old, part in zip(leaves(pool), leaves(before), leaves(state), strict=True):
        assert_close(whole[[0, 2, 3]], old[[0, 2, 3]], **SAME)
        assert_close(whole[[4, 1]], part if final else old[[4, 1]])


def test_a_prompt_then_tokens_in_slots(variant: Variant) -> None:
    """As an engine does it: prompts into slots, then all that are there together."""
    pool = variant.init_state(4, UNITS)
    q, k, v = qkv(variant, batch=2, length=25, heads=UNITS)
    with torch.no_grad():
        parts = []
        for b, slot in ((0, 2), (1, 0)):
            row = (x[b : b + 1, :20] for x in (q, k, v))
            o, _ = variant(*row, initial_state=pool, output_final_state=True, state_indices=indexed(slot))
            parts.append(o)
        rest = [x[:, 20:] for x in (q, k, v)]
        padded = [torch.cat([x, torch.full_like(x[:1], float("nan"))]) for x in rest]
        o = variant.step(*padded, pool, state_indices=indexed(2, 0, -1))
    whole, _ = variant(q, k, v)
    assert_close(torch.cat([torch.cat(parts), o[:2]], dim=1), whole, rtol=1e-4, atol=1e-4)
    assert not bool(o[2].any())


BAD: dict[str, tuple[type[errors.BasedOpsError], str, Any]] = {
    "no tensor": (errors.ArgumentTypeError, r"got list, must be a torch.Tensor of int32", [0, 1]),
    "int64": (errors.DtypeError, r"got torch.int64, must be torch.int32", torch.tensor([0, 1])),
    "another device": (errors.DeviceError, r"got meta", indexed(0, 1).to("meta")),
    "another batch": (errors.ShapeError, r"got .*, must be of shape \[2\]", indexed(0, 1, 2)),
    "too many axes": (errors.ShapeError, r"got .*, must be of shape \[2\]", indexed(0, 1).unsqueeze(1)),
    "beyond": (errors.ArgumentValueError, r"got 5, must be -1, or one of the 5 slots", indexed(0, 5)),
    "below": (errors.ArgumentValueError, r"got -2, must be -1", indexed(0, -2)),
    "twice": (errors.ArgumentValueError, r"got slot 3 twice", indexed(3, 3)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_indices(variant: Variant, what: str) -> None:
    error, words, indices = BAD[what]
    pool, inputs = pool_of(variant), drawn(variant, 1)
    before = cloned(pool)
    with torch.no_grad():
        with pytest.raises(error, match=rf"^state_indices: {words}"):
            variant.step(*inputs, pool, state_indices=indices)
        with pytest.raises(error, match=rf"^state_indices: {words}"):
            variant(*inputs, initial_state=pool, output_final_state=True, state_indices=indices)
        if isinstance(indices, Tensor):
            op = getattr(torch.ops.based_ops, f"{variant.name}_step")
            with pytest.raises(errors.BasedOpsError, match="^state_indices: "):
                op(*inputs, 0.5, *pool, "torch", indices)
    assert_close(leaves(pool), leaves(before), **SAME)


def test_bad_pools(variant: Variant) -> None:
    pool, inputs, indices = pool_of(variant), drawn(variant, 1), indexed(1, 0)
    last = pool._fields[[x is not None for x in pool].index(True)]
    fewer = pool._replace(**{last: getattr(pool, last)[:, :1]})
    for bad, error in (
        (None, errors.StateError),
        (tuple(pool), errors.StateError),
        (fewer, errors.StateError),
    ):
        with torch.no_grad(), pytest.raises(error, match=r"^state"):
            variant.step(*inputs, bad, state_indices=indices)
        with torch.no_grad(), pytest.raises(error, match=r"^initial_state"):
            variant(*inputs, initial_state=bad, state_indices=indices)
    with pytest.raises(errors.GradientError, match=r"^q: .* a pool"):
        variant(inputs[0].requires_grad_(), *inputs[1:], initial_state=pool, state_indices=indices)
    with pytest.raises(errors.GradientError, match=r"^q: .* a step updates"):
        variant.step(*inputs, pool, state_indices=indices)


def test_pools_apart(variant: Variant) -> None:
    """Entries may be parts of pages that hold more; they may not share memory."""
    state = pool_of(variant, 3)
    pages = type(state)(*(None if x is None else torch.stack([x, x], dim=1) for x in state))
    pool = type(state)(*(None if x is None else x[:, 0] for x in pages))
    inputs = drawn(variant, 2)
    with torch.no_grad():
        got = variant.step(*inputs, pool, state_indices=indexed(2, 0))
        want = variant.step(*inputs, state, state_indices=indexed(2, 0))
        assert_close(got, want, **SAME)
        assert_close(leaves(pool), leaves(state), **SAME)
        first = pool._fields[0]
        alike = pool._replace(**{first: getattr(pool, first)[:1].expand_as(getattr(pool, first))})
        with pytest.raises(errors.StateError, match=f"^state.{first}: .* dense entries"):
            variant.step(*inputs, alike, state_indices=indexed(2, 0))


@pytest.mark.parametrize("length", [1, 4])
def test_compiled_in_slots(variant: Variant, length: int) -> None:
    compiled = torch.compile(variant.step, fullgraph=True, backend="aot_eager")
    pool = pool_of(variant)
    other = cloned(pool)
    with torch.no_grad():
        for slots in ((4, 1), (-1, 0)):
            inputs, indices = drawn(variant, length), indexed(*slots)
            got = compiled(*inputs, pool, state_indices=indices)
            assert_close(got, variant.step(*inputs, other, state_indices=indices), **SAME)
            assert_close(leaves(pool), leaves(other), **SAME)

    def prefill(q: Tensor, k: Tensor, v: Tensor, pool: Any, indices: Tensor) -> Tensor:
        return variant(q, k, v, initial_state=pool, output_final_state=True, state_indices=indices)[0]

    compiled = torch.compile(prefill, fullgraph=True, backend="aot_eager")
    inputs = drawn(variant, 9)
    with torch.no_grad():
        assert_close(compiled(*inputs, pool, indexed(3, 1)), prefill(*inputs, other, indexed(3, 1)))
    assert_close(leaves(pool), leaves(other))


def test_exported_in_slots(variant: Variant) -> None:
    class Step(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, pool: Any, indices: Tensor) -> Tensor:
            return variant.step(q, k, v, pool, state_indices=indices)

    pool, indices = pool_of(variant), indexed(4, -1)
    program = torch.export.export(Step(), (*drawn(variant, 2), pool, indices)).module()
    other, inputs = cloned(pool), drawn(variant, 2)
    want = variant.step(*inputs, other, state_indices=indexed(0, 3))
    assert_close(program(*inputs, pool, indexed(0, 3)), want, **SAME)
    assert_close(leaves(pool), leaves(other), **SAME)


def test_opcheck_in_slots(layer: Variant) -> None:
    op = getattr(torch.ops.based_ops, f"{layer.name}_step").default
    inputs, numbers = filled(layer, drawn(layer, 3)), layer._numbers(layer, None)
    torch.library.opcheck(op, (*inputs, *numbers, *pool_of(layer), "torch", indexed(2, -1)))


@pytest.mark.parametrize("shared", [False, True])
def test_mapped_over_slots(variant: Variant, shared: bool) -> None:
    """Pools are mapped over, or all entries have slots of one pool."""
    inputs = [torch.stack(pair) for pair in zip(drawn(variant, 2), drawn(variant, 2), strict=True)]
    pools = [pool_of(variant), pool_of(variant)]
    kind = type(pools[0])
    indices = torch.stack([indexed(1, -1), indexed(4, 0)])

    def run(q: Tensor, k: Tensor, v: Tensor, pool: Any, indices: Tensor) -> Tensor:
        return variant.step(q, k, v, pool, state_indices=indices)

    if shared:
        given, dim = cloned(pools[0]), None
    else:
        given = kind(*(None if x is None else torch.stack([x, y]) for x, y in zip(*pools, strict=True)))
        dim = 0
    dims = kind(*(None if x is None else dim for x in given))
    got = func.vmap(run, in_dims=(0, 0, 0, dims, 0))(*inputs, given, indices)
    for i in range(2):
        want = run(*(x[i] for x in inputs), pools[0 if shared else i], indices[i])
        assert_close(got[i], want, **SAME)
    wanted = leaves(pools[0]) if shared else map(torch.stack, zip(*map(leaves, pools), strict=True))
    assert_close(leaves(given), list(wanted), **SAME)
    with pytest.raises(errors.StateError, match="mapped over like q"):
        func.vmap(run, in_dims=(0, 0, 0, None, None))(*inputs, pools[0], indices[0])


def test_foreign_names(linear: Variant) -> None:
    with pytest.raises(errors.ArgumentTypeError, match=r"^conv_state_indices: .* `state_indices`"):
        linear.step(*drawn(linear, 1), pool_of(linear), conv_state_indices=indexed(0, 1))  # type: ignore[call-arg]
