"""``based-ops recall``: how much of its context a layer gives back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import fail, json_option, table
from .places import PACKAGE, RECORDS
from .recall_tasks import COMMANDS

if TYPE_CHECKING:
    from ..recall.sweep import Job

SWEEP = PACKAGE / "benchmarks" / "recall" / "sweep.yaml"
WIDTHS, WORDS, LONG_RANGE, QUICK_WORDS, QUICK_LONG_RANGE = (
    SWEEP.with_name(f"{name}.yaml")
    for name in ("widths", "words", "long_range", "quick_words", "quick_long_range")
)
GROUPS = ("parity", "s3", "s5")
TASKS = (*GROUPS, "delay", "copying", "selective-copying", "listops", "digits", "pathfinder")
LENGTHS = ("zoology-64", "zoology-128", "zoology-256")
"""The recipes of Zoology's study of widths."""
COLUMNS = ("model", "bytes", "accuracy", "worst seed", "at the largest test", "seeds", "epochs")


class Listed(click.ParamType):
    """Values with commas between them."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.name = kind, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(x) for x in value.split(",") if x)
        except ValueError:
            self.fail(f"{value!r} is no list of {self.name} with commas between them", param, ctx)


@click.group(short_help="How much of its context a layer gives back.")
def recall() -> None:
    """Measure recall: which of many keys in a sequence a model can give the values of."""


OPTIONS = (
    click.option("--models", type=Listed(str, "models"), default=(), help="Points of these models only."),
    click.option(
        "--dials", type=Listed(str, "dials"), default=(), help="Points with these only: d=64,features=16"
    ),
    click.option("--seeds", type=Listed(int, "ints"), default=(), help="[default: those of the list, or 0]"),
    click.option("--lrs", type=Listed(float, "numbers"), default=(), help="[default: those of the recipe]"),
    click.option("--epochs", type=click.IntRange(min=1), help="[default: those of the recipe]"),
    click.option(
        "--budget-minutes", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True
    ),
    click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]"),
    click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="[default: bfloat16 on cuda]"),
    click.option("--graphs/--no-graphs", default=None, help="CUDA graphs of steps.  [default: on cuda]"),
)
"""Of all commands that train points into a CSV."""
POINTS = click.option(
    "--point", "points", multiple=True, metavar="TEXT", help="'based d=64 features=16'; repeatable."
)
LIST = click.Path(exists=True, dir_okay=False, path_type=Path)


def training(command: Any) -> Any:
    """The command with all options of training."""
    for option in reversed((*OPTIONS, json_option)):
        command = option(command)
    return command


@recall.command(short_help="Train the points of the pictures, into a CSV that grows.")
@click.option("--sweep", type=LIST, help="Another list.")
@POINTS
@click.option("--csv", "path", type=click.Path(dir_okay=False, path_type=Path), default=Path("recall.csv"))
@click.option("--quick", is_flag=True, help="A few points of a small vocabulary: minutes on a CPU.")
@click.option(
    "--recipe",
    type=click.Choice(("zoology", *LENGTHS)),
    default="zoology",
    show_default=True,
    help="That of figure 2, or one of Zoology's study of widths.",
)
@training
def mqar(
    sweep: Path | None, points: tuple[str, ...], path: Path, quick: bool, recipe: str, **options: Any
) -> None:
    """Train models on multi-query associative recall, and write what they reach.

    All learning rates and seeds of a point are trained at once.  Points that the CSV has already are left
    alone, so the same command goes on after Ctrl-C or when its time was too short.  docs/recall.md says more.
    """
    from ..recall.recipe import QUICK

    named = points or (QUICK if quick and sweep is None else ())
    default = WIDTHS if recipe in LENGTHS else SWEEP
    _train("small" if quick else recipe, sweep or default, named, path, **options)


@recall.command(short_help="The same for other tasks: word problems, copying, ListOps, Pathfinder.")
@click.argument("task", type=click.Choice(TASKS))
@click.option("--sweep", type=LIST, help="Another list.")
@POINTS
@click.option("--csv", "path", type=click.Path(dir_okay=False, path_type=Path), help="[default: TASK.csv]")
@click.option("--quick", is_flag=True, help="Narrow models, fewer and shorter examples: minutes on a CPU.")
@training
def synthetic(
    task: str, sweep: Path | None, points: tuple[str, ...], path: Path | None, quick: bool, **options: Any
) -> None:
    """Train models on a task besides recall, and write what they reach, as `recall mqar` does.

    parity, s3 and s5 ask for the product of all elements of a group so far; the others are of long range:
    docs/recall.md says what each asks.
    """
    of_words, of_others = (QUICK_WORDS, QUICK_LONG_RANGE) if quick else (WORDS, LONG_RANGE)
    default = of_words if task in GROUPS else of_others
    recipe = f"{task}-quick" if quick else task
    _train(recipe, sweep or default, points, path or Path(f"{task}.csv"), **options)


def _train(
    recipe: str,
    sweep: Path,
    points: Sequence[str],
    path: Path,
    models: tuple[str, ...],
    dials: tuple[str, ...],
    seeds: tuple[int, ...],
    lrs: tuple[float, ...],
    epochs: int | None,
    budget_minutes: float,
    device: str | None,
    dtype: str | None,
    graphs: bool | None,
    as_json: bool,
) -> None:
    """Trains the points that are named, or those of a list, and shows all that the file has then."""
    import torch

    from based_ops.codegen.errors import BasedOpsError

    from ..recall import sweep as sweeps
    from ..recall.recipe import RECIPES

    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        fail("--device: got 'cuda', but PyTorch sees no CUDA device")
    on_gpu = chosen.type == "cuda"
    try:
        jobs = _jobs(sweep, points, models, dials, seeds)
        settings = sweeps.Settings(
            recipe,
            epochs or RECIPES[recipe].epochs,
            lrs or RECIPES[recipe].rates,
            chosen,
            getattr(torch, dtype or ("bfloat16" if on_gpu else "float32")),
            on_gpu if graphs is None else graphs,
        )
        found = sweeps.run(jobs, settings, path, budget_minutes, lambda text: click.echo(text, err=True))
    except BasedOpsError as error:
        fail(error)
    _show(found.lines, as_json)
    if found.failed:
        fail("\n".join(f"failed: {text}" for text in found.failed), code=1)


def _jobs(
    sweep: Path,
    points: Sequence[str],
    models: tuple[str, ...],
    dials: tuple[str, ...],
    seeds: tuple[int, ...],
) -> list[Job]:
    from ..recall import sweep as sweeps
    from ..recall.designs import Design

    jobs = [sweeps.Job(Design.read(text), (0,)) for text in points] if points else sweeps.read(sweep)
    jobs = sweeps.chosen(jobs, models, dials)
    if not jobs:
        fail(f"--models and --dials leave no point of {sweep}", code=1)
    return [sweeps.Job(job.design, seeds) for job in jobs] if seeds else jobs


def _show(lines: Any, as_json: bool) -> None:
    from ..recall.results import points

    rows = []
    for point in points(lines):
        last = list(point.lines[0].accuracies)[-1]
        worst = None if len(point.lines) == 1 else round(point.of(None)[0], 3)
        row = (str(point.design), point.state_bytes, f"{point.mean():.3f}", str(worst or "-"))
        epochs = point.lines[0].epochs
        rows.append((*row, f"{point.mean(last):.3f}", len(point.lines), epochs))
    table(COLUMNS, rows, as_json)


@recall.command(short_help="Draw the pictures of a CSV.")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="RESULT.csv")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: beside the CSV]")
@click.option(
    "--records",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of `bench ops --json`, for times of windows.  [default: the checkout's]",
)
@json_option
def plots(path: Path, out: Path | None, records: Path | None, as_json: bool) -> None:
    """Draw accuracy against bytes of state, feature maps, and window widths; and judge the papers' claims."""
    from based_ops.benchmarks.ops.plots import PlotsUnavailable, require
    from based_ops.benchmarks.ops.results import read as read_records
    from based_ops.benchmarks.recall.claims import claims, winners
    from based_ops.benchmarks.recall.plots import draw
    from based_ops.codegen.errors import BasedOpsError

    from ..recall.results import points, read

    try:
        require()
        lines = read(path)
        records = records or (RECORDS if RECORDS.exists() else None)
        measured = read_records(records) if records else None
    except PlotsUnavailable as error:
        fail(error, code=1)
    except (BasedOpsError, ValueError) as error:
        fail(error)
    for written in draw(lines, out or path.parent, measured=measured):
        click.echo(f"written: {written}", err=as_json)
    found = points(lines)
    words = {True: "holds", False: "does not hold", None: "not judged"}
    table(("claim", "verdict", "by"), [(x.says, words[x.holds], x.because) for x in claims(found)], as_json)
    for text in winners(found):
        click.echo(f"a peer wins: {text}", err=as_json)


