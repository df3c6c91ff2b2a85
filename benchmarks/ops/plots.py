"""Plots of a report: time against length, percent of the limit, speed-up.

Each comes twice, `NAME-light.png` and `NAME-dark.png`, for a page that shows the one that fits.  Colours are
chosen after Okabe and Ito, which colour-blind people can tell apart; markers differ as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Line, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THEMES = {"light": ("#ffffff", "#1f2328", "#d0d7de"), "dark": ("#0d1117", "#e6edf3", "#30363d")}
"""Background, ink and grid."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6BD6", "#999999")
MARKERS = "osD^vP*X<>dp"
OURS = "based_ops "
PANELS = (
    ("taylor2_qk16_v64", "forward"),
    ("taylor2_qk16_v64", "training"),
    ("window64_d64", "forward"),
    ("window64_d64", "training"),
)
SPEED_UP_GROUPS = ("taylor", "training", "window", "step", "maps")
"""Groups of the table whose speed-ups are drawn; the others are variations of their lines."""
DPI = 130

Style = tuple[str, str]
"""Colour and marker."""


class PlotsUnavailable(RuntimeError):
    """Plots need a package that is not there."""


def draw(report: Report, directory: Path) -> list[Path]:
    """Writes the plots for which the report has lines; returns their paths."""
    plt = require()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        for theme, (paper, ink, grid) in THEMES.items():
            colours = {
                "figure.facecolor": paper,
                "axes.facecolor": paper,
                "savefig.facecolor": paper,
                "grid.color": grid,
                "axes.edgecolor": grid,
                "legend.frameon": False,
                "axes.spines.top": False,
                "axes.spines.right": False,
                **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
            }
            with plt.rc_context(colours):
                figure = plot(plt, report)
                if figure is None:
                    continue
                path = directory / f"{name}-{theme}.png"
                figure.savefig(path, dpi=DPI, bbox_inches="tight")
                plt.close(figure)
                written.append(path)
    return written


