"""Operators that are called directly: what does not fit is named before any kernel runs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close

import based_ops
from based_ops import errors, ops
from based_ops.codegen.spec.signature import INDICES, SEQUENCES, Operand, Setting
from based_ops.overlap import extent, overlapping, period
from based_ops.variant import Variant

from .conftest import every_kind, representatives
from .inputs import leaves, qkv

F32 = torch.float32
SIZES = {"B": 2, "N": 2, "T": 5, "Tk": 5, "H": 3, "D": 7, "slots": 2}
PASSES = ("forward", "backward", "step")


def operator(variant: Variant, which: str) -> Any:
    return getattr(torch.ops.based_ops, f"{variant.name}_{which}").default


def arguments(variant: Variant, which: str, optional: bool = True) -> list[Any]:
    """Arguments that fit, of odd sizes; all that may be left out, or nothing of it."""
    taken = ops.of(variant.name).admission.operands[which]
    sizes = SIZES | variant.signature.alike(SIZES[variant.unit])
    found: list[Any] = []
    for argument, operand in zip(operator(variant, which)._schema.arguments, taken.entries, strict=True):
        if isinstance(operand, Setting):
            found.append({"float": 0.5, "bool": True}.get(str(argument.type), "torch"))
        elif operand.argument is SEQUENCES:  # which lie in a batch of one
            found.append(None)
        elif not operand.argument.present and not operand.returned or (operand.part_of and not optional):
            found.append(None)
        elif operand.argument is INDICES:
            found.append(torch.arange(SIZES["B"], dtype=torch.int32) if optional else None)
        else:
            dims = operand.argument.dims if operand.argument.present else (0,)
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in dims]
            integer = operand.argument.dtype == "int32"
            found.append(torch.zeros(shape, dtype=torch.int32) if integer else torch.rand(shape))
    return found


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("which", PASSES)
def test_what_fits_is_served(any_layer: Variant, which: str, optional: bool) -> None:
    operator(any_layer, which)(*arguments(any_layer, which, optional))


@pytest.mark.parametrize("which", PASSES)
def test_what_says_where_things_lie_may_be_left_out(any_layer: Variant, which: str) -> None:
    """It stands behind the kernel's name, so calls of operators that had nothing of it are as they were."""
    taken, op = ops.of(any_layer.name).admission.operands[which], operator(any_layer, which)
    behind = op._schema.arguments[taken.kernel + 1 :]
    assert op._schema.arguments[taken.kernel].name == "kernel"
    defaults = [None if isinstance(x, Operand) else False for x in taken.entries[taken.kernel + 1 :]]
    assert all(x.has_default_value() for x in behind)
    assert [x.default_value for x in behind] == defaults
    assert [x.name for x in behind] == [x.name for x in taken.entries[taken.kernel + 1 :]]
    function = inspect.signature(getattr(any_layer._record.module("torch"), which)).parameters.values()
    names = [x.name for x in op._schema.arguments if x.name != "kernel"]
    assert [x.name for x in function][which == "backward" :] == names[which == "backward" :]
    left_out = {x.name: x.default for x in function if x.default is not x.empty}
    assert left_out == dict(zip([x.name for x in behind], defaults, strict=True))
    given = arguments(any_layer, which, optional=False)
    copies = [[x.clone() if isinstance(x, torch.Tensor) else x for x in given] for _ in range(2)]
    results = (
        op(*copies[0][: taken.kernel + 1]),
        op(*copies[1][: len(copies[1]) - len(behind)], *defaults),
    )
    assert_close(*results, rtol=0, atol=0)
    with pytest.raises(errors.BackendUnavailable, match="^kernel: got 'nothing'"):
        op(*given[: taken.kernel], "nothing")


