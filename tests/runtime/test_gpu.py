"""The runtime on a CUDA device: default backends, CUDA graphs, compiled training, more than one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from based_ops import errors
from based_ops.layers.base import layer_of
from based_ops.variant import Variant

from .inputs import leaves, qkv

pytestmark = pytest.mark.gpu


def on_device(variant: Variant, **changes: Any) -> tuple[torch.Tensor, ...]:
    requires_grad = changes.pop("requires_grad", False)
    changes = {"dtype": torch.bfloat16, "length": 130} | changes
    return tuple(x.cuda().requires_grad_(requires_grad) for x in qkv(variant, **changes))


def test_one_backend_is_the_default_and_serves(variant: Variant) -> None:
    assert [status.available for status in variant.backends() if status.default] == [True]
    assert all(status.device == "cuda" for status in variant.backends())


def test_forward_and_backward(any_variant: Variant) -> None:
    q, k, v = on_device(any_variant, dtype=torch.float32, requires_grad=True)
    o, _ = any_variant(q, k, v)
    got = torch.autograd.grad(o.square().sum(), (q, k, v))
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want_o = any_variant.reference(*doubles)
    want = torch.autograd.grad(want_o.square().sum(), doubles)
    for x, y in zip((o, *got), (want_o, *want), strict=True):
        assert (x.double() - y).norm() / y.norm() < 5e-3


@pytest.mark.parametrize("length", [1, 130, 5000])
def test_replayed_calls_are_the_operators(any_variant: Variant, length: int) -> None:
    """Bit for bit, with other numbers in every call and buffers that begin as NaN."""
    forward, backward, step = (
        getattr(torch.ops.based_ops, f"{any_variant.name}_{which}")
        for which in ("forward", "backward", "step")
    )
    kernel = f"triton-{any_variant._record.build}"
    signature = any_variant.signature
    carried = [None for _ in signature.carried]
    asked, d_final = [False for _ in signature.final[:1]], [None for _ in signature.final]
    scale = any_variant.default_scale
    for _ in range(4):
        spoiled = torch.full((1 << 26,), float("nan"), device="cuda")
        del spoiled
        q, k, v = on_device(any_variant, length=length, requires_grad=True)
        o, _ = any_variant(q, k, v, backend="triton")
        d_o = torch.randn_like(o)
        got = [o, *torch.autograd.grad(o, (q, k, v), d_o)]
        with torch.no_grad():
            want_o, kept, *_ = forward(q, k, v, scale, *carried, *asked, kernel)
            want = backward(d_o, *d_final, q, k, v, want_o, kept, scale, *carried, kernel)[:3]
            got.append(any_variant(q, k, v, backend="triton")[0])
            assert all(map(torch.equal, got, [want_o, *want, want_o]))
    state, other = (any_variant.init_state(2, 2, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(4):
        token = on_device(any_variant, length=1)
        got_o = any_variant.step(*token, state, backend="triton")
        assert torch.equal(got_o, step(*token, scale, *other, kernel))
        assert all(map(torch.equal, leaves(state), leaves(other)))
    assert any_variant._replays.known


def test_mixed_devices(variant: Variant) -> None:
    q, k, v = on_device(variant)
    with pytest.raises(errors.DeviceError, match="^k: got cpu, must be on the device of q, cuda:0"):
        variant(q, k.cpu(), v)


def test_step_in_a_cuda_graph(variant: Variant) -> None:
    q, k, v = on_device(variant, length=1)
    state = variant.init_state(2, 2, device="cuda", dtype=q.dtype)
    want_state = variant.init_state(2, 2, device="cuda", dtype=q.dtype)
    spare = variant.init_state(2, 2, device="cuda", dtype=q.dtype)
    variant.step(q, k, v, spare)  # compiles the kernel
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = variant.step(q, k, v, state)
    for leaf in leaves(state):
        leaf.zero_()
    for _ in range(5):
        for old, new in zip((q, k, v), on_device(variant, length=1), strict=True):
            old.copy_(new)
        graph.replay()
        assert_close(o, variant.step(q, k, v, want_state))
    for got, want in zip(leaves(state), leaves(want_state), strict=True):
        assert_close(got, want)


def copy_of(state: Any) -> Any:
    return type(state)(*(None if part is None else part.clone() for part in state))


@pytest.mark.parametrize("static", [False, True])
def test_compiled_steps_are_cuda_graphs(
    variant: Variant, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the state is known to stay where it is; otherwise PyTorch skips them: a step writes into it."""
    from torch._dynamo.utils import counters
    from torch._inductor import cudagraph_trees

    # PyTorch keeps what it compiled, in memory and on disk, under keys that do not say whether inputs move.
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    cudagraph_trees.reset_cudagraph_trees()
    counters.clear()
    state = variant.init_state(2, 2, device="cuda", dtype=torch.bfloat16)
    want_state = copy_of(state)
    if static:
        for part in leaves(state):
            torch._dynamo.mark_static_address(part)
    addresses = [part.data_ptr() for part in leaves(state)]
    step = torch.compile(variant.step, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(6):
            token = on_device(variant, length=1)
            got = step(*token, state).clone()
            assert_close(got, variant.step(*token, want_state), rtol=0, atol=0)
    for part, other in zip(leaves(state), leaves(want_state), strict=True):
        assert_close(part, other, rtol=0, atol=0)
    assert [part.data_ptr() for part in leaves(state)] == addresses
    assert (counters["inductor"]["cudagraph_skips"] == 0) == static
    if static:
        manager = cudagraph_trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False)
        assert manager is not None and manager.new_graph_id().id == 1  # one graph was recorded


def test_compiled_layer_decodes_in_a_cuda_graph(variant: Variant) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    kind: Any = layer_of(variant)
    layer = kind(64, 2, variant, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(2, 40, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        state = layer.init_state(2)
        for part in leaves(state):
            torch._dynamo.mark_static_address(part)
        step = torch.compile(layer.step, mode="reduce-overhead", fullgraph=True)
        for start in (0, 20):  # a second prompt goes into the state that the graph knows
            want, _ = layer(x[:, start : start + 20])
            _, prompt = layer(x[:, start : start + 10], output_state=True)
            for part, new in zip(leaves(state), leaves(prompt), strict=True):
                part.copy_(new)
            for t in range(10, 20):
                got = step(x[:, start + t : start + t + 1], state).clone()
                assert_close(got, want[:, t : t + 1], rtol=5e-2, atol=2e-2)
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_step_does_not_wait_for_the_device(variant: Variant) -> None:
    q, k, v = on_device(variant, length=1)
    state = variant.init_state(2, 2, device="cuda", dtype=q.dtype)
    variant.step(q, k, v, state)
    longer = [x.repeat(1, 4, 1, 1) for x in (q, k, v)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        variant.step(q, k, v, state)
        variant(*longer, initial_state=state, output_final_state=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_layer_trains(variant: Variant, mode: str) -> None:
    kind: Any = layer_of(variant)
    layer = kind(64, 2, variant, device="cuda")
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    x = torch.randn(2, 130, 64, device="cuda")
    target = torch.randn_like(x)
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y, _ = compiled(x)
        loss = (y.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_second_device(variant: Variant) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    inputs = on_device(variant)
    want, _ = variant(*inputs)
    got, _ = variant(*(x.to("cuda:1") for x in inputs))
    assert got.device == torch.device("cuda:1")
    assert_close(got.cpu(), want.cpu())
