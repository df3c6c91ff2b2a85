"""A call that is replayed launches what the operator would, on the same tensors; and nobody is passed by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import based_ops
from based_ops import dispatch, errors, ops, replay, replayed_calls
from based_ops import variant as variant_module
from based_ops.codegen.spec.signature import MOST_TOKENS
from based_ops.variant import Variant

from .conftest import representatives
from .inputs import leaves, qkv

pytest.importorskip("triton")
from based_ops.support import triton as support  # noqa: E402

from .fake_triton import LAUNCHES, Driver, fake_device  # noqa: E402

BF16 = torch.bfloat16
MOST = 1 << 32
"""No number of a launch is as large as an address."""


@pytest.fixture(autouse=True)
def device() -> Iterator[Driver]:
    """Tensors of the CPU, on which Triton's kernels seem to run."""
    with fake_device() as fake, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "why_not", lambda *_: None)
        patch.setattr(replay, "_here", lambda tensor: fake.device == 0)
        patch.setattr(support, "_launches", {})
        patch.setenv("BASED_OPS_BACKEND", "triton")
        dispatch._kernel.cache_clear()
        for name in based_ops.names():
            patch.setattr(based_ops.get(name), "_replays", replay.Replays())
        yield fake
    dispatch._kernel.cache_clear()