def narrower(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.narrow(dim, 0, x.shape[dim] - 1)


def wider(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


@given(st.data())
def test_what_does_not_fit_is_named(data: st.DataObject) -> None:
    """One tensor is changed in one way, in a call with and without data."""
    variant = based_ops.get(data.draw(st.sampled_from(every_kind()), "variant"))
    which = data.draw(st.sampled_from(PASSES), "pass")
    given = arguments(variant, which)
    taken = ops.of(variant.name).admission.operands[which]
    places = [place for place in taken.places if given[place] is not None]
    place = data.draw(st.sampled_from(places), "tensor")
    operand, x = taken.tensors[place], given[place]
    change = data.draw(st.sampled_from(["shape", "rank", "dtype", "device", "absent"]), "change")
    if change == "shape":
        dim = data.draw(st.integers(0, x.dim() - 1), "dim")
        more = data.draw(st.booleans(), "more")
        free = operand.argument.dims[dim] if operand.argument.present else 0
        if free in taken.signature.longer and more:
            more = False  # a window may have more keys than queries
        if x.shape[dim] == 0:
            changed = x.new_zeros(1)
        else:
            changed = (wider if more else narrower)(x, dim)
        tied = sum(free in other.argument.dims for other in taken.tensors.values()) > 1
        tied = tied or free in taken.signature.parts  # which divide each other
        longer = free in taken.signature.longer.values() and which == "forward" and place == taken.lead
        if isinstance(free, str) and (not tied or (longer and not more)):
            return  # nothing else has this size, or fewer queries than keys
    elif change == "rank":
        changed = x.unsqueeze(data.draw(st.integers(0, x.dim()), "dim"))
    elif change == "dtype":
        changed = x.to(data.draw(st.sampled_from([torch.int64, torch.bool, torch.complex64]), "dtype"))
    elif change == "device":
        changed = x.to("meta")
    else:
        changed = None
        group = [y for y in taken.tensors.values() if y.part_of == operand.part_of and y.argument.present]
        if not operand.part_of or len(group) < 2:
            return  # the schema says that it must be there, or it may be left out alone
    given[place] = changed
    with pytest.raises(errors.BasedOpsError):
        operator(variant, which)(*given)
    if change == "device":
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given]
        with pytest.raises(errors.BasedOpsError):
            operator(variant, which)(*fakes)


@pytest.mark.parametrize("which", PASSES)
def test_kernel_strings(layer: Variant, which: str) -> None:
    build = layer._record.build
    taken = ops.of(layer.name).admission.operands[which]
    call = arguments(layer, which)[: taken.kernel]
    op = operator(layer, which)
    for fine in ("torch", "default", f"torch-{build}", f"default-{build}"):
        op(*call, fine)
    for wrong, error, match in [
        ("torch-deadbeef", errors.VersionError, f"must be of build {build}.*export or compile it again"),
        (f"torch-{build}0", errors.VersionError, "must be of build"),
        ("nothing", errors.BackendUnavailable, "must be one of default, triton, tilelang, torch"),
        ("", errors.BackendUnavailable, "must be one of"),
        (f"Torch-{build}", errors.BackendUnavailable, "must be one of"),
    ]:
        with pytest.raises(error, match=match):
            op(*call, wrong)


def test_gradients_of_an_operator_that_asks_for_the_default(variant: Variant) -> None:
    inputs = qkv(variant, dtype=torch.float64, requires_grad=True)
    taken = ops.of(variant.name).admission.operands["forward"]
    rest = arguments(variant, "forward")[3 : taken.kernel]
    rest = [None if isinstance(x, torch.Tensor) else x for x in rest]
    for kernel in ("default", "torch"):
        o, *_ = operator(variant, "forward")(*inputs, *rest, kernel)
        want = variant.reference(*inputs, scale=0.5)
        assert_close(torch.autograd.grad(o.sum(), inputs), torch.autograd.grad(want.sum(), inputs))


def test_a_public_call_is_checked_once(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: Any) -> str:
        raise AssertionError("checked twice")

    inputs, state = qkv(variant, requires_grad=True), variant.init_state(2, 2)
    monkeypatch.setattr(ops.of(variant.name).admission, "kernel", again)
    variant(*inputs)[0].sum().backward()
    with torch.no_grad():
        variant(*inputs, initial_state=state)
        variant.step(*(x[:, :1] for x in inputs), state)
    with pytest.raises(AssertionError, match="checked twice"):
        operator(variant, "step")(*arguments(variant, "step"))


def test_strided_states_are_as_good_as_dense_ones(any_variant: Variant) -> None:
    """What comes out is dense, whatever went in."""
    _, start = any_variant(*qkv(any_variant, 3), output_final_state=True)
    strided = [None if x is None else x.transpose(0, 1).contiguous().transpose(0, 1) for x in start]
    if isinstance(start, based_ops.SlidingWindowState):
        lengths = torch.arange(6, dtype=torch.int32).view(2, 3).T  # of each sequence another
        start, strided[2] = start._replace(position=lengths.contiguous()), lengths
    for length in (0, 1, 7):
        inputs = qkv(any_variant, 3, length)
        want, ends = any_variant(*inputs, initial_state=start, output_final_state=True)
        got, found = any_variant(*inputs, initial_state=type(start)(*strided), output_final_state=True)
        assert_close(got, want, rtol=0, atol=0)
        for x, y in zip(leaves(found), leaves(ends), strict=True):
            assert x.is_contiguous()
            assert_close(x, y, rtol=0, atol=0)
        any_variant.step(*(x[:, :1] for x in qkv(any_variant, 3)), found)


@given(st.data())
def test_shared_memory_is_refused(data: st.DataObject) -> None:
    """Two arguments of a step begin in the same piece of memory; if one is written, that is an error."""
    variant = based_ops.get(data.draw(st.sampled_from(representatives()), "variant"))
    taken = ops.of(variant.name).admission.operands["step"]
    given = arguments(variant, "step", optional=False)
    places = [place for place in taken.places if given[place] is not None]
    first, second = sorted(data.draw(st.sets(st.sampled_from(places), min_size=2, max_size=2), "which"))
    memory, start = torch.zeros(1 << 20, dtype=F32), 1 << 18
    offset = data.draw(st.integers(-2, 2), "offset") * 16

    def put(x: torch.Tensor, at: int) -> torch.Tensor:
        piece = memory[at : at + x.numel()]
        return (piece if x.dtype == F32 else piece.view(x.dtype)).view(x.shape)

    shares = offset < given[first].numel() and -offset < given[second].numel()
    given[first], given[second] = put(given[first], start), put(given[second], start + offset)
    inputs = tuple(given[: len(taken.signature.inputs)])
    state = variant._state_type(*given[taken.written])

    def public() -> torch.Tensor:
        return variant._step(inputs, None, state, None)

    def direct() -> torch.Tensor:
        return operator(variant, "step")(*given)

    for step in (public, direct):
        if shares and taken.tensors[second].written:
            with pytest.raises(errors.StateError, match="memory that .* has too"):
                step()
        else:
            step()


def test_one_tensor_twice_is_refused_while_tracing(window: Variant) -> None:
    ring = window.init_state(1, 1)
    twice = ring._replace(v=ring.k)
    compiled = torch.compile(window.step, fullgraph=True, backend="aot_eager")
    with pytest.raises(errors.StateError, match="memory that state.k has too"):
        compiled(*qkv(window, 1, 1, 1), twice)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=2, max_size=6), st.data())
