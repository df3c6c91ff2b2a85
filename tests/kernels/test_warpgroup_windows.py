"""Windows on Hopper's warpgroups, as far as they can be tested without one: see `gluon.py` for how."""

from __future__ import annotations

from math import lcm
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops.aot import compile_triton
from based_ops.codegen import pipeline
from based_ops.codegen.ir.kernels import ForeignKernel
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.names import on_warpgroups
from based_ops.codegen.schedule.foreign import LONGEST_WINDOW
from based_ops.codegen.spec.model import HeadDims
from tests.kernels.inputs import Call
from tests.kernels.runners import interpreting
from tests.kernels.warpgroups import fails_without_any_wait, passes
from tests.kernels.window import Layer, expected
from tests.layers import build
from tests.tolerance import BACKWARD, FORWARD, assert_close

DTYPES = (torch.bfloat16, torch.float16)
DIMS = {1: (8, 16), 16: (64, 64), 63: (40, 64), 64: (64, 64), 65: (64, 24), 128: (64, 64)}
LAYERS = {w: SlidingWindow(f"window{w}", w, HeadDims(*dims)) for w, dims in DIMS.items()}
BACKWARDS = [window for window in LAYERS if window <= LONGEST_WINDOW["gradients"]]


def layer(window: int, length: int, dtype: torch.dtype, past: int = 0) -> Layer:
    spec = LAYERS[window]
    call = Call(2, 2, length, dtype, "cpu", "dense", seed=length, scale=0.2)
    return Layer(spec, build(spec, "triton"), call, past)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "segments"), [(1, 1), (64, 1), (65, 2), (333, 1), (333, 3)])
@pytest.mark.parametrize("past", [0, 7, 130])
@pytest.mark.parametrize("window", LAYERS)
def test_forward(window: int, past: int, length: int, segments: int, dtype: torch.dtype) -> None:
    one = layer(window, length, dtype, past)
    q, k, v = one.qkv()
    first = one.first() if past else None
    forward, _ = passes(one.module, segments)
    o, lse = forward(q, k, v, one.call.scale, first, None)
    wanted, wanted_lse = expected(window, one.call.scale, q, k, v, first)
    assert_close("o", o, wanted, FORWARD[dtype])
    assert_close("lse", lse, wanted_lse, FORWARD[dtype], floor=torch.ones_like(wanted_lse))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "segments"), [(1, 1), (64, 1), (65, 2), (128, 2), (333, 1), (333, 3)])
@pytest.mark.parametrize("padded", [False, True], ids=["all keys", "some keys"])
@pytest.mark.parametrize("window", BACKWARDS)
def test_gradients(window: int, padded: bool, length: int, segments: int, dtype: torch.dtype) -> None:
    one = layer(window, length, dtype)
    q, k, v = one.qkv()
    do = one.output_gradient()
    first = torch.zeros(2, 2, dtype=torch.int32) if padded else None
    forward, backward = passes(one.module, segments)
    o, lse = forward(q, k, v, one.call.scale, first, None)
    found = backward(do, q, k, v, o, lse, one.call.scale, first, None)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(expected(window, one.call.scale, *leaves, first)[0], leaves, do.double())
    size = one.call.scale * float(do.double().square().mean().sqrt()) * v.shape[-1] ** 0.5 / 8
    for name, got, want in zip("qkv", found, wanted, strict=True):
        floor = torch.full_like(want, 0.0 if name == "v" else size)
        assert_close(f"gradient of {name}", got, want, BACKWARD[dtype], floor)


GROUPS = [(4, 2, 2), (6, 2, 3), (1, 2, 2), (2, 1, 4)]
"""Heads of q, k and v."""


@pytest.mark.parametrize("heads", GROUPS, ids=str)
@pytest.mark.parametrize("past", [0, 70])
@pytest.mark.parametrize("window", LAYERS)
def test_heads_in_groups(window: int, past: int, heads: tuple[int, int, int]) -> None:
    spec, every = LAYERS[window], lcm(*heads)
    q, k, v = in_groups(spec, heads, 200, past)
    first = torch.randint(0, past + 1, (2, lcm(*heads[1:])), dtype=torch.int32) if past else None
    o, lse = passes(build(spec, "triton"), 2)[0](q, k, v, 0.2, first, None)
    of_each = None if first is None else repeated(first, 1, every)
    wanted, wanted_lse = expected(window, 0.2, *(repeated(x, 2, every) for x in (q, k, v)), of_each)
    assert_close("o", o, wanted, FORWARD[torch.bfloat16])
    assert_close("lse", lse, wanted_lse, FORWARD[torch.bfloat16], floor=torch.ones_like(wanted_lse))


@pytest.mark.parametrize("heads", GROUPS, ids=str)
@pytest.mark.parametrize("window", BACKWARDS)
def test_gradients_of_groups(window: int, heads: tuple[int, int, int]) -> None:
    spec, every = LAYERS[window], lcm(*heads)
    q, k, v = in_groups(spec, heads, 200)
    forward, backward = passes(build(spec, "triton"), 2, spec)
    o, lse = forward(q, k, v, 0.2, None, None)
    do = torch.randn(o.shape).to(o.dtype)
    found = backward(do, q, k, v, o, lse, 0.2, None, None)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    out = expected(window, 0.2, *(repeated(x, 2, every) for x in leaves))[0]
    wanted = torch.autograd.grad(out, leaves, do.double())
    size = 0.2 * float(do.double().square().mean().sqrt()) * v.shape[-1] ** 0.5 / 8
    for name, got, want in zip("qkv", found, wanted, strict=True):
        floor = torch.full_like(want, 0.0 if name == "v" else size)
        assert_close(f"gradient of {name}", got, want, BACKWARD[torch.bfloat16], floor)


