"""PyTorch itself: full attention, windows, and the naive step under its compiler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad, scaled_dot_product_attention, silu

from ..contender import Call, Contender, Results
from ..inputs import Inputs
from ..works import Entry, Work
from .common import is_plain_convolution, is_taylor, sequence_call, taylor_features


@dataclass(frozen=True)
class Sdpa(Contender):
    """Full causal softmax attention of PyTorch, heads as wide as our values, by one of its backends."""

    by: str
    backend: str | None
    same = False
    compiles = False

    def takes(self, work: Work) -> bool:
        return work.task != "step" and (is_taylor(work) or work.spec.mixer == "sliding_window")

    def quadratic_flops(self, work: Work) -> float:
        return 2.0 * work.rows * work.length**2 * work.op.v

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        shape, lead = (work.batch, work.heads, work.length, work.op.v), inputs.leaves[0]
        q, k, v = (
            torch.randn(shape, device=lead.device, dtype=lead.dtype).requires_grad_(lead.requires_grad)
            for _ in range(3)
        )
        chosen: Callable[[], Any] = nullcontext
        if self.backend is not None:
            chosen = functools.partial(sdpa_kernel, getattr(SDPBackend, self.backend))

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with chosen():
                return scaled_dot_product_attention(q, k, v, is_causal=True)

        return sequence_call(work, inputs, (q, k, v), attend)


@dataclass(frozen=True)
class Flex(Contender):
    """FlexAttention with the block mask of the window, under `torch.compile`."""

    by = "FlexAttention"

    def takes(self, work: Work) -> bool:
        return work.task != "step" and work.spec.mixer == "sliding_window"

    def why_not(self, entry: Entry, device: str) -> str | None:
        if entry.sweep and entry.work.rows != 16:
            return "not run: compiles anew for each shape; in the sweep with B·H = 16 only"
        return None

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from torch.nn.attention.flex_attention import flex_attention

        attend = _compiled(flex_attention)
        mask = window_mask(work.spec.window, work.length, inputs.leaves[0].device)
        # FlexAttention wants heads before tokens; strided views cost it nothing.
        return sequence_call(
            work,
            inputs,
            inputs.leaves,
            lambda *x: attend(*(y.transpose(1, 2) for y in x), block_mask=mask).transpose(1, 2),
        )


def window_mask(window: int, length: int, device: torch.device) -> Any:
    """The block mask of a window, built block by block: from the mask itself it would take T × T bytes."""
    from torch.nn.attention.flex_attention import BlockMask

    block = 128
    count = -(-length // block)
    near = -(-(window - 1) // block) + 1
    rows = torch.arange(count, device=device)
    indices = (rows[:, None] - rows[None, :]).clamp(min=0)
    return BlockMask.from_kv_blocks(
        (rows + 1).clamp(max=near).to(torch.int32)[None, None],
        indices.to(torch.int32)[None, None],
        BLOCK_SIZE=block,
        mask_mod=lambda b, h, query, key: (key <= query) & (key > query - window),
        seq_lengths=(length, length),
    )


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, fullgraph=True)


@dataclass(frozen=True)
class Varlen(Contender):
    """`varlen_attn` of PyTorch, FlashAttention-2 with a window, on sequences of equal length."""

    by = "varlen_attn"
    compiles = False

    def takes(self, work: Work) -> bool:
        return work.task != "step" and work.spec.mixer == "sliding_window"

    def why_not(self, entry: Entry, device: str) -> str | None:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return "this PyTorch has no varlen_attn"
        if "window_size" not in inspect.signature(varlen_attn).parameters:
            return "this PyTorch's varlen_attn has no window_size"
        return None

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from torch.nn.attention.varlen import varlen_attn

        length = work.length
        ends = torch.arange(work.batch + 1, device=inputs.leaves[0].device, dtype=torch.int32) * length
        # (W - 1, 0) is W keys, the query's own included.
        window = (work.spec.window - 1, 0)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
            q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
            return varlen_attn(q, k, v, ends, ends, length, length, window_size=window)

        return sequence_call(work, inputs, inputs.leaves, attend)


@dataclass(frozen=True)
class CompiledStep(Contender):
    """The naive step under `torch.compile`: all 1 + D + D² rows in float32, updated in place."""

    by = "torch.compile of the naive step"

    def takes(self, work: Work) -> bool:
        return work.task == "step" and is_taylor(work)

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        q, k, v = (x[:, 0] for x in inputs.leaves)
        scale, eps = work.op.default_scale, work.spec.eps
        rows = 1 + work.op.qk + work.op.qk**2
        state = torch.randn(work.batch, work.heads, rows, work.op.v, device=q.device).abs()
        total = torch.randn(work.batch, work.heads, rows, device=q.device).abs()
        step = _compiled(naive_step)

        @torch.no_grad()
        def run() -> Results:
            return (step(q, k, v, state, total, scale, eps),)

        return run


@dataclass(frozen=True)
class Conv1d(Contender):
    """`torch.nn.functional.conv1d` on channels before tokens, a group for each, with padding on the left."""

    by = "conv1d"
    compiles = False

    def takes(self, work: Work) -> bool:
        return is_plain_convolution(work)

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            padded = pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
            y = conv1d(padded, weight.unsqueeze(1), bias, groups=weight.shape[0])
            return silu(y).transpose(1, 2)

        return sequence_call(work, inputs, inputs.leaves, convolve)


def naive_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, total: Tensor, scale: float, eps: float
) -> Tensor:
    """One token of Taylor linear attention, q [B,H,D], v [B,H,V]; updates state [B,H,F,V], total [B,H,F]."""
    phi_q, phi_k = taylor_features(q.float(), scale), taylor_features(k.float(), scale)
    state.add_(phi_k.unsqueeze(-1) * v.float().unsqueeze(-2))
    total.add_(phi_k)
    numerator = (phi_q.unsqueeze(-1) * state).sum(-2)
    denominator = (phi_q * total).sum(-1, keepdim=True) + eps
    return (numerator / denominator).to(v.dtype)
