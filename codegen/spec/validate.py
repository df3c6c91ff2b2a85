"""From located YAML nodes to a layer spec, collecting every fault on the way.

The walk follows the kinds that the model attaches to its fields; a new field needs no code here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping as Table
from typing import Any

from .. import names
from ..errors import ExpressionError, SpecError, nearest_name
from ..mixers import mixers
from . import fields as k
from .model import LayerSpec, yaml_scalar
from .source import Mapping, Node, Scalar, Sequence

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_MAX_SHOWN = 40


class _Bad:
    """Stands for a value that was reported; whatever holds it is not built."""


BAD = _Bad()


class Validator:
    """Reads the nodes of one file; `errors` holds every finding."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.errors: list[SpecError] = []

    def layer(self, root: Node, stem: str | None) -> LayerSpec | None:
        """The layer of the document, or None if anything is wrong.  `stem`: the name that it must have."""
        if not isinstance(root, Mapping):
            self._report(root, f"a spec is a mapping with at least `name` and `mixer`, not {_describe(root)}")
            return None
        entries = self._entries(root, "")
        mixer = self._mixer(root, entries)
        name = entries.get("name")
        if mixer is None:
            self._without_mixer(root, entries)
            return None
        self._unknown_layer_keys(root, mixer)
        values = self._values(root, entries, mixers()[mixer], {}, "")
        if stem is not None and isinstance(name, Scalar) and values.get("name") not in (None, BAD, stem):
            message = f"the name `{values['name']}` differs from the name of the file, `{stem}.yaml`"
            self._report(name, message)
        if self.errors:
            return None
        return mixers()[mixer](**values)

    # -- the layer's own mapping --------------------------------------------------------------------------

    def _mixer(self, root: Mapping, entries: Table[str, Node]) -> str | None:
        if "mixer" not in entries:
            # A misspelt key is reported as such, once.
            if not any(nearest_name(key, ["mixer"]) for key in entries):
                self._report(root, "`mixer` is missing", tuple(mixers()))
            return None
        value = self._choice(entries["mixer"], tuple(mixers()), "mixer")
        return value if isinstance(value, str) else None

    def _without_mixer(self, root: Mapping, entries: Table[str, Node]) -> None:
        """What can still be said of a layer whose mixer is unknown."""
        fields = _fields_of_all_mixers()
        for key, node in self._keys(root):
            if key not in fields:
                self._report(node, _unknown(key, ""), tuple(fields), nearest_name(key, fields))
        for key in ("name", "dtypes"):
            if key in entries:
                self._value(entries[key], k.kind_of(fields[key]), key)
        if "name" not in entries and not any(nearest_name(key, ["name"]) for key in entries):
            self._report(root, "`name` is missing")

    def _unknown_layer_keys(self, root: Mapping, mixer: str) -> None:
        name, *others_known = k.spec_fields(mixers()[mixer])
        known = (name, "mixer", *others_known)
        for key, node in self._keys(root):
            if key in known:
                continue
            others = [other for other, cls in mixers().items() if key in k.spec_fields(cls)]
            owner = _inner_owner(key)
            if others:
                message = f"`{key}` is a field of {' and '.join(others)}, not of {mixer}"
                self._report(node, message, known)
            elif owner in known:
                self._report(node, f"`{key}` belongs under `{owner}`", known, f"{owner}.{key}")
            else:
                self._report(node, _unknown(key, ""), known, nearest_name(key, known))

    # -- mappings -----------------------------------------------------------------------------------------

    def _keys(self, node: Mapping) -> list[tuple[str, Scalar]]:
        return [(key.text, key) for key, _ in node.items if isinstance(key, Scalar)]

    def _entries(self, node: Mapping, path: str) -> dict[str, Node]:
        """The values by key, the first of duplicates; duplicates and keys that are no words are reported."""
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.items:
            if not isinstance(key, Scalar):
                self._report(key, f"a key must be a word, not {_describe(key)}")
            elif key.text in entries:
                self._report(
                    key, f"`{_join(path, key.text)}` is given twice, first in line {lines[key.text]}"
                )
            else:
                entries[key.text] = value
                lines[key.text] = key.line
        return entries

    def _values(
        self, node: Mapping, entries: Table[str, Node], record: type, narrowed: Table[str, k.Kind], path: str
    ) -> dict[str, Any]:
        """The values of a dataclass's fields that the file gives; reports missing ones without a default."""
        values: dict[str, Any] = {}
        for name, item in k.spec_fields(record).items():
            if name in entries:
                values[name] = self._value(
                    entries[name], narrowed.get(name, k.kind_of(item)), _join(path, name)
                )
            elif k.is_required(item) and not self._misspelt(name, record, entries):
                doc = k.doc_of(item).rstrip(".")
                self._report(node, f"`{_join(path, name)}` is missing: {doc[0].lower()}{doc[1:]}")
        return values

    def _misspelt(self, name: str, record: type, entries: Table[str, Node]) -> bool:
        """Whether an unknown key was probably meant to be this field, which is then not missing as well."""
        known = (*k.spec_fields(record), "mixer", "kind")
        return any(key not in known and nearest_name(key, known) == name for key in entries)

    def _inner(self, node: Mapping, entries: Table[str, Node], record: type, extra: str, path: str) -> None:
        """Report the keys of an inner mapping that are not fields of `record`."""
        known = (*((extra,) if extra else ()), *k.spec_fields(record))
        for key, key_node in self._keys(node):
            if key not in known:
                self._report(key_node, _unknown(key, path), known, nearest_name(key, known))

    # -- values -------------------------------------------------------------------------------------------

    def _value(self, node: Node, kind: k.Kind, path: str) -> Any:
        """The value of one field, or BAD after reporting why it has none."""
        match kind:
            case k.Name():
                return self._name(node, path)
            case k.Integer():
                return self._integer(node, kind, path)
            case k.Number():
                return self._number(node, kind, path)
            case k.Flag():
                return self._flag(node, path)
            case k.Choice(values=values):
                return self._choice(node, values, path)
            case k.Choices(values=values):
                return self._choices(node, values, path)
            case k.Expression():
                return self._expression(node, path)
            case k.Record():
                return self._record(node, kind, path)
            case k.Tagged():
                return self._tagged(node, kind, path)

    def _name(self, node: Node, path: str) -> Any:
        if not isinstance(node, Scalar):
            return self._wrong(node, path, "a name")
        if node.type != "str":
            remedy = "" if node.type == "null" else "; quote it"
            return self._report(node, f"`{path}` must be text, not {_describe(node)}{remedy}")
        problem = names.name_problem(node.text)
        if problem is not None:
            shown = f"`{_clip(node.text)}` " if node.text else ""
            return self._report(node, f"the {path} {shown}{problem}", (), names.suggest_name(node.text))
        return node.text

    def _integer(self, node: Node, kind: k.Integer, path: str) -> Any:
        expected = f"a whole number from {kind.low} to {kind.high}"
        if not isinstance(node, Scalar) or node.quoted or not _INTEGER.fullmatch(node.text):
            return self._wrong(node, path, expected)
        if len(node.text) > 12 or not kind.low <= int(node.text) <= kind.high:
            return self._wrong(node, path, expected)
        return int(node.text)

    def _number(self, node: Node, kind: k.Number, path: str) -> Any:
        bounds = f"above {kind.low:.0f} and up to" if kind.above else f"from {kind.low:.0f} to"
        expected = f"a number {bounds} {kind.high:.0f}" + (", or null" if kind.optional else "")
        if kind.optional and isinstance(node, Scalar) and node.type == "null":
            return None
        if not isinstance(node, Scalar) or node.quoted or not _NUMBER.fullmatch(node.text):
            return self._wrong(node, path, expected)
        value = float(node.text)
        if (
            not math.isfinite(value)
            or value > kind.high
            or value < kind.low
            or (kind.above and value == kind.low)
        ):
            return self._wrong(node, path, expected)
        if node.type == "str":
            why = "its numbers need a point and a signed exponent"
            message = f"`{path}`: YAML 1.1 reads {node.text} as text; {why}"
            return self._report(node, message, (), yaml_scalar(value))
        return value

    def _flag(self, node: Node, path: str) -> Any:
        if isinstance(node, Scalar) and not node.quoted and node.text in ("true", "false"):
            return node.text == "true"
        meant = None
        if isinstance(node, Scalar) and (
            node.type == "bool" or node.text.lower() in ("true", "false", "y", "n")
        ):
            meant = "true" if node.text.lower() in ("true", "yes", "on", "y") else "false"
        return self._report(
            node, f"`{path}` must be true or false, not {_describe(node)}", ("true", "false"), meant
        )

    def _choice(self, node: Node, values: tuple[str, ...], path: str) -> Any:
        if isinstance(node, Scalar) and node.text in values:
            return node.text
        if not isinstance(node, Scalar):
            return self._report(node, f"`{path}` cannot be {_describe(node)}", values)
        return self._report(
            node, f"`{path}` cannot be {_clip(node.text)}", values, nearest_name(node.text, values)
        )

    def _choices(self, node: Node, values: tuple[str, ...], path: str) -> Any:
        if not isinstance(node, Sequence):
            return self._wrong(node, path, f"a list, such as [{', '.join(values[:2])}]", values)
        if not node.items:
            return self._report(node, f"`{path}` must name at least one", values)
        chosen = [self._choice(item, values, path) for item in node.items]
        for i, (item, value) in enumerate(zip(node.items, chosen, strict=True)):
            if value is not BAD and value in chosen[:i]:
                self._report(item, f"`{path}` lists {value} twice")
        return BAD if BAD in chosen else tuple(value for value in values if value in chosen)

    def _expression(self, node: Node, path: str) -> Any:
        if not isinstance(node, Scalar) or node.type != "str":
            return self._wrong(node, path, "an expression in x, such as elu(x) + 1")
        # Imported here: sympy takes half a second, and most layers have no expression.
        from .feature_map import canonical_text, parse

        try:
            return canonical_text(parse(node.text))
        except ExpressionError as error:
            offset = error.offset if node.verbatim else 0
            message = f"`{path}`: {error.message}"
            self.errors.append(
                SpecError(self.file, node.line, node.column + offset, message, error.allowed, error.nearest)
            )
            return BAD

    def _record(self, node: Node, kind: k.Record, path: str) -> Any:
        if not isinstance(node, Mapping):
            inner = ", ".join(f"{name}: ..." for name in k.spec_fields(kind.type))
            return self._wrong(node, path, f"a mapping {{{inner}}}")
        entries = self._entries(node, path)
        self._inner(node, entries, kind.type, "", path)
        values = self._values(node, entries, kind.type, kind.kinds, path)
        complete = all(name in values and values[name] is not BAD for name in k.spec_fields(kind.type))
        return kind.type(**values) if complete else BAD

    def _tagged(self, node: Node, kind: k.Tagged, path: str) -> Any:
        if not isinstance(node, Mapping):
            example = f"a mapping with a `{kind.tag}`"
            nearest = nearest_name(node.text, kind.types) if isinstance(node, Scalar) else None
            return self._wrong(
                node, path, example, tuple(kind.types), nearest and f"{{{kind.tag}: {nearest}}}"
            )
        entries = self._entries(node, path)
        tag_path = _join(path, kind.tag)
        if kind.tag not in entries:
            return self._report(node, f"`{tag_path}` is missing", tuple(kind.types))
        tag = self._choice(entries[kind.tag], tuple(kind.types), tag_path)
        if tag is BAD:
            return BAD
        record = kind.types[tag]
        self._inner(node, entries, record, kind.tag, path)
        values = self._values(node, entries, record, {}, path)
        complete = all(name in values and values[name] is not BAD for name in k.spec_fields(record))
        return record(**values) if complete else BAD

    # -- reporting ----------------------------------------------------------------------------------------

    def _wrong(
        self, node: Node, path: str, expected: str, allowed: tuple[str, ...] = (), nearest: str | None = None
    ) -> _Bad:
        return self._report(node, f"`{path}` must be {expected}, not {_describe(node)}", allowed, nearest)

    def _report(
        self, node: Node, message: str, allowed: tuple[str, ...] = (), nearest: str | None = None
    ) -> _Bad:
        self.errors.append(SpecError(self.file, node.line, node.column, message, allowed, nearest))
        return BAD


