"""The least that a step or a prompt costs: bytes moved and arithmetic done, whatever the kernels.

Every weight is read once; of an embedding that is not the head, nothing.  A step reads all of a cache or of a
ring and writes one token; of any other state it reads and writes all, but writes sums that are replayed once
in so many tokens.  A prompt writes its state
once.  Arithmetic is that of products, a multiplication and an addition each two; a prompt has the logits of
its last token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from based_ops.flops import units_of
from based_ops.layers import MultiHyena
from based_ops.mixers.linear_attention import ReplayState
from based_ops.models import LanguageModel
from based_ops.models.attention import FullAttention
from based_ops.variant import Variant

RINGS = ("k", "v", "k_window", "history")
"""Fields of states that a step reads, and of which it writes one token."""


@dataclass(frozen=True)
class Cost:
    """Bytes and floating-point operations."""

    bytes: float
    flops: float

    def limit_ms(self, copy_gb_s: float, matmul_tflop_s: float) -> float:
        """The shortest time on a device of this copy bandwidth and rate of products."""
        return 1000 * max(self.bytes / (copy_gb_s * 1e9), self.flops / (matmul_tflop_s * 1e12))


def weights(model: nn.Module, embedding: nn.Embedding, head: nn.Linear) -> int:
    """How many weights a step reads, or the logits of one token."""
    count = sum(x.numel() for x in model.parameters())  # a tied one counts once
    return count if embedding.weight is head.weight else count - embedding.weight.numel()


def carried(state: Any) -> float:
    """Bytes of a state that a step reads and writes, on average."""
    if state is None:
        return 0.0
    written = dict.fromkeys(RINGS, 0.0)
    if isinstance(state, ReplayState):
        written |= dict.fromkeys(("state", "normalizer"), 2 / state.k.shape[2])  # the ring has twice as many
    names = getattr(state, "_fields", [""] * len(state))
    return sum(
        (1 + written.get(name, 1.0)) * part.nbytes if isinstance(part, Tensor) else carried(part)
        for name, part in zip(names, state, strict=True)
    )


def mixing(model: LanguageModel, length: int, prompt: bool) -> float:
    """Operations of one sequence's mixers: for its first `length` tokens, or for the last of them alone."""
    total = 0.0
    for module in model.modules():
        if isinstance(module, FullAttention):
            pairs = length**2 / 2 if prompt else length
            total += 4.0 * pairs * module.heads * module.width
        elif isinstance(module, MultiHyena):
            total += 2.0 * module.d_model * module.width * (length if prompt else 1)
        elif isinstance(op := getattr(module, "op", None), Variant):
            each = op.products(length, final=True) if prompt else op.products(1, True, True)
            total += units_of(module) * each
    return total
