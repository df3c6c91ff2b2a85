"""Plots of a report: time against length, percent of the limit, speed-up.

Each comes twice, `NAME-light.png` and `NAME-dark.png`, for a page that shows the one that fits, and says on
what and when it was measured.  The first colours are those of Okabe and Ito, which colour-blind people can
tell apart; markers differ as well, and who computes another layer is dashed or hatched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import described, dtype_of, label
from .results import Line, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEMES = {"light": ("#ffffff", "#1f2328", "#d0d7de"), "dark": ("#0d1117", "#e6edf3", "#30363d")}
"""Background, ink and grid."""
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"),
    *("#8C6BD6", "#999999", "#9C6B3F", "#B5BD00", "#00B5B8", "#F0506E", "#5FD35F"),
    *("#2E7D6B", "#A13D63", "#C9A27C", "#5C6BC0"),
)
MARKERS = "osD^vP*X<>d"
OURS, SAME, OTHER = "this library", "the same layer", "another layer: full attention"
"""Kinds of contenders."""
COMPARED = "for comparison"
PANELS = (
    ("taylor2_qk16_v64", "forward"),
    ("taylor2_qk16_v64", "training"),
    ("window64_d64", "forward"),
    ("window64_d64", "training"),
)
SPEED_UP_GROUPS = ("taylor", "training", "window", "step", "maps")
"""Groups whose speed-ups are drawn, beside those of every line on which a peer is faster."""
DPI = 130


class PlotsUnavailable(RuntimeError):
    """Plots need a package that is not there."""


@dataclass(frozen=True)
class Style:
    """How a contender is drawn, as a line or as a bar."""

    kind: str
    colour: str
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        dashes = (0, (4, 2)) if self.kind == OTHER else "-"
        width = 2.2 if self.kind == OURS else 1.3
        return dict(color=self.colour, marker=self.marker, markersize=5, linewidth=width, linestyle=dashes)

    @property
    def bar(self) -> dict[str, Any]:
        return dict(facecolor=self.colour, hatch="////" if self.kind == OTHER else "", height=0.85)


def styles(report: Report) -> dict[str, Style]:
    """A style for everybody who has a time, this library first; no two share colour and marker."""
    kinds: dict[str, str] = {}
    for time in (time for line in report.lines for time in line.times):
        kinds.setdefault(time.by, OURS if time.ours else SAME if time.same else OTHER)
    names = sorted(kinds, key=lambda by: (OURS, OTHER, SAME).index(kinds[by]))
    # Seventeen colours and eleven markers have no common divisor: 187 pairs before one comes again.
    return {
        by: Style(kinds[by], COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, by in enumerate(names)
    }


def draw(report: Any, directory: Path, plots: Plots | None = None) -> list[Path]:
    """Writes the plots for which the report has lines; returns their paths."""
    plt = require()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in (PLOTS if plots is None else plots).items():
        for theme, (paper, ink, grid) in THEMES.items():
            colours = {
                "figure.facecolor": paper,
                "axes.facecolor": paper,
                "savefig.facecolor": paper,
                "grid.color": grid,
                "axes.edgecolor": grid,
                "hatch.color": paper,
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


def time_against_length(plt: Any, report: Report) -> Figure | None:
    """One panel a layer and pass, at the number of rows for which there are most lengths."""
    panels = [(title, lines) for title, lines in map(lambda p: _panel(report, *p), PANELS) if len(lines) > 1]
    if not panels:
        return None
    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    figure, grid = plt.subplots(height, columns, figsize=(5.5 * columns, 3.9 * height), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    known = styles(report)
    for axes, (title, lines) in zip(grid.flat, panels, strict=False):
        for by, style in known.items():
            points = [(line.work.length, time.ms) for line in lines if (time := line.time(by))]
            if points:
                axes.plot(*zip(*points, strict=True), label=by, **style.line)
        limits = [(line.work.length, line.limit_ms) for line in lines]
        axes.plot(*zip(*limits, strict=True), linestyle=":", color="#888888", label="limit of this device")
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=title)
        axes.xaxis.set_major_locator(plt.FixedLocator([line.work.length for line in lines]))
        axes.xaxis.set_minor_locator(plt.NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}")
        axes.grid(True, linewidth=0.6)
    figure.suptitle(described(report), fontsize=9)
    _legends(figure, known, list(grid.flat[: len(panels)]))
    return figure


def _panel(report: Report, variant: str, task: str) -> tuple[str, list[Line]]:
    usual = dtype_of(report)
    found = [
        line
        for line in report.lines
        if (line.work.variant, line.work.task, line.work.state, line.work.clock, line.work.dtype)
        == (variant, task, False, "device", usual)
        and (line.work.form, line.work.kv_heads) == ("dense", 0)
        and line.times
    ]
    if not found:
        return "", []
    rows = Counter(line.work.rows for line in found).most_common()
    chosen = max(rows, key=lambda pair: (pair[1], pair[0] == 16))[0]
    by_length = {line.work.length: line for line in found if line.work.rows == chosen}
    title = f"{variant}, {'forward + backward' if task == 'training' else 'forward'}, B·H = {chosen}"
    return title, [by_length[length] for length in sorted(by_length)]


def percent_of_limit(plt: Any, report: Report) -> Figure | None:
    """A bar for each backend of this library on each line of the table, and a tick where the target is."""

    def bars(line: Line) -> list[tuple[str, float]]:
        return [(t.by, t.percent) for t in line.times if t.ours and t.percent is not None]

    lines = [line for line in report.lines if not line.sweep and bars(line)]
    if not lines:
        return None
    known = styles(report)
    figure, axes, centres = _bars(plt, report, lines, bars, lambda by, value: f"{value:.0f}", start=0.0)
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
    _legends(figure, known, [axes])
    return figure


def speed_up(plt: Any, report: Report) -> Figure | None:
    """A bar for each peer on each line of the table: how many times as fast a call without `backend` is.

    Every line on which a peer is faster is drawn, of the sweep too, and these come first.
    """

    def bars(line: Line) -> list[tuple[str, float]]:
        return [] if line.own is None else list(line.own.speedup.items())

    drawn = [
        line
        for line in report.lines
        if bars(line) and (line.faster_peers or (not line.sweep and line.group in SPEED_UP_GROUPS))
    ]
    lines = sorted(drawn, key=lambda line: not line.faster_peers)
    if not lines:
        return None
    figure, axes, _ = _bars(plt, report, lines, bars, _times, start=1.0)
    axes.set(
        xscale="log", xlabel="← peer faster        times as fast as the peer        this library faster →"
    )
    axes.xaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(plt.NullFormatter())
    axes.margins(x=0.12)
    axes.axvline(1, color=plt.rcParams["text.color"], linewidth=0.8)
    _legends(figure, styles(report), [axes])
    return figure


def _times(by: str, value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 2 else 2 if value >= 1 else 3}f}×  {by}"


def _bars(
    plt: Any,
    report: Report,
    lines: Sequence[Line],
    bars: Callable[[Line], list[tuple[str, float]]],
    text: Callable[[str, float], str],
    start: float,
) -> tuple[Figure, Axes, list[float]]:
    """Horizontal bars from `start`, with labels, a group a line; also the middles of the groups."""
    known, usual = styles(report), dtype_of(report)
    groups = [bars(line) for line in lines]
    figure, axes = plt.subplots(figsize=(9, 0.19 * sum(len(group) + 1 for group in groups) + 1.2))
    place, centres = 0, []
    for group in groups:
        centres.append(place + (len(group) - 1) / 2)
        for by, value in group:
            axes.barh(place, value - start, left=start, label=by, linewidth=0, **known[by].bar)
            # Right of the bar, or of where it starts, so that no label meets the names of the lines.
            weight = "bold" if value < start else "normal"
            near = dict(xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, weight=weight)
            axes.annotate(text(by, value), (max(value, start), place), **near)
            place += 1
        place += 1
    axes.set_yticks(centres, [label(line.work, usual) for line in lines], fontsize=8)
    axes.set_ylim(place - 0.5, -1)
    axes.grid(True, axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(described(report), fontsize=9)
    return figure, axes, centres


def _legends(figure: Figure, known: dict[str, Style], panels: Iterable[Axes]) -> None:
    """Above a figure a legend for each kind of contender, and one for what is no contender."""
    figure.tight_layout()
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    kinds: dict[str, list[str]] = {kind: [] for kind in (OURS, SAME, OTHER, COMPARED)}
    for by in (*(by for by in known if by in entries), *(by for by in entries if by not in known)):
        kinds[known[by].kind if by in known else COMPARED].append(by)
    sections = [(kind, names) for kind, names in kinds.items() if names]
    for number, (kind, names) in enumerate(sections):
        where: dict[str, Any] = dict(loc="lower center", bbox_to_anchor=((number + 0.5) / len(sections), 1))
        handles = [entries[by] for by in names]
        figure.legend(handles, names, title=kind, fontsize=8, title_fontsize=8, **where)


Plots = dict[str, Callable[[Any, Any], "Figure | None"]]
"""Functions of pyplot and a report, by the name of the file; None for a report that lacks the lines."""
PLOTS: Plots = {
    "time-against-length": time_against_length,
    "percent-of-limit": percent_of_limit,
    "speed-up": speed_up,
}