def test_overlapping_says_what_bytes_say(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    written = data.draw(st.integers(0, len(spans)))
    bytes_of = [set(range(start, start + size)) for start, size in spans]
    pairs = {
        (i, j) for i in range(len(spans)) for j in range(len(spans)) if i < j and bytes_of[i] & bytes_of[j]
    }
    wanted = {pair for pair in pairs if max(pair) >= written}
    found = overlapping([start for start, _ in spans], [size for _, size in spans], written)
    assert (found is None) == (not wanted)
    if found is not None:
        first, second = sorted(found)
        assert (first, second) in wanted


@given(st.data())
def test_pools_may_lie_in_the_gaps_of_others(data: st.DataObject) -> None:
    """Of rows of a matrix, some columns each; what bytes say, but that another distance counts as dense."""
    memory = torch.zeros(4, 12, dtype=torch.int8)
    columns = st.tuples(st.integers(0, 11), st.integers(1, 6)).filter(lambda ends: sum(ends) <= 12)
    parts = [memory[:, a : a + n] for a, n in data.draw(st.lists(columns, min_size=2, max_size=4))]
    written = data.draw(st.integers(0, len(parts)))
    wanted = False
    for later in range(written, len(parts)):
        for first in range(later):
            memory.zero_()
            parts[first].fill_(1)
            wanted = wanted or bool(parts[later].any())
    found = overlapping([x.data_ptr() for x in parts], [*map(extent, parts)], written, [*map(period, parts)])
    assert (found is not None) == wanted


def test_extent_reaches_behind_the_last_element() -> None:
    x = torch.zeros(4, 6)
    for view, size in ((x, 96), (x[:, :2], 80), (x[::2], 72), (x[:0], 0), (x[0].expand(3, 6), 24)):
        assert extent(view) == size
