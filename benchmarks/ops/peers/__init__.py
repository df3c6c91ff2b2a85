"""Other libraries on the same work, one small adapter each, and which of them a line is compared with.

Where `same` is false a peer computes another layer: full softmax attention with heads as wide as our values,
which a linear attention or a window stands in for.
"""

from __future__ import annotations

from ..contender import Contender
from ..works import Work
from .causal_conv1d import CausalConv1d
from .features import Features
from .fla import FlaBased, FlaDecay, FlaDelta, FlaLinear, FlaStep
from .pytorch import CompiledStep, Conv1d, Flex, Sdpa, Varlen

LONGEST_MS = 60.0
"""Quadratic peers that would take longer on a GPU are not run."""
QUADRATIC_SHARE = 0.35
"""Of the measured rate of products: what causal quadratic kernels reach, for predicting their time."""
QUADRATIC_TRAINING = 4.0
"""Forward and backward of such a kernel, over its forward."""

ON_CUDA: tuple[Contender, ...] = (
    FlaBased("fla fused_chunk_based", "fused_chunk_based", widest=16, quadratic=False),
    FlaBased("fla parallel_based", "parallel_based", widest=128, quadratic=True),
    FlaLinear("fla chunk_linear_attn", "chunk_linear_attn"),
    FlaLinear("fla fused_chunk_linear_attn", "fused_chunk_linear_attn"),
    FlaDecay(),
    Sdpa("FlashAttention-2 (SDPA)", "FLASH_ATTENTION"),
    Sdpa("cuDNN attention (SDPA)", "CUDNN_ATTENTION"),
    Flex(),
    Varlen(),
    FlaStep(),
    CompiledStep(),
    CausalConv1d(),
    Conv1d(),
)
FEATURED: tuple[Contender, ...] = (
    Features("features by torch.compile", compiled=True, own=True),
    Features("PyTorch + fla chunk_linear_attn", compiled=False, own=False),
    Features("torch.compile + fla chunk_linear_attn", compiled=True, own=False),
    FlaDelta(),
)
"""Layers with parts, or keys of length 1, from the queries and keys on."""
ON_CPU: tuple[Contender, ...] = (Sdpa("SDPA", None),)


def peers(work: Work, device: str) -> list[Contender]:
    """The peers that a piece of work is compared with on a device."""
    if work.form == "featured":
        return [peer for peer in FEATURED if peer.takes(work)]
    every = ON_CPU if device == "cpu" else ON_CUDA
    own = work.state or work.clock == "host" or work.form != "dense" or work.kv_heads
    return [] if own else [peer for peer in every if peer.takes(work)]


def too_long(peer: Contender, work: Work, device: str, matmul_tflop_s: float) -> str | None:
    """Why a quadratic peer is not run on a long sequence; None if it is."""
    if device == "cpu":
        return None
    factor = QUADRATIC_TRAINING if work.task == "training" else 1.0
    ms = factor * peer.quadratic_flops(work) / (QUADRATIC_SHARE * matmul_tflop_s * 1e9)
    return f"not run: quadratic, predicted {ms:.0f} ms" if ms > LONGEST_MS else None
