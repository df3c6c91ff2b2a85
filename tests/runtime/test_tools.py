"""What PyTorch's tools see of operators: counted operations, selective checkpointing, deterministic mode."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from based_ops.dispatch import module_name
from based_ops.variant import Variant

from .inputs import leaves, state_of, tensors_of

PASSES = ("forward", "backward", "step")


def counted(call: Any, variant: Variant) -> dict[str, int]:
    """What the counter says of each operator of a variant."""
    with FlopCounterMode(display=False) as counter:
        call()
    found = counter.get_flop_counts()["Global"]
    names = {getattr(variant.operators, which).overloadpacket: which for which in PASSES}
    return {names[op]: count for op, count in found.items() if op in names}


def pairs(variant: Variant, length: int, past: int = 0) -> int:
    """Tokens that see each other, counted one by one."""
    seen = variant.spec.window if variant.spec.mixer == "sliding_window" else length + past
    return sum(min(seen, past + i + 1) for i in range(length))


@pytest.mark.parametrize("length", [1, 9, 300])
def test_products_are_counted(any_layer: Variant, length: int) -> None:
    batch, units = 2, 3
    inputs = [
        x if x is None else x.requires_grad_() for x in tensors_of(any_layer, batch, length, units=units)
    ]
    found = counted(
        lambda: any_layer._call(tuple(inputs), None, None, False, None)[0].sum().backward(), any_layer
    )
    mixer, rows = any_layer.spec.mixer, batch * units
    if mixer == "short_conv":
        forward, factor = 2 * any_layer.width * length, 3.0
    elif mixer == "state_space":
        forward, factor = 12 * any_layer.modes * any_layer.spec.width * length, 3.0
    elif mixer == "long_conv":
        # Of 300 tokens transforms take less than lags.
        by_fourier, factor = 15 * length * math.log2(2 * length), 3.0
        forward = any_layer.spec.width * (by_fourier if length == 300 else length * (length + 1))
    else:
        widths, factor = any_layer.qk + any_layer.v, 2.5
        forward = 2 * widths * pairs(any_layer, length)
        if mixer == "linear_attention":
            forward = min(forward, 2 * 2 * any_layer.features * any_layer.v * length)
        if mixer == "hybrid":
            near = sum(min(any_layer.window, i + 1) for i in range(length))
            of_window = any_layer.v + (any_layer.spec.window_qk or any_layer.qk)
            late = max(0, length - any_layer.window)
            through_state = 2 * 2 * any_layer.features * any_layer.v * late
            forward = 2 * of_window * near + min(forward - 2 * widths * near, through_state)
    assert found == {"forward": round(rows * forward), "backward": round(factor * rows * forward)}


def test_states_are_counted(layer: Variant) -> None:
    state, tokens = state_of(layer, 2, units=3), tensors_of(layer, 2, 1, units=3)
    step = counted(lambda: layer._step(tokens, None, state.clone(), None), layer)
    forward = counted(lambda: layer._call(tokens, None, state, True, None), layer)
    if layer.spec.mixer == "short_conv":
        one = 2 * layer.width
    elif layer.spec.mixer == "state_space":
        one = 12 * layer.modes * layer.spec.width
    elif layer.spec.mixer == "long_conv":
        one = 2 * layer.length * layer.spec.width
    elif layer.spec.mixer == "sliding_window":
        one = 2 * (layer.qk + layer.v) * layer.window
    else:
        one = 2 * 2 * layer.features * layer.v
        if layer.spec.mixer == "hybrid":
            one += 2 * ((layer.spec.window_qk or layer.qk) + layer.v) * layer.window
    entering = 2 * getattr(layer.spec, "replay", 0)  # tokens, as many as a ring holds
    assert step == {"step": 6 * one} and forward == {"forward": 6 * one * (1 + entering)}


def test_traced_calls_are_counted(layer: Variant) -> None:
    inputs = tensors_of(layer)
    want = counted(lambda: layer._call(inputs, None, None, False, None), layer)
    compiled = torch.compile(lambda *x: layer._call(x, None, None, False, None)[0], backend="aot_eager")
    assert want["forward"] and counted(lambda: compiled(*inputs), layer) == want
    meta = tuple(None if x is None else x.to("meta") for x in inputs)
    assert counted(lambda: layer._call(meta, None, None, False, "torch"), layer) == want


@pytest.mark.parametrize("first", ["import based_ops", "import torch.utils.flop_counter"])
def test_formulas_wait_for_the_counter(first: str) -> None:
    """It imports Triton, so nothing here imports it; whichever comes first, it knows the operators."""
    code = f"""