@pytest.mark.parametrize("window", LAYERS)
@given(data=st.data())
@settings(max_examples=8)
def test_packed_sequences(window: int, data: st.DataObject) -> None:
    """Each as if it were alone, whatever else is there; tokens of none have outputs and gradients of 0."""
    heads = data.draw(st.sampled_from([(2, 2, 2), (1, 2, 2), (4, 2, 1)]), "heads")
    length, dtype = data.draw(st.integers(1, 400), "length"), data.draw(st.sampled_from(DTYPES), "dtype")
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    spec, every, of_states = LAYERS[window], lcm(*heads), lcm(*heads[1:])
    module = build(spec, "triton")
    q, k, v = (x[:1].to(dtype) for x in in_groups(spec, heads, length))
    nobodys = torch.ones(length, dtype=torch.bool)
    for start, stop in edges:
        nobodys[start:stop] = False
    spoilt = data.draw(st.sampled_from((None, *range(len(edges)))), "which holds what is not finite")
    for x in (q, k, v):
        x[:, nobodys] = float("nan")
        if spoilt is not None:
            x[:, slice(*edges[spoilt])] = float("inf")
    kept = [data.draw(st.integers(0, min(window - 1, b - a)), "keys that do not exist") for a, b in edges]
    begun = data.draw(st.booleans(), "after states")
    first = torch.tensor(kept, dtype=torch.int32)[:, None].repeat(1, of_states) if begun else None
    do = torch.randn(1, length, every, v.shape[3]).to(dtype)
    sequences = torch.tensor(edges)
    forward, backward = passes(module, 2, spec)
    o, lse = forward(q, k, v, 0.2, first, sequences)
    found = (o, *backward(do, q, k, v, o, lse, 0.2, first, sequences)) if window in BACKWARDS else (o,)
    for got in found:
        assert not got[:, nobodys].any(), "tokens of no sequence"
    for i, (start, stop) in enumerate(edges):
        absent = kept[i] if begun else 0
        if start + absent >= stop or i == spoilt:
            continue
        own = slice(start + absent, stop)  # the rest is not there
        leaves = [repeated(x[:, own], 2, every).double().requires_grad_() for x in (q, k, v)]
        wanted, wanted_lse = expected(window, 0.2, *leaves)
        assert_close("o", o[:, own], wanted, FORWARD[dtype])
        floor = torch.ones_like(wanted_lse)
        assert_close("lse", lse[:, :, own], wanted_lse, FORWARD[dtype], floor=floor)
        if absent or window not in BACKWARDS:
            continue
        size = 0.2 * float(do.double().square().mean().sqrt()) * v.shape[-1] ** 0.5 / 8
        owed = torch.autograd.grad(wanted, leaves, do[:, own].double())
        for name, got, want, count in zip("qkv", found[1:], owed, heads, strict=True):
            summed = want.unflatten(2, (count, -1)).sum(3)
            floor = torch.full_like(summed, 0.0 if name == "v" else size)
            assert_close(f"gradient of {name}", got[:, own], summed, BACKWARD[dtype], floor)


def in_groups(
    spec: SlidingWindow, heads: tuple[int, int, int], length: int, past: int = 0
) -> tuple[torch.Tensor, ...]:
    """Random q, k and v; keys reach `past` tokens further back."""
    torch.manual_seed(length)
    widths = (spec.head_dims.qk, spec.head_dims.qk, spec.head_dims.v)
    lengths = (length, length + past, length + past)
    sizes = zip(lengths, heads, widths, strict=True)
    return tuple((torch.randn(2, t, h, d) * 0.5).bfloat16() for t, h, d in sizes)


def repeated(x: torch.Tensor, axis: int, heads: int) -> torch.Tensor:
    """Heads of groups as often as they are read."""
    return x.repeat_interleave(heads // x.shape[axis], axis)


@pytest.mark.parametrize(("window", "program"), [(64, "outputs"), (128, "outputs"), (64, "gradients")])
def test_no_wait_is_forgotten_and_none_too_many(window: int, program: str) -> None:
    def compute(module: ModuleType) -> None:
        one = layer(window, 320, torch.bfloat16)
        q, k, v = one.qkv()
        forward, backward = passes(module, 1)
        o, lse = forward(q, k, v, one.call.scale, None, None)
        found = backward(o, q, k, v, o, lse, one.call.scale, None, None) if program == "gradients" else ()
        for tensor in (o, lse, *found):
            assert tensor.isfinite().all()

    module = build(LAYERS[window], "triton")
    fails_without_any_wait(module, on_warpgroups(program), 5, compute)


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [1, 65])
def test_rows_of_16_bytes_suffice(window: int, dtype: torch.dtype) -> None:
    """Kernels compile with strides of which Triton knows nothing."""
    spec = LAYERS[window]
    module = build(spec, "triton")
    for program in pipeline.kernels(pipeline.lower(spec), "triton"):
        if isinstance(program, ForeignKernel):
            compile_triton(spec, module, program.name, dtype, strides_of_16=False, PADDED=False)
