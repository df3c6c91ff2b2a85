"""``based-ops recall``: how much of its context a model gives back."""

from __future__ import annotations

import click

from .recall_tasks import COMMANDS


@click.group()
def recall() -> None:
    """How much of its context a model gives back."""


for command in COMMANDS:
    recall.add_command(command)
