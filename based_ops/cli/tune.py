"""``based-ops tune``: measure candidates and record the best for `generate`."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from based_ops.codegen.names import BACKENDS, PASSES

from .completion import layer_names
from .console import fail, json_option, table
from .places import checkout, find_spec, shipped_specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from based_ops.codegen.schedule.model import Schedule
    from based_ops.codegen.spec.model import LayerSpec

    from ..tune.search import Search
    from ..tune.trials import Job, Outcome, Progress

DTYPES = ("bfloat16", "float16", "float32")
COLUMNS = (
    "layer",
    "pass",
    "dtype",
    "backend",
    "shape",
    "policy ms",
    "best ms",
    "of limit",
    "tried",
    "failed",
)


class Extent(click.ParamType):
    """Batch, heads and tokens: ``16,16,8192``."""

    name = "B,H,T"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parts = str(value).split(",")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            self.fail(
                f"{value!r} must be three positive integers: batch, heads and tokens, such as 16,16,8192"
            )
        return tuple(map(int, parts))


@click.command(short_help="Measure schedules and record the best.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=layer_names)
@click.option("--backend", type=click.Choice(BACKENDS), help="[default: triton; on a CPU torch]")
@click.option("--pass", "passes", type=click.Choice(PASSES), multiple=True, help="May be repeated.")
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="[default: bfloat16]")
@click.option("--device", type=click.Choice(("cuda", "cpu")), help="[default: cuda if there is one]")
@click.option(
    "--budget-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time for all layers and passes together.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Workers that compile.  [default: all cores]")
@click.option(
    "--shape",
    "shapes",
    type=Extent(),
    multiple=True,
    help="What to time, instead of each pass's usual shape; repeated, for launch plans.",
)
@click.option(
    "--plans-only", is_flag=True, help="Tune launch plans, and leave programs as they are recorded."
)
@click.option(
    "--records",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write to.  [default: the checkout's codegen/schedule/records]",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of what was measured already.  [default: tune.jsonl in the cache]",
)
@json_option
def tune(
    names: tuple[str, ...],
    backend: str | None,
    passes: tuple[str, ...],
    dtypes: tuple[str, ...],
    device: str | None,
    budget_minutes: float,
    jobs: int | None,
    shapes: tuple[tuple[int, int, int], ...],
    plans_only: bool,
    records: Path | None,
    journal: Path | None,
    as_json: bool,
) -> None:
    """Search the schedules of layers NAME (shipped names or spec files; all shipped if none is given).

    Each candidate is compiled, compared with float64 mathematics, run three times for equal bits, and only
    then timed.  After the programs of a pass comes its launch plan: into how many segments a sequence is cut,
    and when scores are computed directly.  It is judged at several shapes at once.

    The best become tuning records, which `based-ops generate` reads; they say how fast each pass is and how
    near to the limit that the memory sets.  Ctrl-C and SIGTERM keep what was found; the same command goes on
    where it was interrupted.
    """
    from ..tune.measure import PLANNED, Shape, default_shape
    from ..tune.plans import has_plan
    from ..tune.trials import Job

    device = device or _default_device()
    backend = backend or ("triton" if device == "cuda" else "torch")
    if device == "cpu" and backend != "torch":
        raise click.UsageError(f"--backend {backend} is tuned on a GPU; on a CPU only torch is")
    if records is None and checkout() is None:
        raise click.UsageError("--records is required: this is an installed package, not a checkout")
    specs = [find_spec(name, None) for name in names] or _shipped()
    given = tuple(Shape(*shape) for shape in shapes)
    wanted: list[Job] = []
    for spec in specs:
        for dtype in dtypes or ("bfloat16",):
            if dtype not in spec.dtypes:
                if dtypes and names:
                    raise click.UsageError(
                        f"--dtype: {spec.name} has no {dtype}, only {', '.join(spec.dtypes)}"
                    )
                continue
            for which in PASSES:
                if passes and which not in passes:
                    continue
                if not plans_only:
                    usual = given[0] if given else default_shape(spec, which, device)
                    one = usual._replace(length=1) if which == "step" else usual
                    wanted.append(Job(spec, backend, which, dtype, device, (one,)))
                if has_plan(spec, which, backend, dtype):
                    several = given or PLANNED[device]
                    wanted.append(Job(spec, backend, which, dtype, device, several, plan=True))
    _tune(wanted, device, 60 * budget_minutes, jobs or os.cpu_count() or 1, records, journal, as_json)


def _tune(
    wanted: list[Job],
    device: str,
    seconds: float,
    jobs: int,
    records: Path | None,
    journal: Path | None,
    as_json: bool,
) -> None:
    from based_ops.codegen.schedule.record_file import RecordError
    from based_ops.codegen.schedule.records import DIRECTORY

    from ..cache import cache_directory
    from ..tune import results
    from ..tune.journal import Journal
    from ..tune.pool import Pool, Worker
    from ..tune.search import Search
    from ..tune.trials import CLOCK_SECONDS

    records = records or DIRECTORY
    kept = Journal(journal or cache_directory() / "tune.jsonl")
    workers, timer = Pool(jobs), Worker()
    found: dict[Job, Outcome] = {}
    interrupted = False
    try:
        machine = timer.ask({"do": "machine", "device": device}, CLOCK_SECONDS)
        if "why" in machine:
            fail(f"--device {device}: {machine['why']}", code=1)
        with tempfile.TemporaryDirectory(prefix="based_ops_tune_") as directory:
            search = Search(workers, timer, kept, machine, Path(directory))
            try:
                with _terminated_like_interrupted():
                    _run(search, wanted, seconds, found)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                workers.close()
    finally:
        workers.close()
        timer.close()
    good = [outcome for outcome in found.values() if outcome.why is None]
    try:
        path = results.write(records, good, machine, date.today())
    except RecordError as error:
        fail(error, code=1)
    if good:
        table(COLUMNS, [_row(outcome, machine) for outcome in good], as_json)
    for outcome in found.values():
        if outcome.why is not None:
            click.echo(f"{outcome.job}: the policy's own choice fails: {outcome.why}", err=True)
    if path is not None:
        click.echo(f"{path}: written; next: based-ops generate", err=as_json)
    if interrupted:
        raise SystemExit(130)
    if not good:
        fail("nothing could be tuned", code=1)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Schedulers of clusters send SIGTERM where a person presses Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(search: Search, wanted: list[Job], seconds: float, found: dict[Job, Outcome]) -> None:
    """Work on every job in turn, each with its share of the time that is left; `found` holds the outcomes."""
    end = monotonic() + seconds
    earlier: dict[tuple[LayerSpec, str], dict[str, Schedule]] = {}
    with _shown(seconds) as report:
        search.prepare(wanted, end)
        for number, job in enumerate(wanted):
            deadline = monotonic() + (end - monotonic()) / (len(wanted) - number)
            known = earlier.setdefault((job.spec, job.dtype), {})
            for outcome in search.run(job, deadline, report, known):
                found[job] = outcome
            known.update(found[job].schedules if job in found else {})


@contextmanager
def _shown(seconds: float) -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress: a bar on a terminal, else a line for every new best."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console, transient=True
    )
    task = bar.add_task("", total=seconds)
    start = monotonic()
    told: dict[Job, float] = {}

    def report(progress: Progress) -> None:
        line = _line(progress)
        bar.update(task, completed=min(seconds, monotonic() - start), description=line)
        best = progress.best_ms
        if not console.is_terminal and best is not None and told.get(progress.job) != best:
            told[progress.job] = best
            click.echo(line, err=True)

    if console.is_terminal:
        bar.start()
    try:
        yield report
    finally:
        bar.stop()


def _line(progress: Progress) -> str:
    best = "" if progress.best_ms is None else f", best {progress.best_ms:.4g} ms"
    policy = "" if progress.policy_ms is None else f" (policy {progress.policy_ms:.4g})"
    return f"{progress.job}: {progress.tried} tried, {progress.failed} failed{best}{policy}"


def _row(outcome: Outcome, machine: dict[str, Any]) -> tuple[str, ...]:
    from ..tune.results import of_limit

    job, progress = outcome.job, outcome.progress
    return (
        job.spec.name,
        job.what,
        job.dtype,
        job.backend,
        f"{len(job.shapes)} shapes" if job.plan else str(job.shapes[0]),
        f"{outcome.policy_ms:.4g}",
        f"{outcome.ms:.4g}",
        f"{100 * of_limit(outcome, machine):.0f} %",
        str(progress.tried),
        str(progress.failed),
    )


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _shipped() -> list[LayerSpec]:
    from based_ops.codegen.spec.load import load_dir

    return list(load_dir(shipped_specs()).values())
