"""A new spec file as text, with a comment for every field."""

from __future__ import annotations

import textwrap
from typing import Any

from ..mixers import mixers
from .fields import (
    Choice,
    Choices,
    Expression,
    Integer,
    Kind,
    Record,
    Several,
    Tagged,
    doc_of,
    is_quiet,
    kind_of,
    spec_fields,
)
from .load import parse_spec
from .model import LayerSpec, in_one_line, spec_to_dict, yaml_scalar
from .schema import SCHEMA_FILE

_LIST = "  #   "


def new_spec_text(name: str, mixer: str = "linear_attention", **given: Any) -> str:
    """A commented spec file that loads.

    `given` holds some of the mixer's `template_options`, by name, or fields of the spec.  Raises SpecErrors
    for values that no spec may hold.
    """
    cls = mixers()[mixer]
    fields = {key: value for key, value in given.items() if key not in cls.template_options}
    data = {"name": name, "mixer": mixer} | cls.template(given) | fields
    # Read once without comments: what is wrong with the values is reported before anything is written.
    spec = parse_spec(_plain(data), f"{name}.yaml")
    return _commented(spec_to_dict(spec), type(spec))


def _plain(data: dict[str, Any]) -> str:
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {inner}: {_quoted(item)}" for inner, item in value.items())]
        else:
            lines.append(f"{key}: {_quoted(value)}")
    return "\n".join(lines) + "\n"


def _quoted(value: Any) -> str:
    """A value in single quotes if it is text: whatever a user typed stays one value."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("\n", " ") + "'"
    return yaml_scalar(value)


def _commented(data: dict[str, Any], cls: type[LayerSpec]) -> str:
    blocks = [f"# yaml-language-server: $schema={SCHEMA_FILE}\n# {cls.summary}"]
    for name, item in spec_fields(cls).items():
        if is_quiet(item) and name not in data:
            continue
        kind = kind_of(item)
        note = f"# {doc_of(item)}{_allowed(kind)}\n"
        match kind:
            case Record() if name in data:
                text = f"{name}:" + "".join(
                    f"\n  # {doc_of(inner)}{_allowed(kind.kinds[key])}\n  {key}: {data[name][key]}"
                    for key, inner in spec_fields(kind.type).items()
                )
            case Tagged():
                text = f"{name}:\n{_tagged(kind, data[name])}"
            case Choices():
                text = f"{name}: [{', '.join(data[name])}]"
            case Several():
                text = "\n".join([f"{name}:", *(f"  - {in_one_line(x)}" for x in data[name])])
            case _:
                text = f"{name}: {yaml_scalar(data[name]) if name in data else 'null'}"
        blocks.append(note + text)
        if name == "name":
            blocks.append(f"# What the layer is: {' or '.join(mixers())}.\nmixer: {cls.mixer}")
    return "\n\n".join(blocks) + "\n"


def _tagged(kind: Tagged, value: dict[str, Any]) -> str:
    tag = value[kind.tag]
    lines = [f"  # {' or '.join(kind.types)}.", f"  {kind.tag}: {tag}"]
    for name, item in spec_fields(kind.types[tag]).items():
        lines += [f"  # {doc_of(item)}{_allowed(kind_of(item))}", f"  {name}: {yaml_scalar(value[name])}"]
    return "\n".join(lines)


def _allowed(kind: Kind) -> str:
    match kind:
        case Integer(low=low, high=high):
            return f" From {low} to {high}."
        case Choice(values=values):
            return f" One of {', '.join(values)}."
        case Choices(values=values):
            return f" Some of {', '.join(values)}."
        case Expression():
            from .feature_map import FUNCTIONS, OPERATORS

            names = textwrap.fill(
                f"{', '.join(FUNCTIONS)}.", 100, initial_indent=_LIST, subsequent_indent=_LIST
            )
            return f"\n  # Operators: {' '.join(OPERATORS)}.  Functions:\n{names}"
    return ""
