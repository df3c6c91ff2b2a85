"""``based-ops distill``: a model's long convolutions as state spaces, and what that costs and wins."""

from __future__ import annotations

import json
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from .console import Cell, fail, progress, table

LAYERS = (
    "block",
    "filters",
    "order",
    "modes",
    "needed",
    "bound",
    "Hankel norm",
    "taps",
    "frequencies",
    "within 2×",
)
PACES = ("model", "parameters", "tokens/s", "state bytes a sequence")
REPORT = "distillation.json"


class Order(click.ParamType):
    """``auto``, or a number."""

    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a number", param, ctx)


@click.command(short_help="Make state spaces of a model's long convolutions.")
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--order", type=Order(), default="auto", show_default=True, help="Of each filter, even.")
@click.option(
    "--norm", type=click.Choice(["l2", "hinf"]), default="l2", show_default=True, help="What to fit."
)
@click.option("--tolerance", type=float, help="The bound that `--order auto` asks for.  [default: 1e-5]")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda if there is one]")
@click.option(
    "--text",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder, whose held out part is read.  [default: Python's library]",
)
@click.option("--rows", type=click.IntRange(min=1), default=16, show_default=True, help="Sequences of text.")
@click.option("--length", type=click.IntRange(min=4), help="Tokens of each.  [default: the filters' length]")
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Sequences decoded.")
@click.option("--new", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens timed.")
def distill(
    checkpoint: str,
    out: Path,
    order: int | Literal["auto"],
    norm: Literal["l2", "hinf"],
    tolerance: float | None,
    device: str | None,
    text: Path | None,
    rows: int,
    length: int | None,
    batch: int,
    new: int,
) -> None:
    """Write OUT, the model of CHECKPOINT with state spaces instead of long convolutions.

    It generates with a state of constant size.  Of each layer: how many filters it has, the order of the
    state spaces and the one that `auto` would take; and, for 95 % of the filters and for all, the bound that
    no state space of the order goes below, beside what was reached.  Then logits and perplexity on text, and
    how fast both models decode, beside a Transformer of as many layers.  All goes into distillation.json.
    """
    import torch

    from ..distill import distil, paces, silenced, words
    from ..distill.filters import TOLERANCE
    from ..errors import BasedOpsError
    from ..models import load, save
    from ..models.hub import folder_of
    from ..recall.machine import machine
    from ..train import read
    from ..train.text import rows_of, tokenizer_of

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        exact = load(checkpoint, device=place)
        with progress("distilling") as told:
            model, layers = distil(exact, order, norm, tolerance or TOLERANCE, told)
        save(model, out)
        most = min(getattr(mixer, "length", 2**24) for mixer in exact.spec.mixers())
        length = min(length or most, most)
        source = text or Path(sysconfig.get_paths()["stdlib"])
        with progress("judging") as told:
            told("reading text")
            held = read(source, tokenizer=tokenizer_of(folder_of(checkpoint))).held_out
            told("logits")
            lines = rows_of(held, length - 1, rows)
            near, without = words(exact, model, lines), words(exact, silenced(model), lines)
            fast = paces(exact, model, length, batch, min(new, length - 1), told)
    except (BasedOpsError, OSError) as error:
        fail(str(error))
    about = machine(place)
    click.echo(f"{about['device']}, {torch.get_num_threads()} threads; {about['versions']}; {about['date']}")
    table(LAYERS, [_row(layer) for layer in layers])
    click.echo(
        f"{near.tokens} tokens of {source.name}: logits within {near.error:.1e} of the exact ones, "
        f"{near.worst:.1e} at the worst token; {100 * near.agree:.2f} % agree on the likeliest; "
        f"perplexity {near.exact_perplexity:.4f} before, {near.perplexity:.4f} after"
    )
    click.echo(
        f"with the first tap of each filter alone: logits within {without.error:.1e}, "
        f"perplexity {without.perplexity:.4f}"
    )
    click.echo(f"decoding the last {min(new, length - 1)} of {length} tokens, {batch} sequences:")
    rates: list[tuple[Cell, ...]] = [
        (x.model, x.parameters, f"{x.tokens_per_second:,.0f}", x.state_bytes) for x in fast
    ]
    table(PACES, rates)
    report = {
        "machine": about,
        "layers": [_facts(layer) for layer in layers],
        "words": asdict(near),
        "words with first taps alone": asdict(without),
        "paces": [asdict(x) for x in fast],
    }
    (out / REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")
    click.echo(f"wrote {out}")


def _row(layer: Any) -> tuple[Cell, ...]:
    fit = layer.fit
    names = ("bound", "hankel", "l2", "hinf")
    errors = [" ".join(f"{x:.0e}" for x in _quantiles(getattr(fit, name))[1:]) for name in names]
    within = float((fit.hankel <= 2 * fit.bound).double().mean())
    count = fit.bound.numel()
    modes = fit.modes.rate.shape[1]
    return (layer.block, count, fit.order, modes, int(fit.needed.max()), *errors, f"{100 * within:.0f} %")


def _facts(layer: Any) -> dict[str, Any]:
    """Of one layer, with what half of the filters, 95 % and all of them stay below."""
    fit = layer.fit
    found = {name: _quantiles(getattr(fit, name)) for name in ("bound", "hankel", "l2", "hinf")}
    over = _quantiles(fit.hankel / fit.bound.clamp(min=1e-300))
    about: dict[str, Any] = {
        "block": layer.block,
        "kind": layer.kind,
        "filters": fit.bound.numel(),
        "order": fit.order,
    }
    about["modes"] = fit.modes.rate.shape[1]
    return {**about, "needed": fit.needed.tolist(), **found, "hankel over bound": over}


def _quantiles(x: Any) -> list[float]:
    """The median, that of 95 %, and the largest."""
    import torch

    return [float(y) for y in x.cpu().quantile(torch.tensor([0.5, 0.95, 1.0], dtype=x.dtype))]