@recall.command(short_help="Draw accuracy against width, of CSVs of several lengths.")
@click.argument("paths", type=LIST, nargs=-1, required=True, metavar="RESULT.csv...")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: beside the first]")
def widths(paths: tuple[Path, ...], out: Path | None) -> None:
    """Draw Zoology's first study: which width of a model solves sequences of which length."""
    from based_ops.benchmarks.ops.plots import PlotsUnavailable, require
    from based_ops.benchmarks.recall.widths import draw
    from based_ops.codegen.errors import BasedOpsError

    from ..recall.results import read

    try:
        require()
        written = draw([line for path in paths for line in read(path)], out or paths[0].parent)
    except PlotsUnavailable as error:
        fail(str(error), code=1)
    except BasedOpsError as error:
        fail(str(error))
    for path in written:
        click.echo(f"written: {path}")


@recall.command(short_help="List the models and their dials.")
@json_option
def models(as_json: bool) -> None:
    """List the models that `recall mqar` can train, and their dials where a point does not name them."""
    from ..recall.catalogue import MODELS

    rows = [
        (name, " ".join(f"{dial}={x}" for dial, x in kind.dials.items()), kind.says)
        for name, kind in MODELS.items()
    ]
    table(("model", "dials", "what it is"), rows, as_json)


for command in COMMANDS:
    recall.add_command(command)
