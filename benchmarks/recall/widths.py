"""Accuracy against width, length by length: Zoology's first study (arXiv 2312.04927, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from based_ops.errors import ResultsError, fail_text
from based_ops.recall.results import Line, Point, points

from ..ops import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(lines: Sequence[Line], directory: Path) -> list[Path]:
    """Writes the picture, light and dark; returns the paths.

    Raises `ResultsError` unless each line has one test, as those of the recipes `zoology-64` and so on.
    """
    other = next((line for line in lines if len(line.accuracies) != 1), None)
    if other is not None or not lines:
        got = "no lines" if other is None else f"{len(other.accuracies)} tests of one model"
        fail_text(ResultsError, f"accuracy against width: got {got}, must be CSVs of one length each")
    return plots.draw(_by_length(lines), directory, {"recall-against-width": picture})


def _by_length(lines: Sequence[Line]) -> dict[int, list[Point]]:
    found: dict[int, list[Line]] = {}
    for line in lines:
        ((length, _),) = line.accuracies
        found.setdefault(length, []).append(line)
    return {length: points(found[length]) for length in sorted(found)}


def picture(plt: Any, found: dict[int, list[Point]]) -> Figure:
    """A panel for each length, a line for each kind of model."""
    figure, panels = plt.subplots(
        1, len(found), figsize=(3.6 * len(found) + 1, 3.8), sharey=True, squeeze=False
    )
    names = sorted({_name(x) for same in found.values() for x in same})
    for axes, (length, same) in zip(panels[0], found.items(), strict=True):
        for number, name in enumerate(names):
            own = sorted((x for x in same if _name(x) == name), key=lambda x: x.design.d_model)
            style = {"color": plots.COLOURS[number], "marker": plots.MARKERS[number], "label": name}
            if own:
                axes.plot([x.design.d_model for x in own], [x.mean() for x in own], **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set(title=f"{length} tokens", xlabel="width of the model", ylim=(0, 1.03))
        axes.grid(True, linewidth=0.6)
    panels[0, 0].set_ylabel("accuracy")
    figure.tight_layout()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    used = [line for same in found.values() for point in same for line in point.lines]
    about = {f"{x.device}, {x.dtype}; {x.epochs} epochs; {x.versions}; {x.date}" for x in used}
    figure.text(0.5, -0.02, "\n".join(sorted(about)), ha="center", va="top", fontsize=8)
    return figure


def _name(point: Point) -> str:
    if point.design.model == "sparse":
        penalty = "" if dict(point.design.dials)["penalty"] else ", no penalty"
        return "BaseConv + √T attention" + penalty
    return point.design.model
