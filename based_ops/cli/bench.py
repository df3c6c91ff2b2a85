"""``based-ops bench``: how fast everything is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .bench_train import train
from .console import fail, table
from .files import replace_text
from .places import checkout

if TYPE_CHECKING:
    from based_ops.benchmarks.models import results as models
    from based_ops.benchmarks.ops.results import Report

RESULT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(short_help="Measure how fast everything is here.")
def bench() -> None:
    """Measure how fast everything is on this machine, beside other libraries."""


bench.add_command(train)


@bench.command(short_help="Operators: time, bandwidth, memory, beside other libraries.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@click.option("--only", multiple=True, metavar="GROUP", help="Lines of this group only; may be repeated.")
@click.option("--sweep/--no-sweep", default=True, help="Also lengths and batch sizes without targets.")
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write the result.")
@click.option("--resume", is_flag=True, help="Keep that file's lines; on the same machine and code only.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw PNGs into DIRECTORY.")
@click.option(
    "--budget-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Begin no line after this time.",
)
def ops(
    device: str | None,
    only: tuple[str, ...],
    sweep: bool,
    result: Path | None,
    resume: bool,
    plots: Path | None,
    budget_minutes: float,
) -> None:
    """Time every operator on every backend, and other libraries on the same work.

    What is measured, and what it should reach, stands in benchmarks/targets.yaml.  Other libraries that are
    not installed are named and left out.  Numbers appear as they are found; the result is written after every
    line, and --resume goes on where a run was out of time.  Groups are those of the file; --only takes the
    group of a sweep too.
    """
    from based_ops.benchmarks.ops.results import read
    from based_ops.benchmarks.ops.run import run
    from based_ops.benchmarks.ops.works import entries

    device = _device(device)
    try:
        chosen = entries(device, sweep, only)
    except ValueError as error:
        fail(f"--only: {error}")
    _can_draw(plots)
    if resume and result is None:
        raise click.UsageError("--resume needs --json, the file to go on with")

    def save(report: Report) -> None:
        if result is not None:
            report.write(result)

    try:
        earlier = read(result) if resume and result is not None and result.exists() else None
        report = run(chosen, device, budget_minutes, lambda text: click.echo(text, err=True), save, earlier)
    except ValueError as error:
        fail(f"--resume: {error}")
    _show(report)
    _draw(report, plots)


@bench.command(short_help="Time to generate, to compile, and to load from the caches.")
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write the result.")
def compile(result: Path | None) -> None:
    """Time what a user waits for before anything runs: generating, importing, first calls of kernels.

    Each is measured in new processes; first calls with empty caches on disk, then with full ones.
    """
    from based_ops.benchmarks.compile_time import measure, write

    report = measure(lambda text: click.echo(text, err=True))
    table(("what", "seconds", "target"), [row.cells for row in report.rows])
    for line in report.missing:
        click.echo(f"no number: {line}")
    if result is not None:
        write(report, result)


@bench.command(short_help="Draw the plots of a result.")
@click.argument("result", type=RESULT, metavar="RESULT.json")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write to.  [default: that of the result]",
)
def plots(result: Path, out: Path | None) -> None:
    """Draw the plots of a result of `bench ops`, `generate` or `prefill`, and print its table."""
    from based_ops.benchmarks.models import results
    from based_ops.benchmarks.ops.results import read

    _can_draw(out or result.parent)
    try:
        if results.is_one(result):
            return _show_models(results.read(result), out or result.parent)
        report = read(result)
    except ValueError as error:
        fail(error)
    _show(report)
    _draw(report, out or result.parent)


def _of_models(function: Callable[..., None]) -> Callable[..., None]:
    """The options of `generate` and `prefill`."""
    positive = click.IntRange(min=1)
    for option in (
        click.option(
            "--budget-minutes",
            type=click.FloatRange(min=0),
            default=30.0,
            show_default=True,
            help="Begin no point after this time.",
        ),
        click.option(
            "--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw PNGs into DIRECTORY."
        ),
        click.option(
            "--resume", is_flag=True, help="Keep that file's points; on the same machine and code only."
        ),
        click.option(
            "--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write the result."
        ),
        click.option("--prompt", "prompts", type=positive, multiple=True, help="Tokens; may be repeated."),
        click.option(
            "--batch",
            "batches",
            type=click.IntRange(min=0),
            multiple=True,
            help="May be repeated; on a GPU 0 is the largest that fits.",
        ),
        click.option("--model", "models", multiple=True, help="A model or its spec file; may be repeated."),
        click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]"),
    ):
        function = option(function)
    return function


@bench.command(short_help="Language models: tokens a second.")
@_of_models
@click.option(
    "--new", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens after a prompt."
)
def generate(new: int, **options: Any) -> None:
    """Time the tokens that language models generate, beside what memory and products allow.

    Without options: on a CPU the tiny models, a minute; on a GPU Based, a Transformer of equal size, and
    models of Transformers and flash-linear-attention where those are installed.  Weights are drawn.
    """
    _models("generate", new, **options)


@bench.command(short_help="Language models: time of prompts.")
@_of_models
def prefill(**options: Any) -> None:
    """Time the prompts that language models read, beside what memory and products allow.

    The same models as in `bench generate`, the last token's logits alone.
    """
    _models("prefill", 0, **options)


@bench.command(short_help="Language models: the kernels of a step.")
@click.option("--model", default="based-1b", show_default=True, help="A model or its spec file.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--prompt", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@click.option("--way", help="As in `bench generate`.  [default: `graph, blocks`; on a CPU `eager`]")
def step(model: str, batch: int, prompt: int, device: str | None, way: str | None) -> None:
    """Show where the time of a step of `bench generate` goes, kernel by kernel.

    Ways are `eager`, `blocks`, and in a CUDA graph `graph`, `graph, blocks` and `graph, whole`.  Kernels of
    the same name and grid are one row, in the order in which they first run; a grid is its programs, and the
    threads of each.  Waits are those of the device, from the end of a kernel to the beginning of the next.
    """
    from based_ops.benchmarks.models.points import WAYS
    from based_ops.benchmarks.models.profile import COLUMNS, cells, profile, summary

    device = _device(device)
    way = way or ("graph, blocks" if device == "cuda" else "eager")
    if way not in WAYS:
        fail(f"--way: got {way!r}, not one of {', '.join(map(repr, WAYS))}")
    found = profile(model, device, batch, prompt, way)
    table(COLUMNS, [cells(kernel, found) for kernel in found.kernels])
    click.echo(summary(found))


def _models(
    task: str,
    new: int,
    device: str | None,
    models: tuple[str, ...],
    batches: tuple[int, ...],
    prompts: tuple[int, ...],
    result: Path | None,
    resume: bool,
    plots: Path | None,
    budget_minutes: float,
) -> None:
    """`bench generate` and `bench prefill`: writes after every point."""
    from based_ops.benchmarks.models import points, results
    from based_ops.benchmarks.models.run import run

    device = _device(device)
    _can_draw(plots)
    if resume and result is None:
        raise click.UsageError("--resume needs --json, the file to go on with")

    def save(report: results.Report) -> None:
        if result is not None:
            report.write(result)

    chosen = points.chosen(task, device, models, batches, prompts, new)
    try:
        earlier = results.read(result) if resume and result is not None and result.exists() else None
        report = run(chosen, device, budget_minutes, lambda text: click.echo(text, err=True), save, earlier)
    except ValueError as error:
        fail(f"--resume: {error}")
    _show_models(report, plots)


def _device(device: str | None) -> str:
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        fail("--device: got 'cuda', but PyTorch sees no CUDA device")
    return device


def _show_models(report: models.Report, directory: Path | None) -> None:
    from based_ops.benchmarks.models.plots import draw
    from based_ops.benchmarks.models.results import COLUMNS, cells, summary

    table(COLUMNS, [cells(line) for line in report.lines])
    for line in summary(report):
        click.echo(line)
    for x in report.missing:
        click.echo(f"no number: {x.point}: {x.reason}")
    if report.not_measured:
        click.echo(f"not measured for want of time: {len(report.not_measured)} points")
    if directory is not None:
        for path in draw(report, directory):
            click.echo(f"written: {path}")


@bench.command(short_help="Rewrite the tables of documents from results.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if anything would change.")
def tables(check: bool) -> None:
    """Rewrite the tables of measurements in the checkout's documents from the files that they name."""
    from based_ops.benchmarks.ops.tables import DOCUMENTS, rewritten

    root = checkout()
    if root is None:
        raise click.UsageError("this is an installed package, not a checkout: there are no documents")
    stale = []
    for path in (root / name for name in DOCUMENTS):
        before = path.read_text(encoding="utf-8")
        try:
            after = rewritten(before, root)
        except (ValueError, OSError) as error:
            fail(f"{path}: {error}")
        if after == before:
            continue
        stale.append(path)
        if not check:
            replace_text(path, after)
    for path in stale:
        click.echo(f"{'stale' if check else 'updated'}: {path}")
    if check and stale:
        fail("to mend this, run: based-ops bench tables", code=1)


def _show(report: Report) -> None:
    from based_ops.benchmarks.ops.report import COLUMNS, rows, summary

    table(COLUMNS, rows(report))
    for line in summary(report):
        click.echo(line)


def _can_draw(directory: Path | None) -> None:
    """Ends the command, before anything is measured, if plots are wanted and cannot be drawn."""
    if directory is None:
        return
    from based_ops.benchmarks.ops.plots import PlotsUnavailable, require

    try:
        require()
    except PlotsUnavailable as error:
        fail(error, code=1)


def _draw(report: Report, directory: Path | None) -> None:
    if directory is None:
        return
    from based_ops.benchmarks.ops.plots import draw

    for path in draw(report, directory):
        click.echo(f"written: {path}")
