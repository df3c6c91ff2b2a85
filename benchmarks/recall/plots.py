"""The pictures of recall: figures 2 and 3 of Based (arXiv 2402.18668), and recall against window width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from based_ops.recall.designs import Design
from based_ops.recall.model import information_bytes, state_bytes
from based_ops.recall.recipe import ZOOLOGY
from based_ops.recall.results import Line, Point, points

from ..ops import plots
from ..ops import results as records
from .claims import LARGEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Test = tuple[int, int] | None
"""By length and pairs; None is the mean over all."""
TAYLOR = "based"


def draw(
    lines: Sequence[Line],
    directory: Path,
    mark: Design | None = None,
    measured: records.Report | None = None,
) -> list[Path]:
    """Writes the pictures for which there are points; returns their paths.

    `mark` is ringed, or where it has no point, a line stands at its bytes.  `measured` has times of windows.
    """
    return plots.draw(_Report(lines, mark, measured), directory, PLOTS)


class _Report:
    """Lines as points, and what the pictures say of where they come from."""

    def __init__(self, lines: Sequence[Line], mark: Design | None, measured: records.Report | None) -> None:
        self.points, self.mark, self.measured = points(lines), mark, measured
        used = [line for point in self.points for line in point.lines]
        devices, epochs, dates = (sorted({get(x) for x in used}) for get in (_device, _epochs, _date))
        versions = " / ".join(sorted({x.versions for x in used}))
        self.about = (
            f"{', '.join(devices)}; {', '.join(epochs)} epochs; {versions}; {dates[0]}"
            + (f" to {dates[-1]}" if len(dates) > 1 else "")
            if used
            else ""
        )


def _device(line: Line) -> str:
    return f"{line.device}, {line.dtype}"


def _epochs(line: Line) -> str:
    return str(line.epochs)


def _date(line: Line) -> str:
    return line.date


def series(point: Point) -> str:
    """To which curve a point belongs."""
    dials = dict(point.design.dials)
    match point.design.model:
        case "map":
            return str(dials["map"])
        case "based":
            order = {1: "Taylor 1", 2: "Based", 3: "Taylor 3"}[int(dials["order"])]
            windows = " + windows" if dials["window"] else ""
            return order + windows + ("" if dials["conv"] else ", no convolution")
        case "delta":
            return f"delta rule, {dials['map']}" + (", fading" if dials["fades"] else "")
        case "delta_net":
            return "Gated DeltaNet" if dials["fades"] else "DeltaNet"
        case "sinks":
            return "windows + sinks"
        case "window":
            return "windows"
    return point.design.model


def frontier(found: Sequence[Point], test: Test) -> list[Point]:
    """Those above all of no more bytes."""
    best: list[Point] = []
    for point in sorted(found, key=lambda x: (x.state_bytes, -x.mean(test))):
        if not best or point.mean(test) > best[-1].mean(test):
            best.append(point)
    return best


def bound(size: float, tests: Sequence[tuple[int, int]], vocabulary: int) -> float:
    """The accuracy, over these tests, of whoever keeps the first pairs in so many bytes and no other."""
    found = 0.0
    for _, pairs in tests:
        low, high = 0, pairs  # the most pairs that fit
        while low < high:
            middle = (low + high + 1) // 2
            fits = information_bytes(middle, vocabulary) <= size
            low, high = (middle, high) if fits else (low, middle - 1)
        found += low / pairs
    return found / len(tests)


def figure2(plt: Any, report: _Report) -> Figure | None:
    """The mean over all tests against bytes of state."""
    chosen = [x for x in report.points if x.design.model != "map"]
    if not chosen:
        return None
    figure, axes = plt.subplots(figsize=(7.6, 5))
    _scatter(axes, chosen, None, lambda x: x.state_bytes)
    _bound(axes, chosen, list(chosen[0].lines[0].accuracies))
    _ring(axes, report, None)
    axes.set(xlabel="bytes of state (1024 tokens, float32, all layers)", ylabel="accuracy, mean of the tests")
    return _finished(figure, report, [axes])


def figure3(plt: Any, report: _Report) -> Figure | None:
    """Feature maps in the test of 256 pairs, against bytes of state and against parameters."""
    chosen = [
        x
        for x in report.points
        if LARGEST in x.lines[0].accuracies and (x.design.model == "map" or _is_taylor(x))
    ]
    if not any(x.design.model == "map" for x in chosen):
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), sharey=True)
    _scatter(left, chosen, LARGEST, lambda x: x.state_bytes)
    _bound(left, chosen, [LARGEST])
    _ring(left, report, LARGEST)
    left.set(xlabel="bytes of state (1024 tokens, float32, all layers)", ylabel="accuracy at 256 pairs")
    _scatter(right, chosen, LARGEST, lambda x: x.parameters)
    right.set(xlabel="parameters")
    return _finished(figure, report, [left])


def window_width(plt: Any, report: _Report) -> Figure | None:
    """Recall against the width of a window: alone, and before linear attention; without one, a line.

    Beside it the time of such a layer, where records have it for several widths (Based's figure 1).
    """
    kinds: dict[str, list[tuple[int, Point]]] = {}
    for point in report.points:
        dials = dict(point.design.dials)
        if point.design.model == "window" or (_is_taylor(point, windows=True) and dials["window"]):
            name = f"{series(point)} d={point.design.d_model}"
            kinds.setdefault(name, []).append((int(dials["window"]), point))
    kinds = {name: sorted(found, key=lambda x: x[0]) for name, found in kinds.items() if len(found) > 1}
    if not kinds:
        return None
    timed, of = _times(report.measured)
    figure, panels = plt.subplots(1, 1 + bool(timed), figsize=(6.4 + 5 * bool(timed), 4.2), squeeze=False)
    axes = panels[0, 0]
    for number, (name, found) in enumerate(kinds.items()):
        style = {"color": plots.COLOURS[number], "marker": plots.MARKERS[number], "label": name}
        axes.plot([width for width, _ in found], [x.mean() for _, x in found], **style)
    widths = {x.design.d_model for found in kinds.values() for _, x in found}
    alone = [x for x in report.points if _is_taylor(x) and x.design.d_model in widths]
    for number, point in enumerate(alone):
        axes.axhline(point.mean(), color=plots.COLOURS[-1 - number], linestyle="--", label=str(point.design))
    axes.set(xlabel="keys in a window", ylabel="accuracy, mean of the tests", ylim=(0, 1.03))
    _widths(axes)
    if timed:
        beside = panels[0, 1]
        beside.plot(*zip(*timed, strict=True), color=plots.COLOURS[0], marker="o")
        beside.set(xlabel="keys in a window", ylabel="ms, forward", title=of)
        beside.set_ylim(0, 1.2 * max(ms for _, ms in timed))
        _widths(beside)
    return _finished(figure, report, [axes])


def _widths(axes: Axes) -> None:
    """A horizontal axis of widths, each twice the one before."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(True, linewidth=0.6)


def _times(measured: records.Report | None) -> tuple[list[tuple[int, float]], str]:
    """Milliseconds of windows forward by their width, in the call that most widths have; and that call."""
    calls: dict[tuple[int, int, int, str], dict[int, float]] = {}
    for line in measured.lines if measured is not None else ():
        work, own = line.work, line.own
        plain = (work.task, work.clock, work.form, work.state) == ("forward", "device", "dense", False)
        if plain and own is not None and work.spec.mixer == "sliding_window":
            call = work.batch, work.heads, work.length, work.dtype
            calls.setdefault(call, {})[work.spec.window] = own.ms
    call, found = max(calls.items(), key=lambda x: len(x[1]), default=((0, 0, 0, ""), {}))
    if measured is None or len(found) < 2:
        return [], ""
    batch, heads, length, dtype = call
    return sorted(found.items()), f"B{batch} H{heads} T{length} {dtype}, {measured.machine['device']}"


def _is_taylor(point: Point, windows: bool = False) -> bool:
    """Whether it is Based with its second order: without windows, unless those are asked for."""
    dials = dict(point.design.dials)
    return point.design.model == TAYLOR and dials["order"] == 2 and (windows or not dials["window"])


def _scatter(axes: Axes, chosen: Sequence[Point], test: Test, place: Callable[[Point], float]) -> None:
    """A colour for each kind, a line along its own frontier, the seeds from the worst to the best."""
    names = sorted({series(x) for x in chosen}, key=lambda x: (x != "Based", x))
    for number, name in enumerate(names):
        own = [x for x in chosen if series(x) == name]
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        marker = plots.MARKERS[number % len(plots.MARKERS)]
        means = [x.mean(test) for x in own]
        low = [mean - min(x.of(test)) for x, mean in zip(own, means, strict=True)]
        high = [max(x.of(test)) - mean for x, mean in zip(own, means, strict=True)]
        where = [place(x) for x in own]
        drawn: dict[str, Any] = dict(linestyle="", color=colour, marker=marker, markersize=5, capsize=2)
        axes.errorbar(where, means, yerr=[low, high], label=name, **drawn)
        line = frontier(own, test)
        weight = 2 if name == "Based" else 1
        axes.plot([place(x) for x in line], [x.mean(test) for x in line], color=colour, linewidth=weight)
    axes.set(xscale="log", ylim=(0, 1.03))
    axes.grid(True, linewidth=0.6)


def _bound(axes: Axes, chosen: Sequence[Point], tests: Sequence[tuple[int, int]]) -> None:
    """The line below which a state of so few bytes cannot hold the pairs."""
    least, most = 100, max(x.state_bytes for x in chosen)
    sizes = [least * 1.1**i for i in range(400) if least * 1.1**i <= most]
    accuracies = [bound(size, tests, ZOOLOGY.vocabulary) for size in sizes]
    axes.plot(sizes, accuracies, color="#888888", linestyle=":", label="what so many bytes can hold")


def _ring(axes: Axes, report: _Report, test: Test) -> None:
    """Shows what was chosen."""
    if report.mark is None:
        return
    label, colour = f"chosen: {report.mark}", "#D55E00"
    point = next((x for x in report.points if x.design == report.mark), None)
    if point is None:
        axes.axvline(state_bytes(report.mark), color=colour, linestyle="--", label=f"{label}, not trained")
        return
    where: dict[str, Any] = dict(s=220, facecolors="none", edgecolors=colour, linewidths=2)
    axes.scatter([point.state_bytes], [point.mean(test)], label=label, **where)


def _finished(figure: Figure, report: _Report, panels: Sequence[Axes]) -> Figure:
    """With one legend, and a line that says where and when."""
    figure.tight_layout()
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    where: dict[str, Any] = dict(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.legend(list(entries.values()), list(entries), fontsize=8, **where)
    figure.text(0.5, -0.02, report.about, ha="center", va="top", fontsize=8)
    return figure


PLOTS: plots.Plots = {
    "recall-against-bytes": figure2,
    "recall-of-maps": figure3,
    "recall-against-window": window_width,
}
