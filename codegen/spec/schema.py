"""The JSON schema of a spec file, from the model: editors complete and check with it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import names
from ..mixers import mixers
from . import fields as k
from .feature_map import MAX_LENGTH
from .language_model import ModelSpec

SCHEMA_FILE = "schema.json"
_NAMES = {False: "^[a-z][a-z0-9_]*$", True: "^[a-z][a-z0-9_-]*$"}


def schema_text() -> str:
    """The text of ``specs/schema.json``."""
    definitions: dict[str, Any] = {}
    layers = [_layer(mixer, cls, definitions) for mixer, cls in mixers().items()]
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A based_ops layer",
        "description": "Generated from codegen/mixers/; do not edit.",
        "definitions": dict(sorted(definitions.items())),
        "oneOf": layers,
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def model_schema_text() -> str:
    """The text of ``specs/models/schema.json``."""
    definitions: dict[str, Any] = {}
    model = _record(ModelSpec, {}, definitions)
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A based_ops language model",
        "description": "Generated from codegen/spec/language_model.py; do not edit.",
        "definitions": definitions,
        **model,
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _layer(mixer: str, cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _record(cls, {}, definitions, ("mixer", mixer))
    return {"title": mixer, "description": cls.summary, **schema}


def _record(
    cls: type,
    narrowed: Mapping[str, k.Kind],
    definitions: dict[str, Any],
    tag: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """A closed object with the fields of a dataclass, and its tag if it is one of several."""
    properties: dict[str, Any] = {tag[0]: {"const": tag[1]}} if tag else {}
    required = [tag[0]] if tag else []
    for name, item in k.spec_fields(cls).items():
        properties[name] = {
            "description": k.doc_of(item),
            **_value(narrowed.get(name, k.kind_of(item)), definitions),
        }
        if k.is_required(item):
            required.append(name)
        elif item.default is not None:
            properties[name]["default"] = item.default
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(kind: k.Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    """The values of one kind; those that have a name become `definitions`."""
    match kind:
        case k.Name():
            return {"type": "string", "pattern": _NAMES[kind.hyphens], "maxLength": names.MAX_NAME_LENGTH}
        case k.Integer(low=low, high=high):
            return {"type": "integer", "minimum": low, "maximum": high}
        case k.Number():
            bound = "exclusiveMinimum" if kind.above else "minimum"
            types = ["number", "null"] if kind.optional else "number"
            return {"type": types, bound: kind.low, "maximum": kind.high}
        case k.Flag():
            return {"type": "boolean"}
        case k.Choice(values=values):
            return {"enum": list(values)}
        case k.Choices(values=values):
            return {"type": "array", "items": {"enum": list(values)}, "minItems": 1, "uniqueItems": True}
        case k.Expression():
            types = ["string", "null"] if kind.optional else "string"
            return {"type": types, "minLength": 1, "maxLength": MAX_LENGTH}
        case k.Record():
            record = _record(kind.type, kind.kinds, definitions)
            return {"oneOf": [record, {"type": "null"}]} if kind.optional else record
        case k.Tagged(name=name) if name in definitions:
            return {"$ref": f"#/definitions/{name}"}
        case k.Tagged(name=name) if name:
            definitions[name] = {}  # taken, while it is made
            definitions[name] = _value(replace(kind, name=""), definitions)
            return {"$ref": f"#/definitions/{name}"}
        case k.Tagged():
            options = [
                {"title": tag, "description": (inspect.getdoc(cls) or "").partition("\n")[0]}
                | _record(cls, {}, definitions, (kind.tag, tag))
                for tag, cls in kind.types.items()
            ]
            return {"oneOf": options}
        case k.Several():
            items = {
                "type": "array",
                "items": _value(kind.item, definitions),
                "minItems": kind.low,
                "maxItems": kind.high,
            }
            return {"oneOf": [items, {"type": "null"}]} if kind.optional else items
