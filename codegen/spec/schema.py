"""The JSON schema of a spec file, from the model: editors complete and check with it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from .. import names
from ..mixers import mixers
from . import fields as k
from .feature_map import MAX_LENGTH

SCHEMA_FILE = "schema.json"


def schema_text() -> str:
    """The text of ``specs/schema.json``."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A based_ops layer",
        "description": "Generated from codegen/mixers/; do not edit.",
        "oneOf": [_layer(mixer, cls) for mixer, cls in mixers().items()],
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _layer(mixer: str, cls: Any) -> dict[str, Any]:
    schema = _record(cls, {}, ("mixer", mixer))
    return {"title": mixer, "description": cls.summary, **schema}


def _record(cls: type, narrowed: Mapping[str, k.Kind], tag: tuple[str, str] | None = None) -> dict[str, Any]:
    """A closed object with the fields of a dataclass, and its tag if it is one of several."""
    properties: dict[str, Any] = {tag[0]: {"const": tag[1]}} if tag else {}
    required = [tag[0]] if tag else []
    for name, item in k.spec_fields(cls).items():
        properties[name] = {"description": k.doc_of(item), **_value(narrowed.get(name, k.kind_of(item)))}
        if k.is_required(item):
            required.append(name)
        elif item.default is not None:
            properties[name]["default"] = item.default
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(kind: k.Kind) -> dict[str, Any]:
    match kind:
        case k.Name():
            return {"type": "string", "pattern": "^[a-z][a-z0-9_]*$", "maxLength": names.MAX_NAME_LENGTH}
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
            record = _record(kind.type, kind.kinds)
            return {"oneOf": [record, {"type": "null"}]} if kind.optional else record
        case k.Tagged():
            options = [
                {"title": tag, "description": (inspect.getdoc(cls) or "").partition("\n")[0]}
                | _record(cls, {}, (kind.tag, tag))
                for tag, cls in kind.types.items()
            ]
            return {"oneOf": options}
        case k.Several():
            items = {"type": "array", "items": _value(kind.item), "minItems": kind.low, "maxItems": kind.high}
            return {"oneOf": [items, {"type": "null"}]} if kind.optional else items