def _fields_of_all_mixers() -> dict[str, Any]:
    fields: dict[str, Any] = {"name": None, "mixer": None}
    for cls in mixers().values():
        fields.update(k.spec_fields(cls))
    return fields


def _inner_owner(key: str) -> str | None:
    """The field that holds `key` one level further in."""
    for cls in mixers().values():
        for name, item in k.spec_fields(cls).items():
            match k.kind_of(item):
                case k.Record(type=record) if key in k.spec_fields(record):
                    return name
                case k.Tagged(tag=tag, types=types):
                    if key == tag or any(key in k.spec_fields(inner) for inner in types.values()):
                        return name
    return None


def _unknown(key: str, path: str) -> str:
    return f"unknown field `{_join(path, _clip(key))}`"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _describe(node: Node) -> str:
    """What stands there, for a message."""
    match node:
        case Sequence():
            return "a list"
        case Mapping():
            return "a mapping"
        case Scalar(quoted=True):
            return f"the text {_clip(node.text)!r}"
        case Scalar(type="null"):
            return "nothing" if node.text in ("", "~") else "null"
        case Scalar(type="bool") if node.text.lower() not in ("true", "false"):
            meaning = "true" if node.text.lower() in ("yes", "on") else "false"
            return f"{node.text}, which YAML 1.1 reads as {meaning}"
    return _clip(node.text) if node.text.isprintable() else repr(_clip(node.text))
