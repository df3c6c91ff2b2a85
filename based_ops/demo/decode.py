"""Writing text token by token at constant memory, and what it costs to do without a state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .model import ByteModel

PIECE = 4096
"""Tokens that a long prompt is fed in at a time."""


@torch.no_grad()
def write(model: ByteModel, prompt: bytes, count: int, seed: int, temperature: float = 0.8) -> bytes:
    """`count` bytes that follow `prompt`, sampled one by one with `step`."""
    device = model.head.weight.device
    generator = torch.Generator().manual_seed(seed)
    logits, states = read(model, torch.frombuffer(bytearray(prompt), dtype=torch.uint8).to(device))
    written = bytearray()
    for _ in range(count):
        weights = (logits[0].float() / temperature).softmax(dim=-1).cpu()
        byte = int(torch.multinomial(weights, 1, generator=generator))
        written.append(byte)
        logits = model.step(torch.tensor([byte], device=device), states)
    return bytes(written)


@torch.no_grad()
def read(model: ByteModel, text: Tensor) -> tuple[Tensor, list[Any]]:
    """The logits [1,256] after a text [T] of any length and the states, reading it in pieces."""
    states, logits = None, None
    for part in text.split(PIECE):
        logits, states = model(part[None].long(), states, output_states=True)
    assert logits is not None and states is not None
    return logits[:, -1], states


@torch.no_grad()
def step_rate(model: ByteModel, text: Tensor, context: int, count: int) -> float:
    """Tokens a second of `step` after `context` tokens."""
    _, states = read(model, text[:context])
    tokens = text[context : context + count + 2].long()
    return _rate(lambda i: model.step(tokens[i : i + 1], states), count, tokens.device)


@torch.no_grad()
def recompute_rate(model: ByteModel, text: Tensor, context: int, count: int) -> float:
    """Tokens a second if every new token runs the whole sequence again, which needs no state."""
    return _rate(lambda i: model(text[None, : context + i].long()), count, text.device)


def _rate(run: Callable[[int], Any], count: int, device: torch.device) -> float:
    for i in range(2):
        run(i)
    _wait(device)
    start = time.perf_counter()
    for i in range(2, count + 2):
        run(i)
    _wait(device)
    return count / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
