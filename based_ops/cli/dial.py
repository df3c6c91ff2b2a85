"""``based-ops dial``: a layer for a budget of state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import fail, json_option, table
from .places import RECALL, RECORDS

if TYPE_CHECKING:
    from based_ops.benchmarks.recall.dial import Choice

UNITS = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20}
COLUMNS = ("layer", "bytes", "recall", "at the largest test", "µs a step", "by")
FILE = click.Path(dir_okay=False, path_type=Path)


class Bytes(click.ParamType):
    """A number of bytes, such as 64KiB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]*\.?[0-9]+) *([A-Za-z]*)", value)
        if found is None or found[2] not in UNITS or float(found[1]) <= 0:
            self.fail(f"{value!r} is no number of bytes: write 65536, 64KiB or 0.5MB", param, ctx)
        return int(float(found[1]) * UNITS[found[2]])


@click.command(short_help="Which layers fit a budget of state.")
@click.option("--bytes", "most", type=Bytes(), required=True, help="Of one sequence in one layer: 64KiB.")
@click.option(
    "--width", type=click.IntRange(16, 256), default=64, show_default=True, help="Of a head's values."
)
@click.option("--heads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Of a step.")
@click.option("--csv", "recall", type=FILE, help="Of `recall mqar`.  [default: the checkout's]")
@click.option("--records", type=FILE, help="Of `bench ops --json`.  [default: the checkout's]")
@click.option("--choose", metavar="TEXT", help="Another than the first: 'based d=64 features=16'.")
@click.option("--write", "spec", type=FILE, metavar="NAME.yaml", help="Write the spec of the choice.")
@click.option("--picture", type=click.Path(file_okay=False, path_type=Path), help="Draw it among all points.")
@json_option
def dial(
    most: int,
    width: int,
    heads: int,
    batch: int,
    recall: Path | None,
    records: Path | None,
    choose: str | None,
    spec: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """List the specs whose state fits, with their recall and the time of a step; choose one.

    Recall is that of a model with this layer in one head of the width (docs/recall.md), where the CSV has it.
    A time that was measured is that of a record; with ~ it lies between records of the same mixer, by bytes.
    """
    from based_ops.benchmarks.ops.results import read as read_records
    from based_ops.benchmarks.recall import dial as dials
    from based_ops.codegen.errors import BasedOpsError

    from ..recall.results import points, read

    recall = recall or (RECALL if RECALL.exists() else None)
    records = records or (RECORDS if RECORDS.exists() else None)
    try:
        lines = read(recall) if recall else []
        measured = read_records(records) if records else None
        found = dials.choices(most, width, heads, batch, points(lines), measured)
        if not found:
            fail(f"--bytes: no layer with values {width} wide in {heads} heads has so small a state", code=1)
        chosen = _chosen(found, choose)
        table(COLUMNS, [_row(x) for x in found], as_json)
        if spec is not None:
            dials.write(chosen, spec)
            click.echo(f"written: {spec}: {chosen.spec.describe()}, {chosen.state_bytes} bytes", err=as_json)
    except (BasedOpsError, ValueError, OSError) as error:
        fail(error)
    if picture is not None:
        _draw(lines, picture, chosen)


def _chosen(found: list[Choice], text: str | None) -> Choice:
    """The first, or the one that is named."""
    from ..recall.designs import Design

    if text is None:
        return found[0]
    wanted = Design.read(text)
    for choice in found:
        if choice.design == wanted:
            return choice
    fail(f"--choose: {wanted} is none of those that fit")


def _row(choice: Choice) -> tuple[Any, ...]:
    recall = largest = time = by = None
    if choice.recall is not None:
        recall = f"{choice.recall.mean():.3f}"
        largest = f"{choice.recall.mean(list(choice.recall.lines[0].accuracies)[-1]):.3f}"
    if choice.cost is not None:
        time = f"{'' if choice.cost.measured else '~'}{1000 * choice.cost.ms:.1f}"
        by = choice.cost.record
    return str(choice.design), choice.state_bytes, recall, largest, time, by


def _draw(lines: Any, directory: Path, chosen: Choice) -> None:
    from based_ops.benchmarks.ops.plots import PlotsUnavailable, require
    from based_ops.benchmarks.recall.plots import draw

    try:
        require()
    except PlotsUnavailable as error:
        fail(error, code=1)
    if not lines:
        fail("--picture: there is no CSV of recall to draw: name one by --csv", code=1)
    for path in draw(lines, directory, chosen.design):
        click.echo(f"written: {path}")
