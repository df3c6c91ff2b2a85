"""The least that a step or a prompt costs: bytes moved and arithmetic done, whatever the kernels.

Every weight is read once; of an embedding that is not the head, nothing.  A step reads all of a cache or of a
window's ring and writes one token; of any other state it reads and writes all.  A prompt writes its state
once.  Arithmetic is that of products, a multiplication and an addition each two; a prompt has the logits of
its last token alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from based_ops.models import LanguageModel
from based_ops.models.attention import FullAttention
from based_ops.variant import Variant

RINGS = ("k", "v", "k_window")
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
    """Bytes of a state that a step reads and writes."""
    return sum((1 if name in RINGS else 2) * x.nbytes for name, x in _tensors(state))


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif state is not None:
        for key, part in zip(getattr(state, "_fields", [""] * len(state)), state, strict=True):
            yield from _tensors(part, key)


def mixing(model: LanguageModel, length: int, prompt: bool) -> float:
    """Operations of one sequence's mixers: for its first `length` tokens, or for the last of them alone."""
    total = 0.0
    for module in model.modules():
        if isinstance(module, FullAttention):
            pairs = length**2 / 2 if prompt else length
            total += 4.0 * pairs * module.heads * module.width
        elif isinstance(op := getattr(module, "op", None), Variant):
            rows: Any = getattr(module, "heads", None) or module.d_model
            total += rows * (op.products(length, final=True) if prompt else op.products(1, True, True))
    return total
