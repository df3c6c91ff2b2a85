"""A byte-level language model of two layers: a linear attention, then a sliding window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import LinearAttention, SlidingWindowAttention
from ..variant import Variant

BYTES = 256


class Block(nn.Module):
    """A mixer of tokens and a mixer of channels, each behind a norm and beside a residual."""

    mixer: LinearAttention | SlidingWindowAttention

    def __init__(self, width: int, mixer: LinearAttention | SlidingWindowAttention) -> None:
        super().__init__()
        self.norm_mixer, self.mixer = nn.RMSNorm(width), mixer
        self.norm_channels = nn.RMSNorm(width)
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, state: Any = None, output_state: bool = False) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.norm_mixer(x), state, output_state)
        x = x + y
        return x + self.channels(self.norm_channels(x)), state

    def step(self, x: Tensor, state: Any) -> Tensor:
        x = x + self.mixer.step(self.norm_mixer(x), state)
        return x + self.channels(self.norm_channels(x))


class ByteModel(nn.Module):
    """Bytes [B,T] to logits [B,T,256] of the next byte."""

    def __init__(self, width: int, heads: int, linear: Variant | str, window: Variant | str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.near = Block(width, SlidingWindowAttention(width, heads, window))
        self.far = Block(width, LinearAttention(width, heads, linear))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        with torch.no_grad():
            # All bytes share a part, through which the rotary attention sees positions from the start.
            self.embedding.weight.normal_(std=0.5).add_(0.5 * torch.randn(width))
            for block in self.blocks:
                for projection in (block.mixer.q_proj, block.mixer.k_proj):
                    projection.weight.mul_(2)
        nn.init.zeros_(self.head.weight)  # the first guess is that all bytes are equally likely: 8 bits

    @property
    def blocks(self) -> tuple[Block, Block]:
        """The layers in order."""
        return self.near, self.far

    def forward(self, tokens: Tensor, states: list[Any] | None = None, output_states: bool = False) -> Any:
        """Logits, and with `output_states` the states after the tokens."""
        x, after = self.embedding(tokens), []
        for i, block in enumerate(self.blocks):
            x, state = block(x, None if states is None else states[i], output_states)
            after.append(state)
        logits = self.head(self.norm(x))
        return (logits, after) if output_states else logits

    def step(self, tokens: Tensor, states: list[Any]) -> Tensor:
        """Logits [B,256] after one more byte [B]; updates the states in place."""
        x = self.embedding(tokens.unsqueeze(1))
        for block, state in zip(self.blocks, states, strict=True):
            x = block.step(x, state)
        return self.head(self.norm(x)).squeeze(1)

    def loss(self, piece: Tensor) -> Tensor:
        """Mean cross-entropy, in nats a byte, of guessing each byte of [B, T + 1] from those before it."""
        return F.cross_entropy(self(piece[:, :-1]).flatten(0, 1).float(), piece[:, 1:].flatten())

    def init_states(self, batch: int) -> list[Any]:
        """The states before the first byte."""
        return [block.mixer.init_state(batch) for block in self.blocks]


def state_bytes(states: list[Any]) -> int:
    """Bytes that the tensors of the states hold."""
    return sum(x.numel() * x.element_size() for state in states for x in state if isinstance(x, torch.Tensor))
