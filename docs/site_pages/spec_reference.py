"""The reference of spec files, from the fields of the model: kinds, defaults, ranges and examples."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from based_ops.codegen.mixers import mixers
from based_ops.codegen.names import MAX_NAME_LENGTH
from based_ops.codegen.spec import fields as k
from based_ops.codegen.spec.feature_map import FUNCTIONS, OPERATORS
from based_ops.codegen.spec.language_model import MIXERS, Mlp, ModelSpec, Placement
from based_ops.codegen.spec.load import load_dir
from based_ops.codegen.spec.model import FEATURE_MAPS, dump_yaml, in_one_line, plain_fields
from based_ops.codegen.spec.parts import PARTS
from based_ops.models import load_spec, shipped

SPECS = Path(__file__).resolve().parents[2] / "specs"


def layers() -> str:
    """Every mixer: its fields, and the shortest shipped spec of it."""
    return "\n\n".join(_mixer(name, cls) for name, cls in mixers().items())


def feature_maps() -> str:
    """Every kind of `feature_map`."""
    return "\n\n".join(_kind("feature_map", name, cls) for name, cls in FEATURE_MAPS.items())


def parts() -> str:
    """Every kind of part."""
    return "\n\n".join(_kind("part", name, cls) for name, cls in PARTS.items())


def model_fields() -> str:
    """The fields of a model's spec, and of what stands in it."""
    records = {"A model": ModelSpec, "An entry of `placement`": Placement, "`mlp`": Mlp}
    texts = [f"### {title}\n\n{_summary(cls)}\n\n{_table(cls)}" for title, cls in records.items()]
    return "\n\n".join([*texts, *(_kind("mixer", name, cls) for name, cls in MIXERS.items())])


def functions() -> str:
    """What expressions are made of."""
    operators = ", ".join(f"`{x}`" for x in OPERATORS)
    return f"Operators: {operators}. Functions: {', '.join(f'`{name}`' for name in FUNCTIONS)}."


def _mixer(name: str, cls: Any) -> str:
    texts = [dump_yaml(spec) for spec in shipped_layers().values() if spec.mixer == name]
    example = f"Shipped, for example:\n\n```yaml\n{min(texts, key=len)}```" if texts else ""
    shown = [f"### `mixer: {name}`", cls.summary, _summary(cls), _table(cls)]
    for field in k.spec_fields(cls).values():
        if isinstance(kind := k.kind_of(field), k.Record):
            shown.append(f"In `{field.name}`:\n\n{_table(kind.type, kind.kinds)}")
    return "\n\n".join([*shown, example]).rstrip()


def _kind(use: str, name: str, cls: Any) -> str:
    """One of several that a word, `kind`, tells apart."""
    table = _table(cls) if k.spec_fields(cls) else "It has no fields of its own."
    example = in_one_line({"kind": name} | dict(_example_fields(cls, name)))
    return f"### {use.replace('_', ' ')}: `{name}`\n\n{_summary(cls)}\n\n{table}\n\nExample: `{example}`"


def _example_fields(cls: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Fields of one, as a shipped spec gives them, else with the smallest values that are allowed."""
    for found in _used():
        if type(found) is cls:
            given = plain_fields(found).items()
            yield from (x for x in given if x[1] != _default(cls, x[0]))
            return
    for field_name, item in k.spec_fields(cls).items():
        if k.is_required(item):
            yield field_name, _smallest(k.kind_of(item))


def _default(cls: Any, name: str) -> Any:
    return k.spec_fields(cls)[name].default


def _smallest(kind: k.Kind) -> Any:
    match kind:
        case k.Integer(low=low):
            return low
        case k.Expression():
            return "relu(x)"
        case k.Choice(values=values):
            return values[0]
        case k.Several(low=low):
            return [_smallest(kind.item)] * low if low else []
    raise TypeError(f"no example of {kind}")


def _table(cls: Any, narrowed: Any = None) -> str:
    rows = ["| field | value | default | example | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, item in k.spec_fields(cls).items():
        kind = (narrowed or {}).get(name, k.kind_of(item))
        default = "*required*" if k.is_required(item) else f"`{in_one_line(_plain(item.default))}`"
        example = _example(cls, name, kind)
        shown = f"`{example}`" if example else ""
        cells = (f"`{name}`", _allowed(kind), default, shown, k.doc_of(item).replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _example(cls: Any, name: str, kind: k.Kind) -> str:
    """A value that is not the default, of a shipped spec if one has it; nothing for tables."""
    if isinstance(kind, k.Record | k.Tagged) or isinstance(kind, k.Several) and name != "layers":
        return ""
    for found in (*shipped_layers().values(), *_used()):
        if type(found) is cls and (value := getattr(found, name)) not in (None, _default(cls, name)):
            return in_one_line(_plain(value))
    match kind:
        case k.Flag():
            return in_one_line(not _default(cls, name))
        case k.Choice(values=values):
            return next(x for x in values if x != _default(cls, name))
        case k.Choices(values=values):
            return in_one_line(list(values[:1]))
        case k.Number(low=low, high=high):
            return in_one_line(min(max(0.5, low), high))
        case k.Name():
            return "my_layer"
        case k.Integer(low=low):
            return in_one_line(low + (low == _default(cls, name)))
        case _:
            return in_one_line(_smallest(kind))


def _allowed(kind: k.Kind) -> str:
    """The values of a field, in a few words."""
    null = ", or null" if getattr(kind, "optional", False) else ""
    match kind:
        case k.Name(hyphens=hyphens):
            more = ", hyphens too" if hyphens else ""
            return f"a name of up to {MAX_NAME_LENGTH} of `a-z`, `0-9` and `_`{more}"
        case k.Integer(low=low, high=high):
            return f"whole number, {low} to {high}"
        case k.Number(low=low, high=high, above=above):
            return f"number, {'above' if above else 'from'} {low:g} to {high:g}{null}"
        case k.Flag():
            return "true or false"
        case k.Choice(values=values):
            return " or ".join(f"`{x}`" for x in values)
        case k.Choices(values=values):
            return "list of " + ", ".join(f"`{x}`" for x in values)
        case k.Expression():
            return f"[expression](#expressions) in x{null}"
        case k.Record():
            return f"mapping{null}"
        case k.Tagged(tag=tag, types=types):
            return f"mapping whose `{tag}` is " + " or ".join(f"`{x}`" for x in types)
        case k.Several(item=item, low=low, high=high):
            of = "lists of parts" if isinstance(item, k.Several) else _several(item)
            return f"list of {low} to {high} {of}{null}"
    raise TypeError(f"not a kind of value: {kind}")


def _several(item: k.Kind) -> str:
    match item:
        case k.Tagged():
            return "[parts](#parts)"
        case k.Record():
            return "mappings"
        case k.Integer(low=low, high=high):
            return f"whole numbers, {low} to {high}"
    return "values"


def _summary(cls: Any) -> str:
    """What the class says of itself, with links to the pages that it names."""
    text = (inspect.getdoc(cls) or "").replace("<", "&lt;")
    return re.sub(r"docs/([a-z-]+)\.md", r"[\1](\1.md)", text)


@functools.cache
def shipped_layers() -> dict[str, Any]:
    """Every shipped spec by its name."""
    return dict(load_dir(SPECS))


@functools.cache
def _used() -> tuple[Any, ...]:
    """Everything that stands in a shipped spec, of layers and of models."""
    models = [load_spec(name) for name in shipped()]
    return tuple(x for spec in (*shipped_layers().values(), *models) for x in _inside(spec))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _inside(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for item in dataclasses.fields(value):
            yield from _inside(getattr(value, item.name))
