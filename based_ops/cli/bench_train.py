"""``based-ops bench train``: models trained beside one another, and how fast."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from based_ops.codegen.errors import BasedOpsError

from .console import fail, table

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(short_help="Train language models beside one another.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@click.option("--text", multiple=True, type=FOLDER, help="Folders.  [default: Python's library and packages]")
@click.option("--model", "models", multiple=True, help="Of these only; may be repeated.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--lr", "rates", multiple=True, type=float, help="Learning rates to try.  [default: 2e-3]")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Sequences a step.")
@click.option("--length", type=click.IntRange(min=2), default=2048, show_default=True, help="Bytes of each.")
@click.option("--quality/--no-quality", default=True, help="Whether models are trained at all.")
@click.option("--speed/--no-speed", default=True, help="Whether steps of larger models are timed.")
@click.option("--json", "result", type=click.Path(dir_okay=False, path_type=Path), help="Write the result.")
@click.option("--resume", is_flag=True, help="Keep that file's points; on the same machine and text only.")
@click.option(
    "--budget-minutes",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Begin no point after this time.",
)
def train(
    device: str | None,
    text: tuple[Path, ...],
    models: tuple[str, ...],
    seeds: int,
    rates: tuple[float, ...],
    steps: int,
    batch: int,
    length: int,
    quality: bool,
    speed: bool,
    result: Path | None,
    resume: bool,
    budget_minutes: float,
) -> None:
    """Train models of equal weights on the same bytes, and time steps of larger ones.

    Of the small models: bits a byte of held out text, of recall hits and of the rest, fields that are found
    again in packages and manual pages, with the spread over seeds.  Of based-360m and a Transformer of equal
    size, on a GPU: tokens a second, and model-flops utilisation, at 2048 tokens in bfloat16.  Models of
    flash-linear-attention join where it is installed.
    """
    import torch

    from based_ops.benchmarks.train import contenders, results, run
    from based_ops.benchmarks.train.text import gather
    from based_ops.train import Settings, read

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        fail("--device: got 'cuda', but PyTorch sees no CUDA device")
    if resume and result is None:
        raise click.UsageError("--resume needs --json, the file to go on with")
    chosen = models or (*contenders.SMALL, *contenders.FLA)
    timed = run.timed(device) if speed else ()
    todo = run.points(chosen if quality else (), rates or (2e-3,), seeds, timed)

    def save(report: results.Report) -> None:
        if result is not None:
            report.write(result)

    with tempfile.TemporaryDirectory() as place:
        try:
            folders, asked = (list(text), []) if text else gather(Path(place))
            recipe = Settings(
                steps, batch, length, warmup=steps // 10, dtype="bfloat16" if device == "cuda" else "float32"
            )
            words = read(folders)
            earlier = results.read(result) if resume and result is not None and result.exists() else None
            report = run.run(
                todo,
                words,
                asked,
                recipe,
                device,
                budget_minutes,
                lambda line: click.echo(line, err=True),
                save,
                earlier,
            )
        except (ValueError, BasedOpsError) as error:
            fail(error)
    for columns, rows in (
        (results.QUALITY, list(results.quality_rows(report))),
        (results.SPEED, list(results.speed_rows(report))),
    ):
        if rows:
            table(columns, rows)
    for point, reason in report.missing.items():
        click.echo(f"no number: {point}: {reason}")
