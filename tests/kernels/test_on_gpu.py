"""What only a GPU can show: races, and offsets beyond 32 bits."""

from __future__ import annotations

import pytest
import torch

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.spec.model import HeadDims, TaylorExp
from tests.kernels import linear, window
from tests.kernels.inputs import Call
from tests.kernels.runners import LENGTHS_ON_GPU, LOW, Runner
from tests.layers import LINEAR, WINDOWS
from tests.tolerance import FORWARD, assert_close, assert_same

pytestmark = pytest.mark.gpu

BACKENDS = pytest.mark.parametrize(
    "runner", [Runner("triton", "cuda"), Runner("tilelang", "cuda")], ids=lambda r: r.id
)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
REPEATS = 20


@BACKENDS
@DTYPES
@pytest.mark.parametrize("length", LENGTHS_ON_GPU)
def test_linear_attention_repeats_bit_for_bit(runner: Runner, dtype: torch.dtype, length: int) -> None:
    spec = LINEAR[0]
    layer = linear.Layer(spec, runner.module(spec), Call(2, 3, length, dtype, "cuda", "heads_first", 1, 0.25))
    (q, k, v), do, initial = layer.qkv(), layer.output_gradient(), layer.earlier()

    def everything() -> list[torch.Tensor]:
        forward = layer.forward(q, k, v, initial)
        d_final = layer.random_like(initial, 6)
        state = type(initial)(*(x.clone() for x in initial))
        step = layer.step(q[:, :1], k[:, :1], v[:, :1], state)
        return [*forward, *layer.backward(do, d_final, q, k, v, forward, initial), step, *state]

    wanted = everything()
    for _ in range(REPEATS):
        for i, (again, once) in enumerate(zip(everything(), wanted, strict=True)):
            assert_same(f"result {i}", again, once)


@BACKENDS
@DTYPES
@pytest.mark.parametrize("length", LENGTHS_ON_GPU)
@pytest.mark.parametrize("past", [0, 15])
def test_sliding_window_repeats_bit_for_bit(
    runner: Runner, dtype: torch.dtype, length: int, past: int
) -> None:
    spec = WINDOWS[0]
    module = runner.module(spec, runner.window_forms()[-1])
    layer = window.Layer(spec, module, Call(2, 3, length, dtype, "cuda", "heads_first", 1, 0.125), past)
    (q, k, v), do = layer.qkv(), layer.output_gradient()

    def everything() -> list[torch.Tensor]:
        ring = layer.ring()
        steps = [layer.step(q[:, :1], k[:, :1], v[:, :1], ring) for _ in range(3)]
        o, lse = layer.forward(q, k, v)
        return [o, lse, *layer.backward(do, q, k, v, o, lse), *steps, *ring]

    wanted = everything()
    for _ in range(REPEATS):
        for i, (again, once) in enumerate(zip(everything(), wanted, strict=True)):
            assert_same(f"result {i}", again, once)


@BACKENDS
@DTYPES
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("token", [0, 40, 63, 64, 127, 700, 1110])
def test_values_that_are_not_finite_spoil_nothing_else(
    runner: Runner, dtype: torch.dtype, number: float, token: int
) -> None:
    """Forward and backward, in one segment and in several; a window forgets the token again."""
    call = Call(2, 3, 1111, dtype, "cuda", "dense", 1, 0.2)
    for spec in (*LINEAR[:4], LINEAR[8]):
        for form in (None, *runner.forms(dtype)):
            layer = linear.Layer(spec, runner.module(spec, form), call)
            q, k, v = (x.clone() for x in layer.qkv())
            v[1, token, 2, 3] = number
            forward = layer.forward(q, k, v)
            after = torch.zeros(call.length, dtype=torch.bool, device="cuda")
            after[token:] = True
            _assert_spoilt(forward.o, after)
            gradients = layer.backward(layer.output_gradient(), None, q, k, v, forward)
            assert gradients.v.isfinite().all() or spec.normalize
            assert gradients.q[1, :token].isfinite().all() and gradients.q[0].isfinite().all()
    for spec in WINDOWS:
        for form in runner.window_forms():
            layer = window.Layer(spec, runner.module(spec, form), call)
            q, k, v = (x.clone() for x in layer.qkv())
            v[1, token, 2, 3] = number
            o, lse = layer.forward(q, k, v)
            near = torch.zeros(call.length, dtype=torch.bool, device="cuda")
            near[token : token + spec.window] = True
            _assert_spoilt(o, near)
            dq, *_ = layer.backward(layer.output_gradient(), q, k, v, o, lse)
            assert dq[1, ~near].isfinite().all() and dq[0].isfinite().all()


def _assert_spoilt(o: torch.Tensor, tokens: torch.Tensor) -> None:
    """Column 3 of head 2 of sequence 1 is not finite at these tokens; all else is."""
    wanted = torch.zeros_like(o, dtype=torch.bool)
    wanted[1, tokens, 2, 3] = True
    assert torch.equal(~o.isfinite(), wanted)


@BACKENDS
@pytest.mark.parametrize("mixer", ["linear_attention", "sliding_window"])
def test_offsets_beyond_32_bits(runner: Runner, mixer: str) -> None:
    """More than 2**31 elements in every tensor, and again in the distance between two tokens."""
    batch, length, heads, width, wide = 2, 1030, 2, 64, 1 << 21
    # [T, H, B, D] in memory, with room between the tokens: strides of more than 2**21 elements.
    room = torch.randn(length + 1, 1, wide + heads * batch * width, dtype=torch.bfloat16, device="cuda") * 0.5
    assert room.numel() > 2**31
    x = room[1:, 0, -heads * batch * width :].view(length, heads, batch, width).permute(2, 0, 1, 3)
    assert x.stride(1) * (length - 1) > 2**31 and x.shape == (batch, length, heads, width)
    tokens = 2**31 // (heads * width) // batch + 128
    long = torch.randn(batch, tokens, heads, width, dtype=torch.bfloat16, device="cuda") * 0.5
    assert long.numel() > 2**31
    if mixer == "linear_attention":
        spec = LinearAttention("wide", TaylorExp(1), HeadDims(64, 64))
        module = runner.module(spec)

        def run(q: torch.Tensor) -> torch.Tensor:
            return module.forward(q, q, q, 0.1, None, None, False)[0]
    else:
        module = runner.module(SlidingWindow("wide", 64, HeadDims(64, 64)))

        def run(q: torch.Tensor) -> torch.Tensor:
            return module.forward(q, q, q, 0.125, None, None)[0]

    assert_same("strided", run(x), run(x.contiguous()))
    tail = 256 if mixer == "sliding_window" else None
    found = run(long)[-1:]
    wanted = run(long[-1:])
    assert_close("the last sequence", found[:, -1024:], wanted[:, -1024:], FORWARD[LOW[0]])
    if tail:
        alone = run(long[-1:, -tail:].contiguous())
        assert_close("the last window", found[:, -64:], alone[:, -64:], FORWARD[LOW[0]])
