"""``based-ops demo``: the whole way from a new spec to text."""

from __future__ import annotations

import click


@click.command(short_help="The whole way from a new spec to text.")
def demo() -> None:
    """Declare a layer, compile, verify, train a small language model with it, and write text.

    Takes a few minutes on two CPU cores; uses the GPU where there is one.
    """
    from ..demo import run

    run()
