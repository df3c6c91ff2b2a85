"""Trains and times point by point; what fails costs its own point, and what is there is not done again."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from based_ops.models import LanguageModel
from based_ops.recall.tasks import Example, examples, recall_slices
from based_ops.train import Bytes, Settings, Text, Trainer
from based_ops.train.text import rows_of

from ..models.results import here
from . import contenders
from .results import Line, Point, Quality, Report, Speed

Say = Callable[[str], None]
ORDER = 6
"""Bytes of a run whose last is a recall hit: about a word."""
SEQUENCES = 128
"""Of held out text."""
WARM, TIMED = 4, 12
"""Steps before times are taken, and steps that are timed."""


def points(models: Sequence[str], rates: Sequence[float], seeds: int, speed: Sequence[Speed]) -> list[Point]:
    """The most telling first: speed, then a seed of every model."""
    quality = [Quality(model, lr, seed) for seed in range(seeds) for lr in rates for model in models]
    return [*speed, *quality]


def timed(device: str) -> list[Speed]:
    """Based and the Transformer of equal size at 2048 tokens; where there is no GPU, the tiny ones."""
    if device == "cpu":
        return [Speed(model, 2, 64, False) for model in ("based-tiny", "transformer-tiny")]
    models = ("based-360m", "transformer-360m")
    return [Speed(model, 16, 2048, compiled) for compiled in (True, False) for model in models]


def run(
    todo: Sequence[Point],
    text: Text,
    asked: Sequence[Example],
    recipe: Settings,
    device: str,
    minutes: float,
    say: Say,
    save: Callable[[Report], None] = lambda report: None,
    earlier: Report | None = None,
) -> Report:
    """The points that can be begun within `minutes`; `save` gets what there is after each.

    `ValueError` unless `earlier` is of this machine, this text and this recipe, and for sequences that are
    too short to ask for anything in.
    """
    if asked and recipe.length <= examples.NEW:
        raise ValueError(
            f"length: got {recipe.length}, must be above {examples.NEW}, the tokens of an answer"
        )
    until = time.monotonic() + 60 * minutes
    about = {**_varied(asdict(recipe)), "text": text.fingerprint}
    report = Report(here(device), about, [], {})
    if earlier is not None:
        _require_same(earlier, report)
        report = replace(report, lines=list(earlier.lines))
    known = {line.point for line in report.lines}
    for point in todo:
        if point in known:
            continue
        if time.monotonic() > until:
            report.missing[str(point)] = "not begun for want of time"
            continue
        try:
            if why := contenders.missing(point.model):
                raise RuntimeError(why)
            report.lines.append(measured(point, text, asked, recipe, device))
            say(_said(report.lines[-1]))
        except Exception as error:  # memory, a compiler's, another library's
            report.missing[str(point)] = _in_one_line(error)
            say(f"{point}: {report.missing[str(point)]}")
        save(report)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return report


def measured(point: Point, text: Text, asked: Sequence[Example], recipe: Settings, device: str) -> Line:
    """One point."""
    if isinstance(point, Speed):
        return _speed(point, recipe, device)
    return _quality(point, text, asked, recipe, device)


def _quality(point: Quality, text: Text, asked: Sequence[Example], recipe: Settings, device: str) -> Line:
    net = contenders.make(point.model, device, point.seed)
    recipe = replace(recipe, lr=point.lr, seed=point.seed)
    trainer = Trainer(net, text, recipe)
    begin = time.perf_counter()
    with _attention(device):
        last = list(trainer.run(every=max(1, recipe.steps // 4)))[-1]
    seconds = time.perf_counter() - begin
    if not math.isfinite(last.loss):
        raise RuntimeError(f"the loss is {last.loss} after {last.step} steps")
    net.eval()
    rows = rows_of(text.held_out, recipe.length, SEQUENCES)
    vocabulary = text.tokenizer.vocabulary
    found = recall_slices(
        lambda ids: net(ids)[0], rows, text.train, vocabulary, ORDER, device=device, batch=recipe.batch
    )
    answered = None
    if asked and isinstance(net, LanguageModel):
        answered = examples.score("fields", net, text.tokenizer, asked, recipe.length).contains
    bits = math.log(2) * text.bytes_of_token
    return Line(
        point,
        contenders.weights(net),
        recipe.steps * recipe.batch * recipe.length,
        seconds,
        last.tokens_per_second,
        last.utilisation if isinstance(net, LanguageModel) else None,
        found.all.loss / bits,
        found.hits.loss / bits if found.hits.tokens else None,
        found.others.loss / bits if found.others.tokens else None,
        found.hits.tokens / found.all.tokens,
        answered,
    )


def _speed(point: Speed, recipe: Settings, device: str) -> Line:
    """Steps on random tokens; the longest wait is for what is compiled first."""
    net: Any = contenders.make(point.model, device, 0)
    drawn = torch.randint(net.spec.vocabulary, (4 * point.batch * point.length,), dtype=torch.int32)
    words = Text(drawn, drawn, Bytes(), 1.0)
    recipe = replace(recipe, batch=point.batch, length=point.length, steps=WARM + TIMED, calls=1)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(net, words, recipe, compiled=point.compiled)
    with _attention(device):
        for _ in range(WARM):
            loss, _ = trainer.step()
        float(loss)  # which waits for the device
        (last,) = trainer.run(every=WARM + TIMED)
    tokens = TIMED * point.batch * point.length
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return Line(
        point,
        contenders.weights(net),
        tokens,
        tokens / last.tokens_per_second,
        last.tokens_per_second,
        last.utilisation,
        memory_gb=memory,
    )


def _attention(device: str) -> AbstractContextManager[Any]:
    """While models are trained on a GPU flash kernels, or cuDNN's, or an error: nothing slower unnoticed."""
    if device == "cpu":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])


def _varied(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what points vary."""
    return {key: value for key, value in recipe.items() if key not in ("lr", "seed")}


def _require_same(earlier: Report, now: Report) -> None:
    """Raises `ValueError` where something but the date differs from an earlier run."""
    for name in ("machine", "recipe"):
        then, here_ = _plain(getattr(earlier, name)), _plain(getattr(now, name))
        for key in dict.fromkeys((*then, *here_)):
            if key != "date" and then.get(key) != here_.get(key):
                what = f"{key} {then.get(key)}, here {here_.get(key)}"
                raise ValueError(f"a run of another machine, text or recipe: {what}")


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, which has no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def _said(line: Line) -> str:
    parts = [f"{line.point}: {line.tokens_per_second:,.0f} tokens/s"]
    if line.utilisation is not None:
        parts.append(f"{100 * line.utilisation:.1f} % of the device's products")
    if line.bits is not None:
        slices = {"hits": line.hits, "others": line.others}  # a text may have none of either
        found = (f", {name} {bits:.4f}" for name, bits in slices.items() if bits is not None)
        parts.append(f"{line.bits:.4f} bits a byte{''.join(found)}")
    if line.fields is not None:
        parts.append(f"fields {line.fields:.3f}")
    return " | ".join(parts)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]
