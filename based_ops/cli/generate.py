"""``based-ops generate``: specs in, kernel sources out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completion import layer_names
from .console import fail, progress
from .files import is_generated, replace_text
from .places import checkout, command_line, shipped_specs, specs_option

if TYPE_CHECKING:
    from based_ops.codegen.artifacts import Changes

WORTH = 4
"""Layers for which a process more is started: it takes a second."""


@click.command(short_help="Compile specs into kernels.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=layer_names)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if anything would change.")
@specs_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Package to write.  [default: the checkout's generated/]",
)
def generate(names: tuple[str, ...], check: bool, specs: Path | None, out: Path | None) -> None:
    """Compile specs into the package of kernels OUT; all specs, or only those called NAME.

    A wrong spec ends the command with exit code 2 and nothing written.  Files of layers that no longer have
    a spec are removed.  Importing OUT registers its operators:

    \b
        based-ops generate --specs my_specs --out my_kernels
        python -c "import based_ops, my_kernels; print(based_ops.get('my_layer'))"
    """
    from based_ops.codegen import pipeline
    from based_ops.codegen.errors import SpecErrors
    from based_ops.codegen.schedule.record_file import RecordError

    source, target = _places(specs, out)
    work = pipeline.compare if check else pipeline.generate
    total = len(names) or len(list(source.glob("*.yaml")))
    try:
        with progress("comparing" if check else "generating", total) as begin:
            with _workers(total) as each:
                changes = work(source, target, names, begin, each)
    except (SpecErrors, RecordError) as errors:
        fail(errors)
    except OSError as error:
        fail(f"{error.filename or target}: {error.strerror}")
    stale_schemas = _schemas(source, write=not check) if source == shipped_specs() else []
    if not check:
        _report(changes, target)
        return
    if not changes and not stale_schemas:
        click.echo(f"{target}: up to date, {changes.unchanged} files")
        return
    _explain(changes, target, stale_schemas, ["based-ops", "generate", *_options(specs, out), *names])
    raise SystemExit(1)


@contextmanager
def _workers(layers: int) -> Iterator[Any]:
    """What applies a function to many layers: processes, where those are worth their start."""
    count = min(os.cpu_count() or 1, layers // WORTH)
    if count < 2:
        yield map
        return
    # Spawned, not forked: this process may have threads.
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        yield pool.map


def _places(specs: Path | None, out: Path | None) -> tuple[Path, Path]:
    """Where to read and where to write; a usage error if the latter is not said or not ours."""
    root = checkout()
    if out is None:
        if root is None:
            raise click.UsageError("--out is required: this is an installed package, not a checkout")
        if specs is not None and specs.resolve() != shipped_specs():
            raise click.UsageError("--out is required with --specs: say which package the kernels go to")
        return shipped_specs(), root / "generated"
    if not out.resolve().name.isidentifier():
        raise click.UsageError(f"--out: {out.name!r} cannot be the name of a Python package")
    if out.is_dir() and not _is_ours(out):
        raise click.UsageError(f"--out: {out} holds other files; name a new directory or a generated one")
    return specs or shipped_specs(), out


def _is_ours(out: Path) -> bool:
    """Whether a directory is empty or a generated package."""
    if (out / "__init__.py").is_file():
        return is_generated(out / "__init__.py")
    return not any(entry for entry in out.iterdir() if not entry.name.startswith((".", "__pycache__")))


def _options(specs: Path | None, out: Path | None) -> list[str | Path]:
    chosen: list[str | Path] = []
    for option, value in (("--specs", specs), ("--out", out)):
        chosen += [option, value] if value is not None else []
    return chosen


def _schemas(specs: Path, write: bool) -> list[Path]:
    """The schemas beside the shipped specs that do not say what the model says; rewritten if `write`."""
    from based_ops.codegen.spec.schema import SCHEMA_FILE, model_schema_text, schema_text

    texts = {specs / SCHEMA_FILE: schema_text(), specs / "models" / SCHEMA_FILE: model_schema_text()}
    stale = [
        path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale if write else ():
        replace_text(path, texts[path])
    return stale


def _report(changes: Changes, out: Path) -> None:
    """Says what was done."""
    _name(changes, out, ("new", "updated", "removed"))
    written, removed = len(changes.missing) + len(changes.stale), len(changes.orphaned)
    click.echo(f"{out}: {written} files written, {removed} removed, {changes.unchanged} unchanged")


def _name(changes: Changes, out: Path, words: tuple[str, str, str]) -> None:
    """One line a file: what happened to it, and its path."""
    for word, paths in zip(words, (changes.missing, changes.stale, changes.orphaned), strict=True):
        for path in paths:
            click.echo(f"{word}: {out / path}")


def _explain(changes: Changes, out: Path, schemas: list[Path], command: list[str | Path]) -> None:
    """Names what differs and prints the commands that mend it."""
    _name(changes, out, ("missing", "stale", "orphaned"))
    for path in schemas:
        click.echo(f"stale: {path}")
    foreign = [out / path for path in changes.orphaned if not is_generated(out / path)]
    click.echo("\nto mend this, run:", err=True)
    if changes.missing or changes.stale or schemas or len(foreign) < len(changes.orphaned):
        click.echo(f"  {command_line(command)}", err=True)
    if foreign:
        click.echo(f"  {command_line(['rm', *foreign])}    # not written by based-ops", err=True)