@pytest.fixture
def long_ones(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every generated pass that was called."""
    seen = []

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: Any, kernel: str) -> Any:
            seen.append(kernel)
            return call(self, kernel)

        return counted

    monkeypatch.setattr(ops.Kernels, "__getitem__", counting(dict.__getitem__), raising=False)
    monkeypatch.setattr(ops.Kernels, "__missing__", counting(ops.Kernels.__missing__))
    return seen


KEPT: list[Any] = []
"""Buffers, so that no later one has the address by which an earlier one is known."""


def keeping(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*arguments: Any, **options: Any) -> Any:
        KEPT.append(x := make(*arguments, **options))
        return x

    return made


def launched(call: Callable[[], Any]) -> list[Any]:
    """What a call launches, with names for addresses: results by their places, buffers in order."""
    del LAUNCHES[:], KEPT[:]
    results = call()
    names = {x.data_ptr(): f"result {i}" for i, x in enumerate(results)}
    found = []
    for launch in LAUNCHES:
        arguments = []
        for value in launch["arguments"]:
            if isinstance(value, int) and value > MOST:
                value = names.setdefault(value, f"address {len(names)}")
            arguments.append(repr(value or 0))  # None is a null pointer
        found.append((launch["kernel"], launch["programs"], launch["stream"], arguments))
    assert found
    return found


def the_long_way(variant: Variant) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    for module in (variant_module, replayed_calls):
        patch.setattr(module, "recordable", lambda *_: False)
    patch.setattr(variant._replays, "results", lambda *_: None)
    return patch


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "a part of more": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "at an odd address": lambda x: torch.cat([x.flatten(), x.new_zeros(1)])[1:].view(x.shape),
    "not dense": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of a call, and in which state of PyTorch it happens."""
    return {
        "length": draw(st.sampled_from([1, 2, 70, 300])),
        "heads": draw(st.sampled_from([1, 2])),
        "dtype": draw(st.sampled_from([BF16, torch.float32])),
        "layout": draw(st.sampled_from(list(LAYOUTS))),
        "scale": draw(st.sampled_from([None, 0.5, 1.0, 1])),
        "trained": draw(st.booleans()),
        "autocast": draw(st.booleans()),
        "mode": draw(st.sampled_from([torch.enable_grad, torch.no_grad, torch.inference_mode])),
        "step": draw(st.booleans()),
        "indices": draw(st.booleans()),
        "begun": draw(st.booleans()),
        "final": draw(st.booleans()),
    }


def run(variant: Variant, call: dict[str, Any]) -> Callable[[], list[Tensor]]:
    """A call, which returns all that it makes: outputs, and gradients where there are any."""
    requires_grad = call["trained"] and not call["step"]
    length = min(call["length"], MOST_TOKENS) if call["step"] else call["length"]
    inputs = qkv(variant, length=length, heads=call["heads"], dtype=call["dtype"])
    q, k, v = (LAYOUTS[call["layout"]](x).requires_grad_(requires_grad) for x in inputs)
    pooled = call.get("indices", False)
    dtype = BF16 if call["autocast"] else call["dtype"]
    state = variant.init_state(5 if pooled else 2, call["heads"], dtype=dtype)
    indices = torch.tensor([3, -1], dtype=torch.int32) if pooled else None
    taken = variant._states_are_taken  # others copy them, to where no two calls put them
    states: dict[str, Any] = {"output_final_state": taken and call.get("final", False)}
    if taken and call.get("begun", False):
        states["initial_state"] = variant.init_state(2, call["heads"], dtype=dtype)

    def function() -> list[Tensor]:
        with call["mode"](), torch.autocast("cpu", dtype=BF16, enabled=call["autocast"]):
            if call["step"]:
                return [variant.step(q, k, v, state, scale=call["scale"], state_indices=indices)]
            o, final = variant(q, k, v, scale=call["scale"], **states)
            results = [o] if final is None else [o, *leaves(final)]
            if o.requires_grad:
                results += torch.autograd.grad(o, (q, k, v), torch.ones_like(o))
            return results

    return function


@given(st.sampled_from(representatives()), st.lists(calls(), min_size=2, max_size=5))
def test_a_replay_launches_what_the_operator_does(name: str, drawn: list[dict[str, Any]]) -> None:
    variant = based_ops.get(name)
    variant._replays = replay.Replays()  # type: ignore[misc]
    with pytest.MonkeyPatch.context() as kept:
        kept.setattr(Tensor, "new_empty", keeping(Tensor.new_empty))
        kept.setattr(variant, "_autocast", keeping(variant._autocast))
        kept.setattr(replay.guards, "_empty_strided_cpu", keeping(replay.guards._empty_strided_cpu))
        for call in drawn * 2:
            function = run(variant, call)
            patch = the_long_way(variant)
            want = launched(function)
            patch.undo()
            for _ in range(2):
                assert launched(function) == want


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_the_second_call_is_replayed(
    variant: Variant, long_ones: list[str], step: bool, trained: bool
) -> None:
    call = dict(length=300, heads=2, dtype=BF16, layout="dense", scale=None, autocast=False)
    function = run(variant, call | dict(mode=torch.enable_grad, step=step, trained=trained))
    function()
    assert long_ones
    long_ones.clear()
    function()
    assert not long_ones


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("begun, final", [(True, False), (False, True), (True, True)])
def test_states_that_kernels_take_are_replayed(
    long_ones: list[str], normalized: bool, begun: bool, final: bool
) -> None:
    """And the state that comes out of a replay is as another's, and a new one each time."""
    variant = based_ops.get("relu_qk64_v64" if normalized else "identity_qk64_v64")
    inputs, state = qkv(variant, length=300, heads=2, dtype=BF16), variant.init_state(2, 2, dtype=BF16)
    function = partial(variant, *inputs, initial_state=state if begun else None, output_final_state=final)
    _, first = function()
    assert long_ones
    long_ones.clear()
    _, second = function()
    assert not long_ones
    if final:
        assert type(first) is type(second) and first.variant == second.variant
        assert (second.normalizer is not None) == normalized
        for x, y in zip(leaves(first), leaves(second), strict=True):
            assert (x.shape, x.dtype, x.is_contiguous()) == (y.shape, y.dtype, True)
            assert x.data_ptr() != y.data_ptr()
    else:
        assert second is None
    if begun:
        strided = type(state)(*(x if x is None else x.mT.contiguous().mT for x in state[:1]), *state[1:])
        part = state._replace(state=state.state[:1])
        variant(*inputs, initial_state=strided, output_final_state=final)
        assert long_ones  # which is copied first
        with pytest.raises(errors.StateError):
            variant(*inputs, initial_state=part, output_final_state=final)
        with pytest.raises(errors.StateError):
            variant(*inputs, initial_state=tuple(state), output_final_state=final)


PACKED = ("taylor2_qk16_v64", "simple_gla_qk64_v64", "window64_d64", "hybrid_taylor2_qk16_v64_w64")


def packed_call(
    variant: Variant, cuts: list[int], trained: bool, dtype: torch.dtype = torch.float32, **more: Any
) -> Callable[[], list[Tensor]]:
    """A call of sequences that end at `cuts`, which returns all that it makes."""
    q, k, v = (
        x.flatten(0, 1).unsqueeze(0).requires_grad_(trained)
        for x in qkv(variant, length=cuts[-1] // 2, dtype=dtype)
    )
    options: dict[str, Any] = {"cu_seqlens": torch.tensor([0, *cuts], dtype=torch.int32)}
    if variant._decay_dims:
        options["g"] = -torch.rand(q.shape[:3])

    def function() -> list[Tensor]:
        o, _ = variant(q, k, v, **options, **more)
        return [o, *(torch.autograd.grad(o, (q, k, v), torch.ones_like(o)) if trained else ())]

    return function


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_packed_calls_are_replayed_whatever_their_lengths(
    long_ones: list[str], name: str, trained: bool
) -> None:
    """Kernels read where sequences lie.  More sequences, or more tokens, are another kind of call."""
    variant = based_ops.get(name)
    function = packed_call(variant, [100, 260, 600], trained)
    with pytest.MonkeyPatch.context() as kept:
        kept.setattr(Tensor, "new_empty", keeping(Tensor.new_empty))
        kept.setattr(replay.guards, "_empty_strided_cpu", keeping(replay.guards._empty_strided_cpu))
        patch = the_long_way(variant)
        of_operators = launched(function)
        patch.undo()
        want = launched(function)
        assert [x[:2] for x in want] == [x[:2] for x in of_operators]  # which copy where sequences lie
        for call in (function, packed_call(variant, [0, 599, 600], trained)):
            assert launched(call) == want
    long_ones.clear()
    packed_call(variant, [1, 2, 600], trained)()
    assert not long_ones
    for other in ([100, 600], [100, 200, 300, 600], [100, 260, 602]):
        packed_call(variant, other, trained)()
        assert long_ones
        long_ones.clear()


@pytest.mark.parametrize("trained", [False, True])
def test_what_was_promised_is_another_kind_of_call(
    long_ones: list[str], trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments are as long as fills a device, or always the same; neither kind is replayed for the other."""
    variant = based_ops.get("taylor2_qk16_v64")
    monkeypatch.setattr(variant._record.module("triton"), "on_warpgroups", lambda *_: True)

    def programs(call: Callable[[], Any]) -> dict[str, int]:
        """Of each kernel that goes through segments."""
        launches = [(launch[0].src.fn.__name__, launch[1]) for launch in launched(call)]
        return {name: count for name, count in launches if name.endswith("_warpgroups")}

    calls = [
        packed_call(variant, [100, 260, 600], trained, BF16, batch_invariant=promised)
        for promised in (False, True)
    ]
    patch = the_long_way(variant)
    plain, promised = map(programs, calls)
    patch.undo()
    assert len(plain) == (5 if trained else 2) and plain.keys() == promised.keys()
    assert all(plain[name] * 4 == promised[name] * 6 for name in plain)  # 600 tokens by 256, and by 2048
    for turn in range(3):
        long_ones.clear()
        assert [programs(call) for call in calls] == [plain, promised]
        assert bool(long_ones) == (turn == 0)


@pytest.mark.parametrize("begun, final", [(True, False), (False, True), (True, True)])
def test_packed_calls_with_states_are_replayed(long_ones: list[str], begun: bool, final: bool) -> None:
    variant = based_ops.get("taylor2_qk16_v64")
    q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in qkv(variant, length=300, dtype=BF16))
    states: dict[str, Any] = {"output_final_state": final}
    if begun:
        states["initial_state"] = variant.init_state(2, q.shape[2], dtype=BF16)
    for stop in (100, 200):
        long_ones.clear()
        offsets = torch.tensor([0, stop, 600], dtype=torch.int32)
        o, after = variant(q, k, v, cu_seqlens=offsets, **states)
        assert o.shape == v.shape and (after is not None) == final
        if after is not None:
            assert after.state.shape[0] == 2 and after.variant == variant.name
    assert not long_ones


@pytest.mark.parametrize("name", ["identity_qk64_v64", "silu_qk64_v64", "square_qk64_v64"])
def test_what_a_layer_lacks_is_no_reason(name: str, long_ones: list[str]) -> None:
    """A layer that does not divide keeps no sums of weights: an empty tensor, which no kernel fills."""
    call = dict(length=300, heads=2, dtype=BF16, layout="dense", scale=None, autocast=False)
    function = run(based_ops.get(name), call | dict(mode=torch.enable_grad, step=False, trained=True))
    function()
    long_ones.clear()
    function()
    assert not long_ones


def test_buffers_lie_apart(linear: Variant) -> None:
    inputs = qkv(linear, length=5000, dtype=BF16)
    linear(*inputs)
    linear(*inputs)
    (found,) = (entry for known in linear._replays.known.values() for entry in known)
    assert len(found._parts) > 2 and found._parts[0] == 0
    assert all(start % replay.LINE == 0 for start in found._parts)
    del LAUNCHES[:]
    linear(*inputs)
    numbers = {value for launch in LAUNCHES for value in launch["arguments"] if isinstance(value, int)}
    addresses = {value for value in numbers if value > MOST}
    assert len(addresses) == 3 + 1 + len(found._parts)  # q, k, v, o


def test_what_is_wrong_is_said_as_ever(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=BF16)
    first = [x[:, :1] for x in (q, k, v)]
    state = variant.init_state(2, 2, dtype=BF16)
    part = state._fields[0]
    for _ in range(2):
        variant(q, k, v, scale=1.0)
        variant.step(*first, state, scale=1.0)
    whole, step = partial(variant, scale=1.0), partial(variant.step, *first, scale=1.0)
    for error, call in [
        (errors.ArgumentTypeError, partial(whole, q, k, v, scale=True)),
        (errors.ArgumentTypeError, partial(whole, q, k, v, scale=[1.0])),
        (errors.ArgumentTypeError, partial(whole, q, k, v, scale="1")),
        (errors.BackendUnavailable, partial(whole, q, k, v, backend="none")),
        (errors.ArgumentTypeError, partial(whole, None, k, v)),
        (errors.ArgumentTypeError, partial(whole, q, k, None)),
        (errors.DtypeError, partial(whole, q, k, v.float())),
        (errors.ShapeError, partial(whole, q, k[:, :-1], v)),
        (errors.ShapeError, partial(whole, q, k, v[..., 1:])),
        (errors.ShapeError, partial(variant.step, q, k, v, state, scale=1.0)),
        (errors.ArgumentTypeError, partial(step, state, scale=True)),
        (errors.StateError, partial(step, None)),
        (errors.StateError, partial(step, tuple(state))),
        (errors.StateError, partial(step, state._replace(**{part: None}))),
        (errors.StateError, partial(step, state._replace(**{part: getattr(state, part)[:1]}))),
    ]:
        with pytest.raises(error):
            call()


def test_another_backend_is_asked_for(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = qkv(variant)
    for _ in range(2):
        variant(*inputs)
    want = variant.reference(*inputs)
    torch.testing.assert_close(variant(*inputs, backend="torch")[0], want)
    monkeypatch.setenv("BASED_OPS_BACKEND", "torch")
    torch.testing.assert_close(variant(*inputs)[0], want)


class Seen(TorchDispatchMode):
    """Notes operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Asked(TorchFunctionMode):
    """Notes functions."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def test_who_watches_sees_the_operator(variant: Variant) -> None:
    inputs = qkv(variant, dtype=BF16)
    name = f"based_ops::{variant.name}_forward"
    for _ in range(2):
        variant(*inputs)
    with Seen() as seen:
        variant(*inputs)
    assert name in seen.names
    with torch.profiler.profile() as profile:
        variant(*inputs)
    assert name in {event.key for event in profile.key_averages()}
    with Asked() as asked:
        variant(*inputs)
    assert any(variant.name in called for called in asked.names)
    variant(*inputs)


def test_hooks_of_triton_see_launches(variant: Variant) -> None:
    inputs = qkv(variant, dtype=BF16)
    for _ in range(2):
        variant(*inputs)
    del LAUNCHES[:]
    runtime = support.triton.knobs.runtime
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(runtime.launch_enter_hook, "calls"):
            patch.setattr(runtime.launch_enter_hook, "calls", [lambda _: None])
        else:
            patch.setattr(runtime, "launch_enter_hook", lambda _: None)
        variant(*inputs)
    assert LAUNCHES and all(launch["hooks"] for launch in LAUNCHES)


def test_transforms_take_the_long_way(variant: Variant, long_ones: list[str]) -> None:
    q, k, v = qkv(variant, dtype=BF16)
    for _ in range(2):
        variant(q, k, v)
    long_ones.clear()
    torch.vmap(lambda x: variant(q, k, x)[0])(torch.stack([v, v]))
    assert long_ones


def test_on_another_device_than_the_current_one(
    variant: Variant, device: Driver, long_ones: list[str]
) -> None:
    inputs = qkv(variant, dtype=BF16)
    for _ in range(2):
        variant(*inputs)
    long_ones.clear()
    device.device = 1
    variant(*inputs)
    assert long_ones and LAUNCHES[-1]["stream"] == 101


def test_a_step_changes_its_state_and_autograd_knows(variant: Variant) -> None:
    first = qkv(variant, length=1, dtype=BF16)
    state = variant.init_state(2, 2, dtype=BF16)
    for count in range(1, 4):
        variant.step(*first, state)
        assert [part._version for part in leaves(state)] == [count] * len(leaves(state))


def test_shared_memory_is_never_replayed(variant: Variant, long_ones: list[str]) -> None:
    q, k, v = qkv(variant, length=1, dtype=BF16)
    state = variant.init_state(2, 2, dtype=BF16)
    for _ in range(2):
        variant.step(q, k, v, state)
    long_ones.clear()
    inside = state[0].flatten().view(BF16)[: q.numel()].view(q.shape)
    for shared in ((inside, k, v), (q, inside, v)):
        with pytest.raises(errors.StateError, match=f"^state.{state._fields[0]}: got memory that [qk] has"):
            variant.step(*shared, state)
    variant.step(k, q, v, state)  # of other addresses, but apart
    assert not long_ones


def test_second_derivatives_are_refused(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=BF16, requires_grad=True)
    for _ in range(2):
        o, _ = variant(q, k, v)
        torch.autograd.grad(o.sum(), (q, k, v))
    o, _ = variant(q, k, v)
    (dq,) = torch.autograd.grad(o.float().square().sum(), q, create_graph=True)
    with pytest.raises(errors.GradientError, match="no derivative"):
        dq.float().square().sum().backward()


def test_a_gradient_is_never_lost(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=BF16)
    for requires_grad in (False, True, False, True):
        q.requires_grad_(requires_grad)
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                assert variant(q, k, v)[0].requires_grad == (requires_grad and mode is torch.enable_grad)


def test_what_is_cast_for_every_call_is_remembered_once(variant: Variant) -> None:
    inputs = qkv(variant)
    with torch.autocast("cpu", dtype=BF16):
        for _ in range(5):
            variant(*inputs)
    assert [len(known) for known in variant._replays.known.values()] == [1]


def test_memory_is_bounded(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "KEPT", 3)
    monkeypatch.setattr(replay, "KINDS", 2)
    for length in range(1, 8):
        for layout in LAYOUTS.values():
            variant(*map(layout, qkv(variant, length=length, dtype=BF16)))
        assert len(variant._replays.known) <= 3
        assert max(map(len, variant._replays.known.values())) == 2


def test_what_is_forgotten_is_recorded_anew(variant: Variant, long_ones: list[str]) -> None:
    inputs = qkv(variant, dtype=BF16)
    for _ in range(2):
        variant(*inputs)
    long_ones.clear()
    variant._replays.forget()
    variant(*inputs)
    assert long_ones


def test_only_launches_are_replayed(long_ones: list[str]) -> None:
    def no_launch(x: Tensor) -> list[Tensor]:
        return [x + 1]

    replays, x = replay.Replays(), torch.zeros(4)
    for _ in range(2):
        assert replays.results(("key",), x) is None
        (result,) = replays.first(("key",), no_launch, (x,))
        torch.testing.assert_close(result, torch.ones(4))
