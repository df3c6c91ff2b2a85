"""``based-ops bench``: how fast everything is here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import fail, table

if TYPE_CHECKING:
    from based_ops.benchmarks.ops.results import Report

RESULT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(short_help="Measure how fast everything is here.")
def bench() -> None:
    """Measure how fast everything is on this machine, beside other libraries."""


@bench.command(short_help="Operators: time, bandwidth, memory, beside other libraries.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@click.option("--only", multiple=True, metavar="GROUP", help="Lines of this group only; may be repeated.")
@click.option("--sweep/--no-sweep", default=True, help="Also lengths and batch sizes without targets.")
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write the result.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw PNGs into DIRECTORY.")
@click.option(
    "--budget-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Begin no line after this time.",
)
def ops(
    device: str | None,
    only: tuple[str, ...],
    sweep: bool,
    result: Path | None,
    plots: Path | None,
    budget_minutes: float,
) -> None:
    """Time every operator on every backend, and other libraries on the same work.

    What is measured, and what it should reach, stands in benchmarks/targets.yaml.  Other libraries that are
    not installed are named and left out.  Numbers appear as they are found; the result is written after every
    line.  Groups are those of the file; --only takes the group of a sweep too.
    """
    import torch

    from based_ops.benchmarks.ops.run import run
    from based_ops.benchmarks.ops.works import entries

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        fail("--device: got 'cuda', but PyTorch sees no CUDA device")
    try:
        chosen = entries(device, sweep, only)
    except ValueError as error:
        fail(f"--only: {error}")
    _can_draw(plots)

    def save(report: Report) -> None:
        if result is not None:
            report.write(result)

    report = run(chosen, device, budget_minutes, lambda text: click.echo(text, err=True), save)
    _show(report)
    _draw(report, plots)


@bench.command(short_help="Time to generate, to compile, and to load from the caches.")
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write the result.")
def compile(result: Path | None) -> None:
    """Time what a user waits for before anything runs: generating, importing, first calls of kernels.

    Each is measured in new processes; first calls with empty caches on disk, then with full ones.
    """
    from based_ops.benchmarks.compile_time import measure, write

    report = measure(lambda text: click.echo(text, err=True))
    table(("what", "seconds", "target"), [row.cells for row in report.rows])
    for line in report.missing:
        click.echo(f"no number: {line}")
    if result is not None:
        write(report, result)


@bench.command(short_help="Join results, and draw their plots again.")
@click.argument("results", nargs=-1, required=True, type=RESULT, metavar="RESULT.json...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write to.  [default: that of the last result]",
)
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write them as one.")
def plots(results: tuple[Path, ...], out: Path | None, result: Path | None) -> None:
    """Draw the plots of one or several results of `bench ops`, and print their table.

    Of a line that several have, everybody's fastest time counts.
    """
    from based_ops.benchmarks.ops.results import joined, read
    from based_ops.benchmarks.ops.run import judged
    from based_ops.benchmarks.ops.works import entries

    try:
        report = joined([read(path) for path in results])
    except ValueError as error:
        fail(str(error))
    device = "cuda" if report.machine.get("cuda") else "cpu"
    lines = judged({line.work: line for line in report.lines}, entries(device), report.ceilings)
    report = replace(report, lines=lines)
    if result is not None:
        report.write(result)
    _show(report)
    directory = out or results[-1].parent
    _can_draw(directory)
    _draw(report, directory)


def _show(report: Report) -> None:
    from based_ops.benchmarks.ops.report import COLUMNS, rows, summary

    table(COLUMNS, rows(report))
    for line in summary(report):
        click.echo(line)


def _can_draw(directory: Path | None) -> None:
    """Ends the command, before anything is measured, if plots are wanted and cannot be drawn."""
    if directory is None:
        return
    from based_ops.benchmarks.ops.plots import PlotsUnavailable, require

    try:
        require()
    except PlotsUnavailable as error:
        fail(str(error), code=1)


def _draw(report: Report, directory: Path | None) -> None:
    if directory is None:
        return
    from based_ops.benchmarks.ops.plots import draw

    for path in draw(report, directory):
        click.echo(f"written: {path}")
