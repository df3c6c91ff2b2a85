"""``based-ops verify``: errors of kernels against naive mathematics."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING

import click

from based_ops.codegen.names import BACKENDS

from .completion import layer_names
from .console import Cell, fail, growing_table, json_option, progress
from .places import is_path

if TYPE_CHECKING:
    import torch

    from ..variant import Variant
    from ..verify import Measurement

    Job = tuple[Variant, str, torch.dtype]

DTYPES = ("float64", "float32", "bfloat16", "float16")
COLUMNS = ("forward", "final state", "pieces", "step", "dq", "dk", "dv", "d initial state")
HEADER = ("layer", "backend", "dtype", *COLUMNS, "q, k", "verdict")
WIDTHS = (*(max(map(len, words)) for words in (BACKENDS, DTYPES)), *(len("1.0e-10") for _ in COLUMNS))


@click.command(short_help="Measure errors against naive mathematics.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=layer_names)
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True, help="May be repeated.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...  [default: cuda if there is one]")
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="May be repeated.")
@json_option
def verify(
    names: tuple[str, ...],
    backends: tuple[str, ...],
    device: str | None,
    dtypes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare kernels with naive mathematics in float64, over awkward shapes.

    NAME is a generated layer or the path of a spec file; all generated layers if none is given.  Each number
    is the worst relative error, in the Euclidean norm, of a pass over all shapes and layouts; the allowed
    ones are in based_ops/tolerance.py.  Exits with 1 if one is exceeded.

    Values are normal numbers, queries and keys are what the column "q, k" says.  Where weights have both
    signs, these are numbers at which their sum does not vanish, and a line below the table says what normal
    numbers make of such a layer.  On a CPU, Triton kernels run under Triton's interpreter.
    """
    device = device or _default_device()
    if device.startswith("cpu"):
        # Read when Triton is imported, which is later; where it is unwanted, no kernel runs on a CPU at all.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # TileLang would announce every kernel that it compiles, on standard output.
    logging.getLogger("tilelang.jit.kernel").setLevel(logging.WARNING)
    variants = [_variant(name) for name in names] or _all()
    jobs, skipped = _jobs(variants, backends, device, dtypes)
    found: list[list[Measurement]] = []
    broken: list[str] = []
    from ..verify import domain, measure, strain
    from ..verify_features import measure_features

    drawn = {variant.name: domain(variant).name for variant, _, _ in jobs}
    widths = [max(map(len, (*drawn, ""))), *WIDTHS, max(map(len, (*drawn.values(), ""))), 0]
    with progress("verifying", len(jobs)) as begin, growing_table(HEADER, widths, as_json) as add:
        for variant, backend, dtype in jobs:
            job = f"{variant.name} {backend} {str(dtype).removeprefix('torch.')}"
            begin(job)
            try:
                measurements = list(measure(variant, backend, device, dtype))
                measurements += measure_features(variant, backend, device, dtype)
            except Exception as error:  # kernels fail in every way there is; the others are worth knowing
                reason = str(error).strip().splitlines() or ["without a message"]
                broken.append(f"{job}: {type(error).__name__}: {reason[-1]}")
                continue
            found.append(measurements)
            add(_row(measurements, drawn[variant.name]))
    for name in drawn:
        most = strain(next(variant for variant in variants if variant.name == name))
        if most is not None and not most <= 1.0:
            reach = "are NaN" if math.isnan(most) else f"reach {most:.3g} times the largest value"
            line = f"{name}: weights have both signs: where q, k are N(0, 1) outputs {reach}"
            click.echo(line, err=as_json)
    for line in skipped:
        click.echo(f"skipped: {line}", err=as_json)
    wrong = [_fault(m) for measurements in found for m in measurements if not m.fine]
    for line in (*wrong, *broken):
        click.echo(line, err=True)
    if wrong or broken:
        raise SystemExit(1)
    if not found:
        fail("nothing could be verified", code=1)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _variant(name: str) -> Variant:
    """The variant of a name or of a spec file; ends the command if there is none."""
    import based_ops
    from based_ops.codegen.errors import SpecErrors

    try:
        return based_ops.load(name) if is_path(name) else based_ops.get(name)
    except (SpecErrors, based_ops.errors.UnknownVariant, based_ops.errors.CacheError) as error:
        fail(error)


def _all() -> list[Variant]:
    import based_ops

    if not based_ops.names():
        fail("no layers are generated; run `based-ops generate` or name a spec file")
    return [based_ops.get(name) for name in based_ops.names()]


def _jobs(
    variants: list[Variant], backends: tuple[str, ...], device: str, dtypes: tuple[str, ...]
) -> tuple[list[Job], list[str]]:
    """What to measure, and what cannot be and why.

    A backend that was asked for and cannot serve ends the command.
    """
    from ..verify import dtypes as served

    jobs, skipped = [], []
    for variant in variants:
        try:
            statuses = variant.backends(device)
        except RuntimeError as error:
            fail(f"--device: {error}")
        for status in statuses:
            if backends and status.name not in backends:
                continue
            if not status.available:
                if backends:
                    fail(f"--backend: {status}")
                skipped.append(f"{variant.name}: {status}")
                continue
            for dtype in served(variant, status.name):
                if not dtypes or str(dtype).removeprefix("torch.") in dtypes:
                    jobs.append((variant, status.name, dtype))
    return jobs, skipped


def _row(measurements: list[Measurement], drawn: str) -> tuple[Cell, ...]:
    """The worst errors of one layer on one backend in one dtype."""
    first = measurements[0]
    cells = []
    for column in COLUMNS:
        errors = [m.found.norm for m in measurements if _column(m) == column]
        cells.append(max(errors) if errors else None)
    verdict = "ok" if all(m.fine for m in measurements) else "WRONG"
    return first.variant, first.backend, str(first.dtype).removeprefix("torch."), *cells, drawn, verdict


def _column(m: Measurement) -> str:
    if m.which == "backward":
        return "d initial state" if m.tensor.startswith("d initial") else m.tensor
    return "final state" if m.which == "forward" and m.tensor != "o" else m.which


def _fault(m: Measurement) -> str:
    dtype = str(m.dtype).removeprefix("torch.")
    return (
        f"{m.variant} {m.backend} {m.device} {dtype}: {m.which}, {m.tensor} at {m.case}: "
        f"error {m.found.norm:.2e} (allowed {m.allowed.norm:.0e}), "
        f"worst element {m.found.worst:.2e} (allowed {m.allowed.worst:.0e})"
    )
