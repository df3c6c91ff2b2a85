"""Calls, of several sequences too, in CUDA graphs: nothing waits for numbers on the device.

A graph is replayed with other numbers, lengths too, in the tensors that it was recorded with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import leaves, names_of, tensors_of

PLAIN = [name for name in every_kind() if hasattr(based_ops.get(name), "_ops")]
PACKED = [x for x in PLAIN if "cu_seqlens" in inspect.signature(type(based_ops.get(x)).__call__).parameters]
TOKENS, HEADS = 700, 2
LENGTHS = ([0, 700, 700, 700], [0, 1, 300, 699], [0, 0, 0, 5], [0, 233, 466, 700])
"""Of three sequences in as many tokens; some have none, or tokens of nobody behind the last."""


def named(layer: Variant, tensors: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    return {name: x for name, x in zip(names_of(layer), tensors, strict=True) if x is not None}


def drawn(layer: Variant, batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: x.cuda() for k, x in named(layer, tensors_of(layer, batch, length, dtype, HEADS)).items()}


def recorded(run: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of a call that has run before, on another stream as PyTorch wants it, and what it gives."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    return graph, found


def floating(given: dict[str, Any], state: Any) -> list[Tensor]:
    tensors = (x for x in (*given.values(), *leaves(state)) if isinstance(x, Tensor))
    return [x for x in tensors if x.is_floating_point()]


def result(layer: Variant, given: dict[str, Any], state: Any, trained: bool) -> list[Tensor]:
    """Output and final state of a call, and gradients of all that it takes."""
    o, final = layer(**given, initial_state=state, output_final_state=True)
    outputs = [o, *leaves(final)]
    if not trained:
        return outputs
    asked = [x for x in floating(given, state) if x.requires_grad]
    loss = sum(x.float().square().sum() for x in outputs if x.is_floating_point() and x.requires_grad)
    return [*(x.detach() for x in outputs), *torch.autograd.grad(loss, asked)]


def replayed(layer: Variant, given: dict[str, Any], state: Any, trained: bool, renew: Any) -> None:
    """A graph of a call, whose inputs `renew` changes between replays, against the same calls without one."""
    for x in floating(given, state):
        x.requires_grad_(trained)
    with torch.set_grad_enabled(trained):
        graph, found = recorded(lambda: result(layer, given, state, trained))
        for turn in range(4):
            with torch.no_grad():
                renew(turn)
            graph.replay()
            torch.cuda.synchronize()
            want = result(layer, given, state, trained)
            # Gradients of what PyTorch gathers are summed in any order.
            exactly = {} if trained else {"rtol": 0, "atol": 0}
            for x, y in zip(found, want, strict=True):
                assert_close(x, y, **exactly)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"batch_invariant": True}], ids=["as planned", "batch invariant"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_packed_calls_with_other_lengths(name: str, trained: bool, options: dict[str, Any]) -> None:
    layer = based_ops.get(name)
    given: dict[str, Any] = drawn(layer, 1, TOKENS, torch.bfloat16)
    offsets = torch.tensor(LENGTHS[0], dtype=torch.int32, device="cuda")
    with torch.no_grad():
        _, state = layer(**drawn(layer, 3, 40, torch.bfloat16), output_final_state=True)

    def renew(turn: int) -> None:
        offsets.copy_(torch.tensor(LENGTHS[turn], dtype=torch.int32))
        for x, new in zip(given.values(), drawn(layer, 1, TOKENS, torch.bfloat16).values(), strict=False):
            x.copy_(new)

    replayed(layer, given | {"cu_seqlens": offsets} | options, state, trained, renew)


@pytest.mark.gpu
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_dense_calls(name: str, trained: bool) -> None:
    layer = based_ops.get(name)
    given: dict[str, Any] = drawn(layer, 2, TOKENS, torch.bfloat16)
    with torch.no_grad():
        _, state = layer(**drawn(layer, 2, 100, torch.bfloat16), output_final_state=True)

    def renew(turn: int) -> None:
        _, other = layer(**drawn(layer, 2, 30 + 50 * turn, torch.bfloat16), output_final_state=True)
        for x, new in zip(leaves(state), leaves(other), strict=True):
            x.copy_(new)
        for x, new in zip(given.values(), drawn(layer, 2, TOKENS, torch.bfloat16).values(), strict=False):
            x.copy_(new)

    replayed(layer, given, state, trained, renew)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PACKED)
def test_packed_calls_do_not_wait(name: str) -> None:
    layer = based_ops.get(name)
    given: dict[str, Any] = drawn(layer, 1, TOKENS, torch.bfloat16)
    given["cu_seqlens"] = torch.tensor(LENGTHS[1], dtype=torch.int64, device="cuda")
    with torch.no_grad():
        _, state = layer(**given, output_final_state=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            layer(**given, initial_state=state, output_final_state=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# Without a GPU: on the meta device tensors have no numbers, and who looks at one fails.


def test_who_looks_fails() -> None:
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        torch.zeros(3, device="meta").tolist()
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        bool(torch.zeros(3, device="meta").any())


@pytest.mark.parametrize("of_mask", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_nobody_looks_at_lengths(name: str, begun: bool, of_mask: bool) -> None:
    layer = based_ops.get(name)
    tensors = tensors_of(layer, 3 if of_mask else 1, 40, torch.bfloat16, HEADS)
    given: dict[str, Any] = {k: x.to("meta") for k, x in named(layer, tensors).items()}
    if of_mask:
        given["attention_mask"] = torch.ones(3, 40, dtype=torch.bool, device="meta")
    else:
        given["cu_seqlens"] = torch.tensor([0, 9, 9, 40], device="meta")
    units = HEADS if layer.unit == "H" else given[layer.signature.lead.name].shape[2]
    state = layer._form.zeros(3, units, "meta", torch.bfloat16, False) if begun else None
    o, final = layer(**given, initial_state=state, output_final_state=True, backend="torch")
    assert o.device.type == "meta" and leaves(final)[0].shape[0] == 3


@pytest.mark.parametrize("name", [x for x in PACKED if based_ops.get(x).signature.packs])
def test_host_functions_do_not_look_either(name: str) -> None:
    """Those of Triton's module, whose launches are left out here."""
    pytest.importorskip("triton")
    from based_ops.support import triton

    layer = based_ops.get(name)
    module = layer._record.module("triton")
    asked = (True,) if layer.signature.final else ()
    launched: list[str] = []

    def launch(kernel: Any, *_: object) -> None:
        launched.append(kernel.__name__)

    with patch.object(module, "launch", launch), patch.object(triton, "launch", launch):
        tensors = [x.to("meta") for x in tensors_of(layer, 1, 40, torch.bfloat16, HEADS) if x is not None]
        places = torch.zeros(3, 2, dtype=torch.int32, device="meta")
        carried = [None for _ in layer.signature.carried]
        numbers = layer.signature.numbers.values()
        results = module.forward(*tensors, *numbers, *carried, *asked, places)
        o, *kept = results if isinstance(results, tuple) else (results,)
        kept = kept[: len(layer.signature.kept)]
        read = [o, *kept] if layer.signature.keeps_output else kept
        no_final = (None for _ in layer.signature.final)
        module.backward(torch.ones_like(o), *no_final, *tensors, *read, *numbers, *carried, places)
    assert launched[0] in ("plan", "poles")
    assert {"outputs", "outputs_packed", "recurrence", "walk_packed"} & {*launched}