def require() -> Any:
    """`matplotlib.pyplot` for drawing into files; `PlotsUnavailable` if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise PlotsUnavailable("plots need matplotlib: pip install 'based-ops[bench]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def time_against_length(plt: Any, report: Report) -> Any:
    """One panel a layer and pass, at the number of rows for which there are most lengths."""
    panels = [(title, lines) for title, lines in map(lambda p: _panel(report, *p), PANELS) if len(lines) > 1]
    if not panels:
        return None
    styles = _styles([time.by for line in lines for time in line.times] for _, lines in panels)
    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    figure, grid = plt.subplots(height, columns, figsize=(5.5 * columns, 3.9 * height), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, lines) in zip(grid.flat, panels, strict=False):
        own = {time.by for line in lines for time in line.times if time.ours}
        for by, (colour, marker) in styles.items():
            points = [(line.work.length, time.ms) for line in lines if (time := line.time(by))]
            if points:
                label = OURS + by if by in own else by
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label, markersize=5)
        limits = [(line.work.length, line.limit_ms) for line in lines]
        axes.plot(*zip(*limits, strict=True), linestyle=":", color="#888888", label="limit of this device")
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=title)
        axes.xaxis.set_major_locator(plt.FixedLocator([line.work.length for line in lines]))
        axes.xaxis.set_minor_locator(plt.NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}")
        axes.grid(True, linewidth=0.6)
    # A peer of one panel is none of another: the legend gathers them all.
    entries: dict[str, Any] = {}
    for axes in grid.flat[: len(panels)]:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    figure.tight_layout()
    return figure


def _panel(report: Report, variant: str, task: str) -> tuple[str, list[Line]]:
    found = [
        line
        for line in report.lines
        if (line.work.variant, line.work.task, line.work.state, line.work.clock)
        == (variant, task, False, "device")
        and line.work.dtype == report.lines[0].work.dtype
        and line.times
    ]
    if not found:
        return "", []
    rows = Counter(line.work.rows for line in found).most_common()
    chosen = max(rows, key=lambda pair: (pair[1], pair[0] == 16))[0]
    by_length = {line.work.length: line for line in found if line.work.rows == chosen}
    title = f"{variant}, {'forward + backward' if task == 'training' else 'forward'}, B·H = {chosen}"
    return title, [by_length[length] for length in sorted(by_length)]


def percent_of_limit(plt: Any, report: Report) -> Any:
    """A bar for each backend of this library on each line of the table, and a tick where the target is."""

    def bars(line: Line) -> list[tuple[str, float]]:
        return [(OURS + t.by, t.percent) for t in line.times if t.ours and t.percent is not None]

    lines = [line for line in report.lines if not line.sweep and bars(line)]
    if not lines:
        return None
    figure, axes, centres = _bars(plt, lines, bars, lambda by, value: f"{value:.0f}")
    targets = [
        (100 * line.limit_ms / line.target_ms, centre)
        for line, centre in zip(lines, centres, strict=True)
        if line.target_ms is not None
    ]
    if targets:
        ink = plt.rcParams["text.color"]
        ticks = dict(marker="|", markersize=13, markeredgewidth=2, linestyle="", color=ink)
        axes.plot(*zip(*targets, strict=True), label="target", **ticks)
    axes.set(xlim=(0, 105), xlabel="percent of the limit of this device (copy bandwidth or matrix products)")
    axes.axvline(100, color="#888888", linestyle=":")
    _legend(axes)
    return figure


def speed_up(plt: Any, report: Report) -> Any:
    """A bar for each peer on each line of the table: how many times as fast a call without `backend` is."""

    def bars(line: Line) -> list[tuple[str, float]]:
        return [] if line.own is None else list(line.own.speedup.items())

    lines = [line for line in report.lines if not line.sweep and line.group in SPEED_UP_GROUPS and bars(line)]
    if not lines:
        return None
    figure, axes, _ = _bars(plt, lines, bars, lambda by, value: f"{value:.1f}×  {by}")
    axes.set(xscale="log", xlabel="times as fast as the peer (right of the line: this library is faster)")
    axes.xaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(plt.NullFormatter())
    axes.axvline(1, color="#888888", linestyle=":")
    return figure


def _bars(
    plt: Any,
    lines: Sequence[Line],
    bars: Callable[[Line], list[tuple[str, float]]],
    label: Callable[[str, float], str],
) -> tuple[Any, Axes, list[float]]:
    """Horizontal bars with labels, a group a line; also the middles of the groups."""
    groups = [bars(line) for line in lines]
    styles = _styles([by for by, _ in group] for group in groups)
    figure, axes = plt.subplots(figsize=(9, 0.19 * sum(len(group) + 1 for group in groups) + 1.2))
    place, centres = 0, []
    for group in groups:
        centres.append(place + (len(group) - 1) / 2)
        for by, value in group:
            drawn = axes.barh(place, value, height=0.85, color=styles[by][0], label=by)
            axes.bar_label(drawn, [label(by, value)], padding=3, fontsize=7)
            place += 1
        place += 1
    axes.set_yticks(centres, [str(line.work).replace(" bfloat16", "") for line in lines], fontsize=8)
    axes.set_ylim(place - 0.5, -1)
    axes.grid(True, axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes, centres


def _legend(axes: Axes) -> None:
    """The labels of the bars, each once, above them."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    axes.legend(
        entries.values(), entries.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8
    )


def _styles(groups: Iterable[Iterable[str]]) -> dict[str, Style]:
    """A style for each name; names that meet in a group differ in colour as long as there are colours."""
    met: dict[str, set[str]] = {}
    for group in groups:
        names = list(group)
        for name in names:
            met.setdefault(name, set()).update(names)
    styles: dict[str, Style] = {}
    for number, name in enumerate(met):
        taken = {styles[other][0] for other in met[name] if other in styles}
        free = [colour for colour in COLOURS if colour not in taken]
        colour = free[0] if free else COLOURS[number % len(COLOURS)]
        styles[name] = colour, MARKERS[number % len(MARKERS)]
    return styles


PLOTS: dict[str, Callable[[Any, Report], Any]] = {
    "time-against-length": time_against_length,
    "percent-of-limit": percent_of_limit,
    "speed-up": speed_up,
}
