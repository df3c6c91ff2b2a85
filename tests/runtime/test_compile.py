"""The operators and the public functions under PyTorch's own machinery."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from based_ops.variant import Variant

from .inputs import leaves, qkv


def recompiles() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def forward_arguments(variant: Variant, requires_grad: bool = False) -> tuple[Any, ...]:
    q, k, v = qkv(variant, length=5, requires_grad=requires_grad)
    signature = variant.signature
    return q, k, v, 0.5, *(None for _ in signature.carried), *(True for _ in signature.final[:1]), "torch"


def operator(variant: Variant, which: str) -> Any:
    return getattr(torch.ops.based_ops, f"{variant.name}_{which}").default


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
def test_opcheck_forward(variant: Variant, requires_grad: bool) -> None:
    torch.library.opcheck(operator(variant, "forward"), forward_arguments(variant, requires_grad))


def test_opcheck_forward_with_state(variant: Variant) -> None:
    q, k, v = qkv(variant, length=5, requires_grad=True)
    _, state = variant(*qkv(variant, length=5), output_final_state=True)
    entered, carried = variant._enter((q, k, v), state)
    carried = (*carried, *(None for _ in variant.signature.carried[len(carried) :]))
    given = [
        x if x is None or not x.is_floating_point() else x.detach().requires_grad_()
        for x in (*entered, *carried)
    ]
    asked = [True for _ in variant.signature.final[:1]]
    arguments = (*given[:3], 0.5, *given[3:], *asked, "torch")
    torch.library.opcheck(operator(variant, "forward"), arguments)


def test_opcheck_backward(variant: Variant) -> None:
    q, k, v, *rest = forward_arguments(variant)
    o, kept, *final = operator(variant, "forward")(q, k, v, *rest)
    d_o = torch.randn_like(o)
    d_final = [torch.randn_like(x) if x.numel() else None for x in final]
    carried = [None for _ in variant.signature.carried]
    arguments = (d_o, *d_final, q, k, v, o, kept, 0.5, *carried, "torch")
    torch.library.opcheck(operator(variant, "backward"), arguments)


def test_opcheck_step(variant: Variant) -> None:
    q, k, v = qkv(variant, length=1)
    state = variant.init_state(2, 2)
    torch.library.opcheck(operator(variant, "step"), (q, k, v, 0.5, *state, "torch"))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_is_eager(variant: Variant, dynamic: bool, backend: str) -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any) -> Any:
        o, final = variant(q * 2, k, v, initial_state=state, output_final_state=True)
        return o + 1, final

    results = []
    for run in (function, torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)):
        torch.manual_seed(1)
        q, k, v = qkv(variant, requires_grad=True)
        _, state = variant(*qkv(variant, length=9), output_final_state=True)
        o, final = run(q, k, v, state)
        loss = o.square().sum() + sum(
            x.float().square().sum() for x in leaves(final) if x.is_floating_point()
        )
        results.append([o, *leaves(final), *torch.autograd.grad(loss, (q, k, v))])
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_one_graph_for_all_lengths(variant: Variant) -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return variant(q, k, v, output_final_state=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    # The first is no width of a head: Dynamo takes equal sizes of the first call for one symbol.
    for length in (19, 5, 33, 130, 2):
        inputs = qkv(variant, length=length, requires_grad=True)
        o, final = compiled(*inputs)
        assert_close(o, variant(*inputs)[0])
        o.sum().backward()
    assert recompiles() == 1


def test_automatic_dynamic_stops_at_two_graphs(variant: Variant) -> None:
    compiled = torch.compile(lambda q, k, v: variant(q, k, v)[0], fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for length in (19, 5, 33, 130, 2):
        compiled(*qkv(variant, length=length))
    assert recompiles() == 2


def test_one_graph_for_continued_sequences(variant: Variant) -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any) -> Any:
        return variant(q, k, v, initial_state=state, output_final_state=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    state = want_state = variant.init_state(2, 2)
    for length in (4, 9, 2, 17):
        piece = qkv(variant, length=length)
        o, state = compiled(*piece, state)
        want, want_state = function(*piece, want_state)
        assert_close(o, want)
    assert recompiles() == 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_step_updates_the_state(variant: Variant, backend: str) -> None:
    compiled = torch.compile(variant.step, fullgraph=True, backend=backend)
    state, want_state = variant.init_state(2, 2), variant.init_state(2, 2)
    for _ in range(3):
        q, k, v = qkv(variant, length=1)
        assert_close(compiled(q, k, v, state), variant.step(q, k, v, want_state))
    for got, want in zip(leaves(state), leaves(want_state), strict=True):
        assert_close(got, want)


def test_two_variants_share_compiled_code_without_harm(
    variant: Variant, linear: Variant, window: Variant
) -> None:
    compiled = torch.compile(lambda op, q, k, v: op(q, k, v)[0], fullgraph=True, backend="aot_eager")
    for op in (variant, linear, window):
        inputs = qkv(op)
        assert_close(compiled(op, *inputs), op(*inputs)[0])


def test_compiled_autocast(variant: Variant) -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return variant(q, k, v)[0]

    q, k, v = qkv(variant)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(q, k, v)
    assert got.dtype == torch.bfloat16
    assert_close(got, function(q, k, v))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_checkpoint(variant: Variant, compiled: bool) -> None:
    q, k, v = qkv(variant, requires_grad=True)
    (want,) = torch.autograd.grad(variant(q, k, v)[0].square().sum(), q)

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda q, k, v: variant(q, k, v)[0].square(), q, k, v, use_reentrant=False)

    run = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    (got,) = torch.autograd.grad(run(q, k, v).sum(), q)
    assert_close(got, want)


@pytest.mark.parametrize("strict", [False, True])
def test_export(variant: Variant, strict: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
            return variant(q, k, v, output_final_state=True)

    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(
        Model(), qkv(variant), dynamic_shapes=({1: length}, {1: length}, {1: length}), strict=strict
    )
    assert operator(variant, "forward") in {node.target for node in exported.graph.nodes}
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    inputs = qkv(variant, length=40)
    o, final = torch.export.load(file).module()(*inputs)
    want, want_final = variant(*inputs, output_final_state=True)
    assert_close(o, want)
    for got, expected in zip(leaves(final), leaves(want_final), strict=True):
        assert_close(got, expected)


def test_compiled_scale(linear: Variant) -> None:
    """A scale that changes between calls may be one more graph, but not one for each value."""
    compiled = torch.compile(
        lambda q, k, v, s: linear(q, k, v, scale=s)[0], fullgraph=True, backend="aot_eager"
    )
    inputs = qkv(linear)
    torch._dynamo.utils.counters.clear()
    for scale in (0.25, 0.5, 0.75, 1.25):
        assert_close(compiled(*inputs, scale), linear(*inputs, scale=scale)[0])
    assert recompiles() <= 4


def test_meta(variant: Variant) -> None:
    o, state = variant(*(x.to("meta") for x in qkv(variant)), output_final_state=True)
    assert o.device.type == "meta" and o.shape == (2, 21, 2, variant.v)
