"""How fast language models read prompts and generate, beside what the device's memory allows.

Weights are drawn; tokens are the likeliest.  On a GPU a step is one CUDA graph, argmax included, for every
model alike.  `limit` is the time to read the weights once and to read and write what a step needs of the
states, at the rate of a copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from based_ops.models import LanguageModel
from based_ops.models.blocks import bytes_of, over_tensors

from .ops.measure import ceilings


@dataclass(frozen=True)
class Line:
    """One model, batch and length of prompts."""

    model: str
    batch: int
    prompt: int
    prompt_ms: float
    """Of the whole batch."""
    step_ms: float
    """Median over the tokens that follow."""
    limit_ms: float
    tokens_per_second: float
    state_mb: float
    """Of the batch, when all tokens are there."""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    models: list[str], batches: list[int], prompts: list[int], new: int, device: str
) -> Iterator[Line]:
    """A line for each model, batch and length of prompt; those that memory is too small for are left out."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rate = ceilings(device).copy_gb_s * 1e6  # bytes a millisecond
    for name in models:
        torch.manual_seed(0)
        model = LanguageModel(name, device=device, dtype=dtype).eval()
        for batch in batches:
            for prompt in prompts:
                try:
                    yield _line(model, batch, prompt, new, rate)
                except torch.OutOfMemoryError:
                    continue


@torch.no_grad()
def _line(model: LanguageModel, batch: int, prompt: int, new: int, rate: float) -> Line:
    device = model.embedding.weight.device
    ids = torch.randint(model.spec.vocabulary, (batch, prompt), device=device)
    state = model.init_state(batch, prompt + new)
    if model.packs:
        logits, state = model(ids, output_state=True)
        prompt_ms = _ms(lambda: model(ids, output_state=True), device)
    else:  # a cache is filled in place, and has room for one prompt
        start = _now(device)
        logits, _ = model(ids, state, output_state=True)
        prompt_ms = _now(device) - start
    token = logits[:, -1:].argmax(-1)
    del logits
    step = _step(model, token, state)
    times = []
    for _ in range(new):
        start = _now(device)
        step()
        times.append(_now(device) - start)
    step_ms = statistics.median(times)
    weights = sum(x.nbytes for x in model.parameters())
    held = bytes_of(state)
    carried = 2 * held if model.packs else held  # a cache is read, and one row of it written
    return Line(
        model.spec.name,
        batch,
        prompt,
        prompt_ms,
        step_ms,
        (weights + carried) / rate,
        batch / step_ms * 1e3,
        held / 1e6,
    )


def _step(model: LanguageModel, token: Tensor, state: Any) -> Callable[[], object]:
    """Makes the next token of the one before, in place."""

    def step() -> object:
        return token.copy_(model.step(token, state)[:, -1:].argmax(-1))

    if token.device.type != "cuda":
        return step
    kept = over_tensors(torch.clone, state)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    over_tensors(Tensor.copy_, state, kept)  # what warming up has changed
    return graph.replay


def _ms(run: Callable[[], object], device: torch.device) -> float:
    """The median of a few runs."""
    run()
    times = []
    for _ in range(3):
        start = _now(device)
        run()
        times.append(_now(device) - start)
    return statistics.median(times)


def _now(device: torch.device) -> float:
    """Milliseconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3
