"""What is measured: points in an order in which a run that is cut short has the most telling ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .hub import FLA

TASKS = ("generate", "prefill")
LARGEST = 0
"""As a batch: the largest that fits."""
WAYS = ("eager", "blocks", "graph", "graph, blocks", "graph, whole", "graph, cudnn")
"""As PyTorch runs it, or each block compiled; in a CUDA graph; all compiled as one; attention by cuDNN."""

OURS, REPLAY, BASELINE, LLAMA = "based-1b", "based-replay-1b", "transformer-1b", "llama-1b"
PEERS = ("gla-1b", "gated-deltanet-1b")
STEP_WAYS, PROMPT_WAYS = ("graph", "graph, blocks"), ("eager", "graph", "graph, blocks")
FLA_WAYS = ("eager", "graph")
"""Their kernels choose by what a compiler does not know, so that blocks of them come apart."""


@dataclass(frozen=True)
class Point:
    """One model, batch and length of prompts, in one way; `new` tokens follow where it generates."""

    task: str
    model: str
    batch: int
    prompt: int
    new: int
    way: str

    def __str__(self) -> str:
        batch = f"B{self.batch}" if self.batch else "largest B"
        return f"{self.model} {self.task} {batch} prompt {self.prompt} | {self.way}"


Shape = tuple[int, int]
"""A batch and a length of prompts."""


def chosen(
    task: str,
    device: str,
    models: Sequence[str] = (),
    batches: Sequence[int] = (),
    prompts: Sequence[int] = (),
    new: int = 1024,
) -> list[Point]:
    """The points of a device, or those of the models, batches and prompts that are asked for."""
    if not (models or batches or prompts):
        found = _tiny(task, new) if device == "cpu" else _generate(new) if task == "generate" else _prefill()
        return list(dict.fromkeys(found))
    small = device == "cpu"
    models = models or (("based-tiny", "transformer-tiny") if small else (OURS, BASELINE))
    shapes = [(batch, prompt) for prompt in prompts or (1024,) for batch in batches or (1,)]

    def ways(model: str) -> Sequence[str]:
        if small:
            return ("eager",)
        return FLA_WAYS if model in FLA else STEP_WAYS if task == "generate" else PROMPT_WAYS

    return [point for model in models for point in _points(task, model, shapes, new, ways(model))]


def of_one_model(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """Neighbours of one model, as they are measured in one process."""
    for model, group in groupby(points, lambda point: point.model):
        yield model, list(group)


def _points(task: str, model: str, shapes: Sequence[Shape], new: int, ways: Sequence[str]) -> Iterator[Point]:
    for batch, prompt in shapes:
        for way in ways:
            yield Point(task, model, batch, prompt, new if task == "generate" else 0, way)


def _tiny(task: str, new: int) -> Iterator[Point]:
    shapes = [(4, prompt) for prompt in (32, 512, 8192)]
    for model in ("based-tiny", "transformer-tiny"):
        yield from _points(task, model, shapes, min(new, 32), ("eager",))


def _generate(new: int) -> Iterator[Point]:
    """A model of constant states steps alike after all prompts, so few of its points have long ones."""

    def points(model: str, shapes: Sequence[Shape], ways: Sequence[str] = STEP_WAYS) -> Iterator[Point]:
        yield from _points("generate", model, shapes, new, ways)

    k = 1024
    yield from points(OURS, [(batch, k) for batch in (1, 128, 512, 1024)])
    yield from points(REPLAY, [(batch, k) for batch in (1, 128, 1024, LARGEST)])
    yield from points(BASELINE, [(x, n) for n in (k, 4 * k, 16 * k) for x in (1, LARGEST)] + [(128, k)])
    yield from points(LLAMA, [(x, n) for n in (k, 4 * k, 16 * k) for x in (1, LARGEST)] + [(128, k)])
    yield from points(BASELINE, [(x, 64 * k) for x in (1, LARGEST)])
    yield from points(OURS, [(batch, k) for batch in (2048, 4096, 16, 64, 256, LARGEST)])
    yield from points(OURS, [(1, n) for n in (1, 4 * k, 16 * k, 64 * k)])
    for model in PEERS:
        yield from points(model, [(batch, k) for batch in (1, 128, 512, 1024, 2048)], FLA_WAYS)
    rest = [(x, 1) for x in (1, 128, 512, LARGEST)]
    rest += [(16, k), (64, k), (256, k), (16, 4 * k), (64, 4 * k), (8, 16 * k), (16, 16 * k), (4, 64 * k)]
    yield from points(BASELINE, rest)
    yield from points(LLAMA, rest + [(x, 64 * k) for x in (1, LARGEST)])
    for model in (OURS, BASELINE, LLAMA):  # minutes to compile, and hardly faster than their blocks
        yield from points(model, [(1, k), (128, k)], ("graph, whole",))


def _prefill() -> Iterator[Point]:
    def points(model: str, shapes: Sequence[Shape], ways: Sequence[str] = PROMPT_WAYS) -> Iterator[Point]:
        yield from _points("prefill", model, shapes, 0, ways)

    k = 1024
    telling = [(1, 8 * k), (1, 32 * k), (1, k), (1, 4 * k), (1, 16 * k), (1, 64 * k)]
    batches = [(8, k), (32, k), (128, k), (8, 4 * k), (32, 4 * k), (8, 16 * k), (1, 2 * k)]
    yield from points(OURS, telling)
    yield from points(BASELINE, telling)
    yield from points(OURS, batches)
    yield from points(BASELINE, batches)
    yield from points(LLAMA, telling, (*PROMPT_WAYS, "graph, cudnn"))
    for model in PEERS:
        yield from points(model, telling, FLA_WAYS)
    yield from points(LLAMA, batches)
