"""The demonstration, part by part."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..durations import spoken
from . import decode, layer
from .data import standard_library
from .forecast import foresee
from .model import ByteModel, state_bytes
from .settings import Settings
from .train import Training, train

PROMPT = b"    def __init__(self"


def run(settings: Settings | None = None) -> Training:
    """Runs everything and prints it; returns what training did."""
    settings = settings or Settings()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # The tensors are small: a second thread costs more than it does, and many times more on a busy core.
        torch.set_num_threads(1)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    start = time.perf_counter()
    expected = foresee(settings, device)
    console.print(f"This takes about {spoken(expected.total)} on {_name(device)}.")

    _title(console, "1  A layer that did not exist: one line of YAML")
    with tempfile.TemporaryDirectory() as directory:
        path = layer.declare(Path(directory))
        variant = layer.compile_layer(path, console)
        _title(console, "2  Its kernels against naive mathematics in float64", expected.total)
        if settings.thorough:
            layer.verify(path, device)
        else:
            layer.verify_here(variant, device, console)

    left = expected.train + expected.write
    _title(console, "3  A language model of two layers, trained on Python's standard library", left)
    text = standard_library()
    torch.manual_seed(settings.seed)
    linear = settings.linear or variant
    model = ByteModel(settings.width, settings.heads, linear, settings.window).to(device)
    weights = sum(p.numel() for p in model.parameters())
    console.print(
        f"{text.files} files, {len(text.train) / 1e6:.1f} MB to learn from, "
        f"{len(text.held_out) / 1e6:.1f} MB held out; {weights / 1e6:.2f} M weights, "
        f"layers {settings.window} and {settings.linear or variant.name}"
    )

    def report(step: int, bits: float, seconds: float) -> None:
        left = spoken(seconds + expected.write)
        console.print(f"  step {step:5} of {settings.steps}   {bits:.2f} bits a byte   about {left} left")

    done = train(model, text, settings, device, report)
    model.eval()
    how = f"torch.compile, fullgraph, {done.compiled_with}" if done.compiled_with else "not compiled"
    console.print(
        f"{done.tokens:,} bytes in {done.seconds:.0f} s ({done.first_step:.0f} s of it the first step: {how})"
    )
    _table(
        console,
        ("held-out text", "bits a byte"),
        [("before", f"{done.before:.2f}"), ("after", f"{done.after:.2f}")],
    )

    _title(console, "4  Text from it, a byte at a time, at constant memory", expected.write)
    written = decode.write(model, PROMPT, settings.written, settings.seed)
    console.print((PROMPT + written).decode("utf-8", errors="replace"), markup=False)
    _costs(console, model, text.held_out.to(device), settings)
    console.print(f"\ndone in {time.perf_counter() - start:.0f} s")
    return done


def _costs(console: Console, model: ByteModel, text: torch.Tensor, settings: Settings) -> None:
    """Speed of `step` against recomputation, and memory of the state against a key-value cache."""
    lengths = settings.context, settings.long_context
    recompute = decode.recompute_rate(model, text, lengths[0], max(2, settings.timed // 10))
    step = decode.step_rate(model, text, lengths[0], settings.timed)
    _table(
        console,
        (f"one more byte after {lengths[0]:,}", "bytes a second"),
        [("running the whole sequence again", f"{recompute:.0f}"), ("step", f"{step:.0f}")],
    )
    rows = []
    for length in lengths:
        begin = time.perf_counter()
        _, states = decode.read(model, text[:length])
        rate = length / (time.perf_counter() - begin)
        cached = length * _cache_bytes(model)
        rows.append((f"{length:,}", f"{state_bytes(states):,}", f"{cached:,}", f"{rate:,.0f}"))
    columns = ("bytes read", "state, bytes", "key-value cache of such heads, bytes", "read, bytes a second")
    _table(console, columns, rows)


def _cache_bytes(model: ByteModel) -> int:
    """What full softmax attention with the same heads would keep of every token."""
    mixers = [block.mixer for block in model.blocks]
    return sum(m.heads * (m.op.qk + m.op.v) for m in mixers) * model.head.weight.element_size()


def _title(console: Console, text: str, left: float | None = None) -> None:
    more = "" if left is None else f"   (about {spoken(left)} left)"
    console.print(f"\n[bold]{text}[/bold]{more}\n")


def _table(console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "this machine's processor"
