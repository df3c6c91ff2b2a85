"""The command line: ``based-ops``."""

from __future__ import annotations

import click

from .. import __version__
from .bench import bench
from .console import plain_warnings
from .demo import demo
from .dial import dial
from .distill import distill
from .doctor import doctor
from .generate import generate
from .hippo import hippo
from .models import models
from .recall import recall
from .specs import list_specs, new, show
from .tune import tune
from .verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="based-ops")
def main() -> None:
    """Compile layer specs into registered PyTorch operators."""
    click.get_current_context().with_resource(plain_warnings())


for command in (
    generate,
    list_specs,
    show,
    new,
    verify,
    tune,
    bench,
    models,
    recall,
    dial,
    distill,
    hippo,
    doctor,
    demo,
):
    main.add_command(command)
