"""``based-ops completion``: the shell's own script, and what names are completed with."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from .places import is_path, shipped_specs

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "based-ops"
VARIABLE = "_BASED_OPS_COMPLETE"
"""Which click reads: the program's name in capitals."""


@click.command(short_help="The script that completes commands, options and names.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete commands, options, and names of layers and models.

    \b
        based-ops completion bash > ~/.based-ops.bash; echo '. ~/.based-ops.bash' >> ~/.bashrc
        based-ops completion zsh > ~/.based-ops.zsh; echo '. ~/.based-ops.zsh' >> ~/.zshrc
        based-ops completion fish > ~/.config/fish/completions/based-ops.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click has all of them
    script = found(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE)
    click.echo(script.source_template % script.source_vars())


def layer_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of layers, of the directory that ``--specs`` names if it is given; and files of specs."""
    if is_path(incomplete):
        return [CompletionItem(incomplete, type="file")]
    return _names(Path(ctx.params.get("specs") or shipped_specs()), incomplete)


def model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models, and files of their specs."""
    if is_path(incomplete):
        return [CompletionItem(incomplete, type="file")]
    return _names(shipped_specs() / "models", incomplete)


def _names(directory: Path, incomplete: str) -> list[CompletionItem]:
    found = sorted(path.stem for path in directory.glob("*.yaml"))
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]
