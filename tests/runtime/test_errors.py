"""Bad calls: a typed error names the argument, what it got and what it must be, before any kernel runs."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

import based_ops
from based_ops import errors
from based_ops.state import LinearAttentionState, SlidingWindowState
from based_ops.variant import Variant

from .inputs import qkv

Call = Callable[[Variant], Any]


def call(variant: Variant, **changes: Any) -> Any:
    """A good call but for the changes: values, or functions of the good value."""
    arguments: dict[str, Any] = dict(zip("qkv", qkv(variant), strict=True))
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if name in arguments else change
    return variant(**arguments)


BAD: dict[str, tuple[type[errors.BasedOpsError], str, Call]] = {
    "q has three dimensions": (
        errors.ShapeError,
        r"^q: got \(21, 2, ",
        lambda op: call(op, q=lambda q: q[0]),
    ),
    "q is too narrow": (
        errors.ShapeError,
        r"^q: got .* must be of shape \[B, T, H, \d+\] for ",
        lambda op: call(op, q=lambda q: q[..., :-1]),
    ),
    "v is too wide": (errors.ShapeError, r"^v: got ", lambda op: call(op, v=lambda v: torch.cat([v, v], -1))),
    "k is shorter": (
        errors.ShapeError,
        r"^k: got .* must be of q's batch and length",
        lambda op: call(op, k=lambda k: k[:, 1:]),
    ),
    "v has no heads": (
        errors.ShapeError,
        r"^v: got 0 heads, must be a number that divides the largest, 2, such as 1",
        lambda op: call(op, v=lambda v: v[:, :, :0]),
    ),
    "dtypes differ": (
        errors.DtypeError,
        r"^k: got torch.float16, must be of q's dtype",
        lambda op: call(op, k=lambda k: k.half()),
    ),
    "dtype is not served": (
        errors.DtypeError,
        r"^q: got torch.int64, must be one of ",
        lambda op: call(op, q=lambda q: q.long()),
    ),
    "devices differ": (
        errors.DeviceError,
        r"^v: got meta, must be on the device of q, cpu",
        lambda op: call(op, v=lambda v: v.to("meta")),
    ),
    "q is no tensor": (
        errors.ArgumentTypeError,
        r"^q: got list, must be a torch.Tensor",
        lambda op: call(op, q=lambda q: [1.0]),
    ),
    "scale is a bool": (errors.ArgumentTypeError, r"^scale: got bool", lambda op: call(op, scale=True)),
    "state is a tuple": (
        errors.StateError,
        r"^initial_state: got tuple, must be a ",
        lambda op: call(op, initial_state=(torch.zeros(1), torch.zeros(1))),
    ),
    "state of another batch": (
        errors.StateError,
        r"^initial_state\.\w+: got shape \(3, ",
        lambda op: call(op, initial_state=op.init_state(3, 2)),
    ),
    "state of another dtype": (
        errors.StateError,
        r"^initial_state\.\w+: got torch.float64",
        lambda op: call(op, initial_state=op.init_state(2, 2, dtype=torch.float64)),
    ),
    "state on another device": (
        errors.DeviceError,
        r"^initial_state\.\w+: got meta",
        lambda op: call(op, initial_state=op.init_state(2, 2, device="meta")),
    ),
    "backend is unknown": (
        errors.BackendUnavailable,
        r"^backend: got 'cuda', must be one of",
        lambda op: call(op, backend="cuda"),
    ),
    "step of too many tokens": (
        errors.ShapeError,
        r"^q: got 17 tokens in .*, must be of up to 16 tokens: .* call with `initial_state`",
        lambda op: op.step(*qkv(op, length=17), op.init_state(2, 2)),
    ),
}


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr("based_ops.operators.launch", refuse)


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(variant: Variant, case: str, no_kernel: None) -> None:
    error, text, bad = BAD[case]
    with pytest.raises(error, match=text):
        bad(variant)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", BAD)
def test_bad_calls_while_tracing(linear: Variant, case: str, dynamic: bool, no_kernel: None) -> None:
    error, text, bad = BAD[case]
    with pytest.raises(error, match=text):
        torch.compile(bad, fullgraph=True, dynamic=dynamic, backend="eager")(linear)


def test_symbolic_sizes_have_numbers_in_messages(window: Variant) -> None:
    compiled = torch.compile(
        lambda q, k, v: window(q, k, v)[0], fullgraph=True, dynamic=True, backend="eager"
    )
    q, k, v = qkv(window)
    with pytest.raises(errors.ShapeError, match=r"^k: got \(2, 20, 2, \d+\), .* \[2, 21\]"):
        compiled(q, k[:, 1:], v)


def test_without_fullgraph_the_error_is_the_same(linear: Variant) -> None:
    compiled = torch.compile(lambda q, k, v: linear(q, k, v)[0], backend="eager")
    q, k, v = qkv(linear)
    with pytest.raises(errors.ShapeError, match=r"^k: got"):
        compiled(q, k[:, 1:], v)


def test_states_of_the_other_mixer(linear: Variant, window: Variant) -> None:
    with pytest.raises(errors.StateError, match="got SlidingWindowState, must be a LinearAttentionState"):
        call(linear, initial_state=window.init_state(2, 2))
    with pytest.raises(errors.StateError, match="got LinearAttentionState, must be a SlidingWindowState"):
        call(window, initial_state=linear.init_state(2, 2))


def test_state_without_its_normalizer(linear: Variant) -> None:
    state = LinearAttentionState(linear.init_state(2, 2).state, None)
    with pytest.raises(errors.StateError, match=r"^initial_state\.normalizer: got None, must be a tensor"):
        call(linear, initial_state=state)


def test_step_needs_contiguous_states(window: Variant) -> None:
    k, v, position = window.init_state(2, 2)
    state = SlidingWindowState(k.mT.contiguous().mT, v, position)
    with pytest.raises(errors.StateError, match=r"^state\.k: got a tensor that is not contiguous"):
        window.step(*qkv(window, length=1), state)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_step_is_not_differentiable(variant: Variant, compiled: bool) -> None:
    step = torch.compile(variant.step, fullgraph=True, backend="eager") if compiled else variant.step
    with pytest.raises(errors.GradientError, match=r"^q: .* torch.no_grad\(\)"):
        step(*qkv(variant, length=1, requires_grad=True), variant.init_state(2, 2))


def test_no_second_derivative(variant: Variant) -> None:
    q, k, v = qkv(variant, requires_grad=True)
    (dq,) = torch.autograd.grad(variant(q, k, v)[0].square().sum(), q, create_graph=True)
    with pytest.raises(errors.GradientError, match="second derivatives"):
        dq.sum().backward()


def test_float64_is_for_torch_alone(linear: Variant) -> None:
    with pytest.raises(errors.BackendUnavailable, match="float64 is computed by the torch backend only"):
        linear(*qkv(linear, dtype=torch.float64), backend="triton")


def test_environment_names_the_backend(linear: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASED_OPS_BACKEND", "fast")
    with pytest.raises(errors.BackendUnavailable, match="^BASED_OPS_BACKEND: got 'fast', must be one of"):
        call(linear)
    monkeypatch.setenv("BASED_OPS_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        errors.BackendUnavailable, match="^BASED_OPS_BACKEND: got 'triton', which cannot serve"
    ):
        call(linear)
    call(linear, backend="torch")
    monkeypatch.setenv("BASED_OPS_BACKEND", "torch")
    call(linear)


def test_backends_say_why_not(linear: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    status = {status.name: status for status in linear.backends("cpu")}
    assert list(status) == ["triton", "tilelang", "torch"]
    assert status["torch"].available and status["torch"].default and status["torch"].reason is None
    assert not status["triton"].available and "not available: " in str(status["triton"])


def test_unknown_name_says_what_is_near(linear: Variant) -> None:
    with pytest.raises(errors.UnknownVariant, match=f"did you mean .*{linear.name}"):
        based_ops.get(linear.name.replace("_", "-"))
    with pytest.raises(LookupError, match="known are "):
        based_ops.get("?")


def test_errors_pickle() -> None:
    error = errors.ShapeError("q: got this, must be that")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_to_do_next_is_of_the_class_or_of_the_place(compiled: bool) -> None:
    op = based_ops.get("pos_elu_qk64_v64")
    x, state = torch.zeros(1, 17, 2, 64), op.init_state(1, 2)

    def raised(function: Any, *arguments: Any) -> errors.BasedOpsError:
        called = torch.compile(function, backend="eager", fullgraph=True) if compiled else function
        with pytest.raises(errors.ShapeError) as found:
            called(*arguments)
        return found.value

    wide = raised(lambda x: op(x[..., :3], x, x), x)
    assert wide.next_step == errors.ShapeError.remedy
    long = raised(lambda x, state: op.step(x, x, x, state), x, state)
    assert "initial_state=state" in long.next_step
    assert long.__notes__ == [f"next: {long.next_step}"]


def test_what_to_do_next_survives_pickling() -> None:
    error = errors.StateError("state: got one").then("make another")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.next_step) == ("state: got one", "make another")
    if sys.version_info >= (3, 11):
        assert "next: make another" in "".join(traceback.format_exception(again))
