"""``based-ops recall tasks``, ``fields`` and ``slices``: recall from real text."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from based_ops.codegen.errors import BasedOpsError

from .console import Cell, fail, json_option, table
from .files import replace_text

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Score a checkpoint in swde, fda and squad_completion.")
@click.argument("checkpoint")
@click.option("--task", "tasks", multiple=True, help="One of them, or of --data; may be repeated.")
@click.option(
    "--data",
    multiple=True,
    metavar="TASK=FILE",
    help="Examples of a task, a JSON object with `text` and `value` a line, instead of a download.",
)
@click.option("--tokenizer", help="A name or folder for Transformers.  [default: the checkpoint's own]")
@click.option("--max-length", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="The first so many examples of each task.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@click.option("--out", type=FILE, help="Write the scores to this file as JSON.")
@json_option
def tasks(
    checkpoint: str,
    tasks: tuple[str, ...],
    data: tuple[str, ...],
    tokenizer: str | None,
    max_length: int,
    limit: int | None,
    batch: int,
    device: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run recall tasks of lm-evaluation-harness, version 1, on a CHECKPOINT, through Transformers.

    It is a folder, or a repository of the hub.  `based-ops recall fields` makes examples without a network.
    """
    from based_ops.recall.tasks import harness

    files = dict(_named_file(x) for x in data)
    try:
        found = harness.scores(
            checkpoint,
            tasks or tuple(files) or tuple(harness.TASKS),
            max_length,
            files,
            tokenizer,
            limit,
            batch,
            _device(device),
        )
    except (BasedOpsError, OSError) as error:
        fail(error)
    rows: list[tuple[Cell, ...]] = [
        (x.task, round(x.contains, 4), round(x.error, 4), x.examples, x.version, x.max_length, x.cut)
        for x in found
    ]
    columns = ("task", "contains", "error", "examples", "version", "max_length", "cut on the left")
    table(columns, [_percent(row) for row in rows] if not as_json else rows, as_json)
    if out is not None:
        _write(out, {"checkpoint": checkpoint, "limit": limit, "scores": [asdict(x) for x in found]})


@click.command(short_help="Make a recall task of this machine's packages and manual pages.")
@click.argument("out", type=FOLDER)
@click.option(
    "--packages", multiple=True, type=FOLDER, help="A folder with packages.  [default: where Python looks]"
)
def fields(out: Path, packages: tuple[Path, ...]) -> None:
    """Write train.jsonl, validation.jsonl and text/ to the folder OUT.

    An example is a document with its fields, one of their keys again, and the value that has to follow.  On
    which side a document is follows from its name.  text/ has those that are not asked about, with answers,
    to train on.
    """
    from based_ops.recall.tasks import fields as task

    try:
        made = task.make(out, packages or None)
    except (BasedOpsError, OSError) as error:
        fail(error)
    click.echo(f"{made.packages} packages, {made.pages} manual pages")
    click.echo(f"wrote {out}: {made.train} examples to train on, {made.validation} to ask")


@click.command(short_help="Perplexity of text, split by what the context repeats.")
@click.argument("checkpoint", type=FOLDER)
@click.argument("text", nargs=-1, required=True, type=FOLDER)
@click.option("--length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens seen.")
@click.option("--sequences", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--order", type=click.IntRange(min=2), default=2, show_default=True, help="2 is bigrams.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@json_option
def slices(
    checkpoint: Path,
    text: tuple[Path, ...],
    length: int,
    sequences: int,
    order: int,
    batch: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Split the perplexity of held out text into associative recall hits and all other tokens.

    CHECKPOINT is a folder with a model, and TEXT the folders that it was trained on.  A hit ends a bigram
    that stood earlier in the same context, unless the training text has it more than 1250 times.
    """
    from based_ops.models import load
    from based_ops.recall.tasks import recall_slices
    from based_ops.train.text import read, rows_of, tokenizer_of

    try:
        net = load(checkpoint, _device(device))
        words = read(text, tokenizer=tokenizer_of(checkpoint))
        rows = rows_of(words.held_out, length, sequences)
        vocabulary = net.spec.vocabulary
        if words.tokenizer.vocabulary > vocabulary:
            fail(f"{checkpoint}: has {vocabulary} tokens, its tokenizer {words.tokenizer.vocabulary}")
        found = recall_slices(
            lambda ids: net(ids)[0], rows, words.train, vocabulary, order, device=_device(device), batch=batch
        )
    except (BasedOpsError, OSError) as error:
        fail(error)
    every = found.all
    lines: list[tuple[Cell, ...]] = [
        (name, x.tokens, f"{x.tokens / every.tokens:.4f}", f"{x.loss:.4f}", f"{x.perplexity:.3f}")
        for name, x in (("hits", found.hits), ("others", found.others), ("all", every))
    ]
    table(("tokens", "count", "share", "nats", "perplexity"), lines, as_json)


COMMANDS = (tasks, fields, slices)
"""What the group `recall` has of this."""


def _percent(row: tuple[Cell, ...]) -> tuple[Cell, ...]:
    return tuple(f"{x:.4f}" if isinstance(x, float) else x for x in row)


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise click.UsageError(f"--data: got {text!r}, must be TASK=FILE")
    return name, Path(path)


def _write(path: Path, data: dict[str, Any]) -> None:
    replace_text(path, json.dumps(data, indent=2) + "\n")


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")
