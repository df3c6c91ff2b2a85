"""``based-ops list``, ``show`` and ``new``: specs, and what becomes of them on the way to kernels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completion import layer_names
from .console import Cell, document, fail, json_option, progress, source, table
from .files import replace_text
from .places import checkout, find_spec, shipped_specs, specs_option

if TYPE_CHECKING:
    from based_ops.codegen.pipeline import Lowered
    from based_ops.codegen.spec.model import LayerSpec

ARCHITECTURES = ("sm_90", "sm_100")
"""The GPUs for which kernels are printed in Gluon."""
STAGES = ("spec", "program", "schedule", "triton", "gluon", "tilelang", "torch")


@click.command("list")
@specs_option
@json_option
def list_specs(specs: Path | None, as_json: bool) -> None:
    """List the layers that have a spec."""
    from based_ops.codegen.errors import SpecErrors
    from based_ops.codegen.spec.load import load_dir

    try:
        layers = load_dir(specs or shipped_specs())
    except SpecErrors as errors:
        fail(errors)

    rows: list[tuple[Cell, ...]] = []
    for name, spec in layers.items():
        facts = spec.facts()
        rows.append((name, spec.mixer, spec.describe(), facts.get("qk"), facts.get("v"), spec.dtypes))
    table(("name", "mixer", "weights", "qk", "v", "dtypes"), rows, as_json)


@click.command(short_help="Show a layer at one stage of the compiler.")
@click.argument("name", shell_complete=layer_names)
@click.option("--stage", type=click.Choice(STAGES), default="spec", show_default=True, help="What to show.")
@click.option(
    "--arch",
    type=click.Choice(ARCHITECTURES),
    help="The GPUs of the stage gluon; nothing runs the kernels for sm_100 yet.  [default: sm_90]",
)
@specs_option
@json_option
def show(name: str, stage: str, arch: str | None, specs: Path | None, as_json: bool) -> None:
    """Show a layer at one STAGE of the compiler.  NAME is a layer's name or the path of a spec file.

    Spec and schedule exist as JSON too.
    """
    from based_ops.codegen.spec.model import dump_yaml, spec_to_dict

    if as_json and stage not in ("spec", "schedule"):
        raise click.UsageError(f"--json: the stage {stage} is text")
    if arch and stage != "gluon":
        raise click.UsageError("--arch is for --stage gluon")
    spec = find_spec(name, specs)
    if stage != "spec":
        _show(spec, stage, arch or ARCHITECTURES[0], as_json)
    elif as_json:
        document(spec_to_dict(spec))
    else:
        source(dump_yaml(spec), "yaml")


def _show(spec: LayerSpec, stage: str, arch: str, as_json: bool) -> None:
    """Print what the compiler makes of a spec: the layer, and what makes its features if it has parts."""
    from based_ops.codegen import pipeline
    from based_ops.codegen.ir.printer import print_program
    from based_ops.codegen.parts.pieces import NoTile
    from based_ops.codegen.schedule.record_file import RecordError

    try:
        makers = pipeline.feature_makers(spec).values()
        found = [pipeline.lower(layer) for layer in (spec, *makers) if not isinstance(layer, NoTile)]
        if stage == "program":
            source("\n".join(print_program(x) for lowered in found for x in lowered.programs), "text")
        elif stage == "schedule":
            _schedules(found, as_json)
        elif stage == "gluon":
            texts = [text for lowered in found if (text := pipeline.on_warpgroups(lowered, arch))]
            source("\n\n".join(texts) or f"# None of its kernels is printed in Gluon for {arch}.", "python")
        else:
            with progress("printing"):
                texts = [pipeline.emit(pipeline.schedule(x, stage)) for x in found]
            source("\n\n".join(texts), "python")
    except RecordError as error:
        fail(error)


def _schedules(found: Sequence[Lowered], as_json: bool) -> None:
    """Every choice of every generated module, one program and dtype a row; and which backend serves."""
    from based_ops.codegen import pipeline
    from based_ops.codegen.schedule import records
    from based_ops.codegen.schedule.legal import ALL_TOKENS

    rows = []
    for target, lowered in product(pipeline.EMITTERS, found):
        layer = pipeline.schedule(lowered, target)
        for schedule in (*(kernel.schedule for kernel in layer.kernels), *layer.plans):
            for dtype, setting in schedule.settings.items():
                sizes = {n: "all" if size == ALL_TOKENS else size for n, size in setting.constants.items()}
                tiles = " ".join(f"{name}={size}" for name, size in sizes.items())
                launched = target in ("triton", "tilelang") and schedule not in layer.plans
                threads = (str(setting.warps), str(setting.stages)) if launched else ("-", "-")
                rewrites = ", ".join(schedule.rewrites) or "-"
                if not setting.used:
                    tiles = "not used: the portable program is faster"
                rows.append((target, schedule.program, dtype, tiles, *threads, rewrites, setting.origin))
    columns = ("module", "program", "dtype", "tiles", "warps", "stages", "rewrites", "chosen by")
    table(columns, rows, as_json)
    if not as_json:
        for kernel, lines in (plan for lowered in found for plan in pipeline.places(lowered).items()):
            click.echo("\n".join([f"places of {kernel}:", *(f"  {line}" for line in lines)]))
    for architecture in sorted(set(records.ARCHITECTURE.values())):
        book = records.book(architecture)
        if mixer := book.serves.get(found[0].spec.mixer):
            why = book.why.get(found[0].spec.mixer)
            click.echo(f"{architecture}: {mixer} serves" + (f": {why}" if why else ""), err=as_json)


@click.command(short_help="Write a commented spec.")
@click.argument("name")
@click.option(
    "--mixer",
    metavar="MIXER",
    default="linear_attention",
    show_default=True,
    help="What the layer is: the name of a mixer.",
)
@click.option(
    "--map",
    "feature_map",
    metavar="MAP",
    help="Of a linear attention: taylor1 to 3, power2 to 4, or an expression such as 'elu(x) + 1'.  "
    "[default: taylor2]",
)
@click.option(
    "--qk", type=int, help="Width of queries and keys.  [default: 64 for expressions, else 16 or 8]"
)
@click.option("--v", type=int, help="Width of values.  [default: 64]")
@click.option("--window", type=int, help="Keys that a query of a sliding window sees.  [default: 64]")
@click.option(
    "--set", "fields", metavar="FIELD=VALUE", multiple=True, help="Any other field of the spec; repeatable."
)
@click.option(
    "--specs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of specs, made if it is not there.  [default: the shipped ones]",
)
def new(
    name: str,
    mixer: str,
    specs: Path | None,
    fields: tuple[str, ...],
    **options: str | int | None,
) -> None:
    """Write a commented spec NAME.yaml into the directory of specs."""
    from based_ops.codegen.errors import SpecErrors, nearest_kind
    from based_ops.codegen.mixers import mixers
    from based_ops.codegen.spec.schema import SCHEMA_FILE, schema_text
    from based_ops.codegen.spec.template import new_spec_text

    if mixer not in mixers():
        near = nearest_kind(mixer, mixers())
        hint = f"; did you mean {near}?" if near else ""
        raise click.UsageError(f"--mixer: {mixer} is none of {', '.join(mixers())}{hint}")
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in mixers()[mixer].template_options:
            flag = "map" if option == "feature_map" else option
            raise click.UsageError(f"--{flag} means nothing for the mixer {mixer}")
    given |= dict(map(_assignment, fields))
    if specs is None:
        if checkout() is None:
            raise click.UsageError("--specs is required: this is an installed package, not a checkout")
        specs = shipped_specs()
    try:
        text = new_spec_text(name, mixer, **given)
    except SpecErrors as errors:
        fail(errors)
    path = specs / f"{name}.yaml"
    signed = "normalize: false" in text.splitlines() and "normalize" not in given
    try:
        specs.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        if not (specs / SCHEMA_FILE).exists():
            replace_text(specs / SCHEMA_FILE, schema_text())
    except FileExistsError:
        fail(f"{path}: already exists")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    if signed:
        click.echo(f"{path}: `normalize` is false, since weights of this map have both signs and can cancel")
    click.echo(f"{path}: written; edit it, then see what it becomes: based-ops show {path} --stage program")


def _assignment(text: str) -> tuple[str, Any]:
    """``field=value`` apart; the value as YAML reads it."""
    import yaml

    field, equals, value = text.partition("=")
    try:
        if equals:
            return field.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise click.UsageError(f"--set: {text} is not FIELD=VALUE")
