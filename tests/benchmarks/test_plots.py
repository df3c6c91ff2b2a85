"""Plots: how contenders are told apart, and what every plot says."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from based_ops.benchmarks.ops import plots
from based_ops.benchmarks.ops.plots import OTHER, OURS, PANELS, PLOTS, SAME, styles
from based_ops.benchmarks.ops.results import Report, Time, read, with_speedups
from based_ops.cli import main
from tests.conftest import ROOT

RESULTS = [
    path
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    if "task" not in json.loads(path.read_text())
]
"""Those of `bench ops`: others say what their task was."""


def test_plots(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = tmp_path / "result.json"
    report.write(result)
    done = CliRunner().invoke(main, ["bench", "plots", str(result), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    names = ("time-against-length", "percent-of-limit", "speed-up")
    assert set(drawn) == {f"{name}-{theme}.png" for name in names for theme in ("light", "dark")}
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in drawn.values())
    assert drawn["speed-up-light.png"] != drawn["speed-up-dark.png"]


def test_plots_without_matplotlib_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["bench", "ops", "--device", "cpu", "--plots", str(tmp_path)])
    assert done.exit_code == 1
    assert "pip install 'based-ops[bench]'" in done.stderr


@pytest.fixture(params=RESULTS, ids=lambda path: path.stem)
def measured(request: pytest.FixtureRequest) -> Report:
    """The results that are published."""
    return read(request.param)


def test_nobody_shares_a_style(measured: Report) -> None:
    known = styles(measured)
    assert set(known) == {time.by for line in measured.lines for time in line.times}
    assert len({(style.colour, style.marker) for style in known.values()}) == len(known)
    for line in measured.lines:
        colours = [known[time.by].colour for time in line.times]
        assert len(set(colours)) == len(colours), f"{line.work}: two of one colour"


def test_who_computes_another_layer_is_told_apart(report: Report) -> None:
    more = [*report.lines[0].times, Time("attention", False, False, 1.0)]
    known = styles(replace(report, lines=[replace(report.lines[0], times=more)]))
    assert {by: style.kind for by, style in known.items()} == {
        "triton": OURS,
        "rival": SAME,
        "attention": OTHER,
    }
    assert known["attention"].line["linestyle"] != known["rival"].line["linestyle"] == "-"
    assert known["attention"].bar["hatch"] and not known["rival"].bar["hatch"]


@pytest.mark.parametrize("name", PLOTS)
def test_plots_say_on_what_and_when(report: Report, name: str) -> None:
    plt = plots.require()
    machine = {"device": "NVIDIA Example", "date": "2001-02-03", "compiler": "0123abcd"}
    figure = PLOTS[name](plt, replace(report, machine=machine))
    assert figure is not None
    texts = " ".join(text.get_text() for text in _texts(figure))
    for word in ("NVIDIA Example", "2001-02-03", "bfloat16", "0123abcd"):
        assert word in texts
    plt.close(figure)


def test_a_line_that_is_lost_is_drawn_first_and_in_bold(report: Report) -> None:
    """Also one of the sweep; the others of the sweep are not drawn."""
    times = [Time("triton", True, True, 2.0), Time("rival", False, True, 1.0)]
    lost = replace(report.lines[2], times=with_speedups(times))
    plt = plots.require()
    figure = PLOTS["speed-up"](plt, replace(report, lines=[*report.lines, lost]))
    assert figure is not None
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == [f"taylor2_qk16_v64 forward B1 H16 T{length}" for length in (2048, 512, 8192)]
    labels = {text.get_text(): text.get_fontweight() for text in figure.axes[0].texts}
    assert labels == {"0.750×  rival": "bold", "0.500×  rival": "bold", "3.0×  rival": "normal"}
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [pytest.approx(-0.25), pytest.approx(-0.5), pytest.approx(2.0)]
    plt.close(figure)


def test_lines_of_a_panel_differ(measured: Report) -> None:
    plt = plots.require()
    figure = PLOTS["time-against-length"](plt, measured)
    if figure is None:  # a report of other layers, or of one length of each
        points = {(w.variant, w.task, w.rows, w.length) for w in (line.work for line in measured.lines)}
        of_panels = Counter(point[:3] for point in points if point[:2] in PANELS)
        assert max(of_panels.values(), default=0) < 2
        return
    for axes in figure.axes:
        drawn = [(line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in axes.lines]
        assert len(set(drawn)) == len(drawn)
    titles = [legend.get_title().get_text() for legend in figure.legends]
    assert titles == [OURS, *([SAME] if SAME in titles else []), OTHER, "for comparison"]
    plt.close(figure)


def _texts(figure: Any) -> list[Any]:
    import matplotlib.text

    return figure.findobj(matplotlib.text.Text)
