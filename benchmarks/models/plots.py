"""Plots of a report: tokens a second against batch and against the prompt, and the time of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ops import plots
from .results import Line, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (1024, 4096, 16384)
"""Prompts after which tokens a second are drawn against the batch."""
LIMIT: dict[str, Any] = dict(linestyle=":", linewidth=1)
Best = Callable[[str, int], "Line | None"]
"""The line of a model at a place of the horizontal axis."""


def draw(report: Report, directory: Path) -> list[Path]:
    """Writes the plots for which the report has lines; returns their paths."""
    return plots.draw(report, directory, PLOTS)


def against_batch(plt: Any, report: Report) -> Figure | None:
    """Tokens a second, a panel for each prompt; dotted, what the device allows."""
    if report.task != "generate":
        return None
    prompts = [x for x in PANELS if x in report.prompts] or report.prompts[:3]
    batches = sorted({line.batch for line in report.lines})
    figure, panels = plt.subplots(
        1, len(prompts), figsize=(5.2 * len(prompts), 4), squeeze=False, sharey=True
    )
    for axes, prompt in zip(panels.flat, prompts, strict=True):
        _curves(axes, report, batches, partial(_at_prompt, report, prompt))
        axes.set(xlabel="batch", title=f"after {_tokens(prompt)} tokens")
    panels.flat[0].set_ylabel("tokens a second")
    return _finished(figure, report, list(panels.flat))


def against_prompt(plt: Any, report: Report) -> Figure | None:
    """Tokens a second at each model's best batch."""
    if report.task != "generate":
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _curves(axes, report, report.prompts, report.best)
    axes.set(xlabel="tokens of the prompt", ylabel="tokens a second, at the best batch")
    return _finished(figure, report, [axes])


def prompt_time(plt: Any, report: Report) -> Figure | None:
    """Milliseconds of a prompt, a panel for each batch that has several lengths."""
    if report.task != "prefill":
        return None
    lengths: dict[int, set[int]] = {}
    for line in report.lines:
        lengths.setdefault(line.batch, set()).add(line.point.prompt)
    batches = [batch for batch in sorted(lengths) if len(lengths[batch]) > 1]
    if not batches:
        return None
    figure, panels = plt.subplots(1, len(batches), figsize=(5.6 * len(batches), 4), squeeze=False)
    for axes, batch in zip(panels.flat, batches, strict=True):
        best = partial(report.best, batch=batch)
        _curves(axes, report, sorted(lengths[batch]), best, lambda line: line.ms, lambda line: line.limit_ms)
        axes.set(xlabel="tokens of a prompt", ylabel="ms", title=f"batch {batch}")
    return _finished(figure, report, list(panels.flat))


def _curves(
    axes: Axes,
    report: Report,
    places: Sequence[int],
    best: Best,
    of: Callable[[Line], float] = lambda line: line.tokens_per_second,
    limit: Callable[[Line], float] = lambda line: line.tokens_per_second * line.ms / line.limit_ms,
) -> None:
    """A line for each model through what is found at each place, and the limit of each."""
    for number, model in enumerate(report.models):
        found = [(x, line) for x in places if (line := best(model, x)) is not None]
        if not found:
            continue
        colour, marker = plots.COLOURS[number], plots.MARKERS[number]
        where = [x for x, _ in found]
        own: dict[str, Any] = dict(linewidth=2.2 if number == 0 else 1.3, markersize=5)
        axes.plot(where, [of(line) for _, line in found], color=colour, marker=marker, label=model, **own)
        axes.plot(where, [limit(line) for _, line in found], color=colour, **LIMIT)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: _tokens(x))
    axes.grid(True, linewidth=0.6)


def _at_prompt(report: Report, prompt: int, model: str, batch: int) -> Line | None:
    return report.best(model, prompt, batch)


def _tokens(x: float) -> str:
    return f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"


def _finished(figure: Figure, report: Report, panels: list[Axes]) -> Figure:
    """With a title that says where and when, and one legend."""
    figure.tight_layout()
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    where: dict[str, Any] = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=max(1, len(entries)))
    figure.legend(list(entries.values()), list(entries), fontsize=8, **where)
    machine = report.machine
    about = (
        f"{machine['device']}, {report.ceilings.matmul_dtype}, torch {machine['torch']}, {machine['date']}"
    )
    figure.text(0.5, -0.02, f"{about}; dotted: limit of this device", ha="center", va="top", fontsize=8)
    return figure


PLOTS: plots.Plots = {
    "generate-against-batch": against_batch,
    "generate-against-prompt": against_prompt,
    "prefill-against-length": prompt_time,
}
