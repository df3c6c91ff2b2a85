"""How commands speak: tables, progress and errors, for people on a terminal and for pipes."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.syntax import Syntax
from rich.table import Table

from ..durations import spoken

PATIENCE = 2.0
"""Seconds of work after which progress is shown."""
BREATH = 10.0
"""Seconds between two lines of progress in a pipe."""


Cell = str | int | float | bool | Sequence[str] | None
"""A cell of a table: as JSON what it is, as text a short form of it."""


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, for a command that prints tables."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], as_json: bool = False) -> None:
    """A table on standard output; in a pipe plain text in columns, nothing shortened or wrapped."""
    widths = [max(len(_text(line[i])) for line in (columns, *rows)) for i in range(len(columns))]
    with growing_table(columns, widths, as_json) as add:
        for row in rows:
            add(row)


@contextmanager
def growing_table(
    columns: Sequence[str], widths: Sequence[int], as_json: bool = False
) -> Iterator[Callable[[Sequence[Cell]], None]]:
    """A function that adds a row to a table.

    In a pipe a row is seen as soon as it is added; `widths` are what the cells will probably take.  On a
    terminal, where progress is shown meanwhile, the table is drawn at the end.
    """
    if as_json:
        yield from _json_rows(columns)
        return
    console = Console(highlight=False)
    if console.is_terminal:
        drawn = Table(header_style="bold")
        for column in columns:
            drawn.add_column(column, overflow="fold")
        count = 0

        def draw(row: Sequence[Cell]) -> None:
            nonlocal count
            count += 1
            drawn.add_row(*map(_text, row))

        try:
            yield draw
        finally:
            if count:
                console.print(drawn, markup=False)
        return
    padded = [max(len(column), width) for column, width in zip(columns, widths, strict=True)]

    def line(row: Sequence[Cell]) -> None:
        cells = (_text(cell).ljust(width) for cell, width in zip(row, padded, strict=True))
        click.echo("  ".join(cells).rstrip())  # which flushes

    line(columns)
    yield line


def _json_rows(columns: Sequence[str]) -> Iterator[Callable[[Sequence[Cell]], None]]:
    """One array of objects, each in a line of its own."""
    separator = "["

    def add(row: Sequence[Cell]) -> None:
        nonlocal separator
        click.echo(f"{separator}\n  {_json(dict(zip(columns, row, strict=True)))}", nl=False)
        separator = ","

    try:
        yield add
    finally:
        click.echo("[]" if separator == "[" else "\n]")


def document(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _json(row: Mapping[str, Cell]) -> str:
    """A row as JSON, which has no numbers that are not finite."""
    unusual = {key: str(x) for key, x in row.items() if isinstance(x, float) and not math.isfinite(x)}
    return json.dumps({**row, **unusual}, ensure_ascii=False)


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case float():
            return f"{cell:.1e}"
        case str() | int():
            return str(cell)
    return ", ".join(cell)


def source(text: str, language: str) -> None:
    """Source text on standard output, coloured on a terminal."""
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text.rstrip("\n"), language, background_color="default"), soft_wrap=True)
    else:
        sys.stdout.write(text)


def fail(what: str | Exception, code: int = 2) -> NoReturn:
    """Ends the command with a message on standard error, and with what to do next where an error says it."""
    click.echo(str(what), err=True)
    if step := getattr(what, "next_step", ""):
        click.echo(f"next: {step}", err=True)
    raise SystemExit(code)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows warnings of specs as lines of a compiler, without Python's own place and source."""
    from based_ops.codegen.errors import SpecWarning

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, SpecWarning):
                click.echo(f"warning: {message}", err=True)
            else:
                usual(message, category, *rest, **named)

        warnings.showwarning = show
        yield


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each piece of work begun.

    What takes longer than two seconds is shown on standard error with the time left, judged by the pieces
    that are done: on a terminal as a bar, in a pipe in a line now and then.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total)
        return
    shown = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(*shown, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task("", total=total)
    # Work that is done by then shows no bar at all.
    timer = Timer(PATIENCE, bar.start)
    timer.daemon = True
    begun = 0

    def begin(name: str) -> None:
        nonlocal begun
        bar.update(task, description=name, completed=begun)
        begun += 1

    timer.start()
    try:
        yield begin
    finally:
        timer.cancel()
        if bar.live.is_started:
            bar.stop()


def _lines(what: str, total: int | None) -> Callable[[str], None]:
    """Progress in a pipe: a line when a piece is begun, but for the first seconds and soon after another."""
    start = time.monotonic()
    begun, due = 0, start + PATIENCE

    def begin(name: str) -> None:
        nonlocal begun, due
        now, done, begun = time.monotonic(), begun, begun + 1
        if now < due:
            return
        due = now + BREATH
        left = f", about {spoken((now - start) / done * (total - done))} left" if total and done else ""
        click.echo(f"{what} {begun} of {total or '?'}: {name}{left}", err=True)

    return begin
