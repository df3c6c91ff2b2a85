"""``based-ops hippo``: pictures of bases, states and kernels."""

from __future__ import annotations

from pathlib import Path

import click

from .console import fail


@click.group()
def hippo() -> None:
    """HiPPO's bases as state spaces."""


@hippo.command(short_help="Draw bases, signals read back, and kernels.")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def plots(out: Path) -> None:
    """Draw into OUT what each basis weighs, how a signal comes back from its state, and kernels."""
    from based_ops.benchmarks.hippo import draw
    from based_ops.benchmarks.ops.plots import PlotsUnavailable

    try:
        for written in draw(out):
            click.echo(f"written: {written}")
    except PlotsUnavailable as error:
        fail(str(error), code=1)
