"""How commands speak: tables, progress and errors, for people on a terminal and for pipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table

PATIENCE = 2.0
"""Seconds of work after which progress is shown."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on standard output; in a pipe plain text in columns, nothing shortened or wrapped."""
    console = Console(highlight=False)
    if console.is_terminal:
        drawn = Table(title=title, title_justify="left", header_style="bold")
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn, markup=False)
        return
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    if title:
        click.echo(title)
    for line in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def source(text: str, language: str) -> None:
    """Source text on standard output, coloured on a terminal."""
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text.rstrip("\n"), language, background_color="default"), soft_wrap=True)
    else:
        sys.stdout.write(text)


def fail(text: str, code: int = 2) -> NoReturn:
    """Ends the command with a message on standard error."""
    click.echo(text, err=True)
    raise SystemExit(code)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each piece of work begun.

    A bar appears on standard error if that is a terminal and the work takes longer than two seconds.
    """
    console = Console(stderr=True)
    shown = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(*shown, TimeElapsedColumn(), console=console, transient=True)
    task = bar.add_task("", total=total)
    # Work that is done by then shows no bar at all.
    timer = Timer(PATIENCE, bar.start)
    timer.daemon = True
    begun = 0

    def begin(name: str) -> None:
        nonlocal begun
        bar.update(task, description=name, completed=begun)
        begun += 1

    if console.is_terminal:
        timer.start()
    try:
        yield begin
    finally:
        timer.cancel()
        if bar.live.is_started:
            bar.stop()
