"""``based-ops demo``: the whole way from a new spec to text."""

from __future__ import annotations

import click


@click.command(short_help="The whole way from a new spec to text.")
@click.option("--quick", is_flag=True, help="A minute: fewer checks and steps, no torch.compile.")
def demo(quick: bool) -> None:
    """Declare a layer, compile, verify, train a small language model with it, and write text.

    Takes two to four minutes on two CPU cores, or one with --quick; says at its start what it takes on this
    machine, and uses the GPU where there is one.
    """
    from ..demo import QUICK, run

    run(QUICK if quick else None)