import sys
{first}
import based_ops
print("torch.utils.flop_counter" in sys.modules)
import torch.utils.flop_counter as counter
ops = [op for name in based_ops.names() for op in based_ops.get(name).operators]
print(len(ops), sum(op.overloadpacket in counter.flop_registry for op in ops))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out[0] == str("flop" in first) and out[1] == out[2] != "0"


@pytest.fixture
def calls(layer: Variant, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each pass of the torch backend has run."""
    found: Counter[str] = Counter()
    module = layer._record.module(module_name("torch", "cpu"))

    def counting(which: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            found[which] += 1
            return function(*args)

        return run

    for which in PASSES:
        monkeypatch.setattr(module, which, counting(which, getattr(module, which)))
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_selective_checkpointing_saves_what_a_policy_names(
    layer: Variant, calls: Counter[str], saved: bool, compiled: bool
) -> None:
    inputs = [x if x is None else x.requires_grad_() for x in tensors_of(layer)]
    wanted = [x for x in inputs if x is not None]

    def block(*x: Any) -> torch.Tensor:
        return layer._call(x, None, None, False, "torch")[0].sin()

    want = torch.autograd.grad(block(*inputs).sum(), wanted)
    calls.clear()
    names = [layer.operators.forward] if saved else [torch.ops.aten.mm.default]
    context = partial(create_selective_checkpoint_contexts, names)

    def run(*x: Any) -> torch.Tensor:
        return checkpoint(block, *x, use_reentrant=False, context_fn=context)

    function = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
    got = torch.autograd.grad(function(*inputs).sum(), wanted)
    assert calls == {"forward": 1 if saved else 2, "backward": 1}
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, rtol=0, atol=0)


def test_operators_by_name(any_layer: Variant) -> None:
    assert any_layer.operators._fields == PASSES
    for which, op in zip(PASSES, any_layer.operators, strict=True):
        assert op is getattr(torch.ops.based_ops, f"{any_layer.name}_{which}").default


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_deterministic_algorithms(layer: Variant, dtype: torch.dtype, deterministic: Any) -> None:
    """Every pass runs, with and without states, and gives the same bits each time."""
    inputs = tensors_of(layer, 2, 150, dtype)
    begun = state_of(layer, 2, dtype)

    def run() -> list[torch.Tensor]:
        given = [x if x is None else x.clone().requires_grad_() for x in inputs]
        parts = [x if x is None or not x.is_floating_point() else x.clone().requires_grad_() for x in begun]
        o, final = layer._call(tuple(given), None, type(begun)(*parts), True, None)
        outputs = [x for x in (o, *final) if x is not None and x.requires_grad]
        leaf = [x for x in (*given, *parts) if x is not None and x.requires_grad]
        gradients = torch.autograd.grad([x.float().square().sum() for x in outputs], leaf)
        state = final.detach().clone()
        y = layer._step(first_tokens(layer, inputs), None, state, None)
        return [o.detach(), *gradients, y, *leaves(state)]

    first = run()
    for _ in range(2):
        for x, y in zip(run(), first, strict=True):
            assert torch.equal(x, y)


def first_tokens(layer: Variant, inputs: Any) -> Any:
    """Of what has tokens."""
    pairs = zip(layer.signature.stepped, inputs, strict=True)
    return tuple([x[:, :1] if x is not None and "T" in kind.dims else x for kind, x in pairs])
