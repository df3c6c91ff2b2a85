"""``based-ops models``: the language models, and checkpoints of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from based_ops.extras import MissingExtra

from .completion import model_names
from .console import Cell, document, fail, json_option, progress, table

_SCHEMA = "models.schema.json"
"""What `new` writes beside the spec of a model."""


@click.group()
def models() -> None:
    """Language models of these layers, and their checkpoints."""


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the models that have a spec."""
    from based_ops.models.spec import load_spec, shipped

    rows: list[tuple[Cell, ...]] = []
    for name in shipped():
        spec = load_spec(name)
        rows.append((name, spec.d_model, spec.layers, spec.vocabulary, ", ".join(_mixers(spec))))
    table(("name", "width", "layers", "vocabulary", "mixers"), rows, as_json)


@models.command()
@click.argument("name")
@click.option("--like", default="based-360m", show_default=True, help="The shipped model to begin with.")
def new(name: str, like: str) -> None:
    """Write NAME.yaml, the spec of a shipped model under another NAME, to be changed."""
    from based_ops.codegen.spec.schema import model_schema_text
    from based_ops.models.spec import parse_spec, shipped

    known = shipped()
    if like not in known:
        fail(f"--like: {like!r} is no shipped model; there are {', '.join(known)}")
    text = re.sub("^name: .*$", f"name: {name}", known[like].read_text(encoding="utf-8"), flags=re.MULTILINE)
    path = Path(f"{name}.yaml")
    try:
        parse_spec(text, str(path), name)
    except ValueError as error:
        fail(error)
    if path.exists():
        fail(f"{path}: exists already")
    # Editors complete it by the schema that its first line names, which is not that of layers.
    path.write_text(text.replace("$schema=schema.json", f"$schema={_SCHEMA}"), encoding="utf-8")
    if not Path(_SCHEMA).exists():
        Path(_SCHEMA).write_text(model_schema_text(), encoding="utf-8")
    click.echo(f"wrote {path}; to see what it is: based-ops models info {path}")


@models.command()
@click.argument("model", shell_complete=model_names)
@json_option
def info(model: str, as_json: bool) -> None:
    """Say what a MODEL is: a shipped one's name, a spec file, or a checkpoint's folder or name on the hub."""
    import torch

    from based_ops.models import LanguageModel, checkpoint, hub, load_spec, published
    from based_ops.models.spec import shipped

    report = published.Report()
    try:
        if model not in shipped() and (path := hub.folder_of(model)).is_dir():
            spec, weights, report = checkpoint.read(path)
            checkpoint.check(LanguageModel(spec, device="meta"), weights)
        else:
            spec = load_spec(model)
    except (ValueError, OSError, MissingExtra) as error:
        fail(error)
    net = LanguageModel(spec, device="meta", dtype=torch.bfloat16)
    found: dict[str, Any] = {
        "name": spec.name,
        "parameters": sum(x.numel() for x in net.parameters()),
        "width": spec.d_model,
        "layers": spec.layers,
        "vocabulary": spec.vocabulary,
        "mixers": list(_mixers(spec)),
        "state bytes a sequence, bfloat16": net.state_bytes(1),
        "keys without effect": report.without_effect,
        "keys that nobody knows": report.unknown,
        "tensors that are no weights": report.dropped,
    }
    if as_json:
        document(found)
        return
    for name, value in found.items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        if value:
            click.echo(f"{name}: {value}")


@models.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Choice(["based-ops", "transformers"]), default="based-ops", show_default=True
)
def convert(checkpoint: str, out: Path, to: str) -> None:
    """Write a CHECKPOINT as one of ours, or as one for Transformers, OUT.

    It is a folder, or a repository of the hub: of ours, of Transformers, or as the paper published them, with
    config.json and pytorch_model.bin, such as `hazyresearch/based-360m`.
    """
    from based_ops.models import convert as converted

    try:
        with progress("converting"):
            report = converted(checkpoint, out, transformers=to == "transformers")
    except (ValueError, OSError, MissingExtra) as error:
        fail(error)
    for what, names in (
        ("keys without effect", report.without_effect),
        ("keys that nobody knows", report.unknown),
        ("tensors that are no weights", report.dropped),
    ):
        if names:
            click.echo(f"{what}: {', '.join(names)}")
    click.echo(f"wrote {out}")


def _mixers(spec: Any) -> dict[str, int]:
    """The layers of each mixer, by what they are."""
    counts: dict[str, int] = {}
    for mixer in spec.mixers():
        variant = getattr(mixer, "variant", None)
        name = f"{mixer.kind} {variant}" if variant else mixer.kind
        counts[name] = counts.get(name, 0) + 1
    return {f"{count} {name}": count for name, count in counts.items()}
