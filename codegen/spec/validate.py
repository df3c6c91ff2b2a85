"""From located YAML nodes to a layer spec, collecting every fault on the way.

The walk follows the kinds that the model attaches to its fields; a new field needs no code here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Table
from typing import Any, TypeVar

from .. import names
from ..errors import ExpressionError, SpecError, nearest_kind, nearest_name
from ..mixers import mixers
from . import fields as k
from .model import LayerSpec, yaml_scalar
from .source import Mapping, Node, Scalar, Sequence
from .words import clip, describe, dotted, join, unknown

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)

T = TypeVar("T")


class _Bad:
    """Stands for a value that was reported; whatever holds it is not built."""


BAD = _Bad()


class Validator:
    """Reads the nodes of one file; `errors` and `warnings` hold every finding."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.errors: list[SpecError] = []
        self.warnings: list[SpecError] = []

    def layer(self, root: Node, stem: str | None) -> LayerSpec | None:
        """The layer of the document, or None if anything is wrong.  `stem`: the name that it must have."""
        if not isinstance(root, Mapping):
            self._report(root, f"a spec is a mapping with at least `name` and `mixer`, not {describe(root)}")
            return None
        entries = self._entries(root, "")
        mixer, certain = self._kind(root, entries, "mixer", mixers(), "")
        if certain:
            self._unknown_layer_keys(root, mixer[0])
        else:
            self._unknown_keys(root, tuple(_fields_of_all_mixers()), "")
        values = self._of_each(mixer, lambda self, name: self._layer_values(root, entries, name, stem))
        return None if self.errors else mixers()[mixer[0]](**values)

    def document(self, root: Node, cls: type[T], stem: str | None) -> T | None:
        """A document of one kind: the dataclass `cls` that it describes, or None if anything is wrong."""
        if not isinstance(root, Mapping):
            self._report(root, f"a spec is a mapping with at least `name`, not {describe(root)}")
            return None
        entries = self._entries(root, "")
        self._unknown_keys(root, tuple(k.spec_fields(cls)), "")
        values = self._values(root, entries, cls, {}, "")
        self._same_name(entries, values, stem)
        return None if self.errors else cls(**values)

    def _same_name(self, entries: Table[str, Node], values: Table[str, Any], stem: str | None) -> None:
        if stem is not None and "name" in entries and values["name"] not in (BAD, stem):
            message = f"the name `{values['name']}` differs from the name of the file, `{stem}.yaml`"
            self._report(entries["name"], message)

    def _layer_values(
        self, root: Mapping, entries: Table[str, Node], mixer: str, stem: str | None
    ) -> dict[str, Any]:
        """The values of the fields of a layer of one mixer."""
        values = self._values(root, entries, mixers()[mixer], {}, "")
        self._same_name(entries, values, stem)
        for conflict in mixers()[mixer].conflicts(values):
            place = _inner_node(root, conflict.path)
            found = self.errors if conflict.grave else self.warnings
            message = f"`{dotted(conflict.path)}`: {conflict.message}"
            found.append(SpecError(self.file, place.line, place.column, message))
        return values

    # -- which of several kinds of thing a mapping is -------------------------------------------------------

    def _kind(
        self, node: Mapping, entries: Table[str, Node], tag: str, kinds: Table[str, type], path: str
    ) -> tuple[tuple[str, ...], bool]:
        """The kinds that a mapping may be meant to be, and whether its tag says which.

        A tag that is missing or hopeless leaves the kinds that have the most of the fields given.
        """
        value, certain = entries.get(tag), tag in entries
        if value is not None:
            self._choice(value, tuple(kinds), join(path, tag), nearest_kind)
        else:
            fields = {name for cls in kinds.values() for name in k.spec_fields(cls)}
            # A misspelt key is reported as such, once.
            misspelt = [key for key in entries if key not in fields and nearest_name(key, [tag])]
            value = entries[misspelt[0]] if misspelt else None
            if not misspelt:
                self._report(node, f"`{join(path, tag)}` is missing", tuple(kinds))
        text = value.text if isinstance(value, Scalar) else ""
        if meant := text if text in kinds else nearest_kind(text, kinds):
            return (meant,), certain
        given = {name: len(entries.keys() & k.spec_fields(cls).keys()) for name, cls in kinds.items()}
        return tuple(name for name in kinds if given[name] == max(given.values())), False

    def _of_each(self, kinds: tuple[str, ...], read: Callable[[Validator, str], T]) -> T:
        """What `read` gives for the one kind.  Of several, the errors that all share are reported."""
        if len(kinds) == 1:
            return read(self, kinds[0])
        trials = [Validator(self.file) for _ in kinds]
        results = [read(trial, kind) for trial, kind in zip(trials, kinds, strict=True)]
        self.errors += [e for e in trials[0].errors if all(e in trial.errors for trial in trials)]
        return results[0]

    # -- the layer's own mapping ----------------------------------------------------------------------------

    def _unknown_layer_keys(self, root: Mapping, mixer: str) -> None:
        name, *others_known = k.spec_fields(mixers()[mixer])
        known = (name, "mixer", *others_known)
        for key, node in self._keys(root):
            if key in known:
                continue
            others = [other for other, cls in mixers().items() if key in k.spec_fields(cls)]
            owner = _inner_owner(key)
            if owner in known:
                self._report(node, f"`{key}` belongs under `{owner}`", known, f"{owner}.{key}")
            elif others:
                message = f"`{key}` is a field of {' and '.join(others)}, not of {mixer}"
                self._report(node, message, known)
            else:
                self._report(node, unknown(key, ""), known, nearest_name(key, known))

    # -- mappings -----------------------------------------------------------------------------------------

    def _keys(self, node: Mapping) -> list[tuple[str, Scalar]]:
        return [(key.text, key) for key, _ in node.items if isinstance(key, Scalar)]

    def _entries(self, node: Mapping, path: str) -> dict[str, Node]:
        """The values by key, the first of duplicates; duplicates and keys that are no words are reported."""
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.items:
            if not isinstance(key, Scalar):
                self._report(key, f"a key must be a word, not {describe(key)}")
            elif key.text in entries:
                self._report(key, f"`{join(path, key.text)}` is given twice, first in line {lines[key.text]}")
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
                    entries[name], narrowed.get(name, k.kind_of(item)), join(path, name)
                )
            elif k.is_required(item) and not self._misspelt(name, record, entries):
                doc = k.doc_of(item).rstrip(".")
                self._report(node, f"`{join(path, name)}` is missing: {doc[0].lower()}{doc[1:]}")
        return values

    def _misspelt(self, name: str, record: type, entries: Table[str, Node]) -> bool:
        """Whether an unknown key was probably meant to be this field, which is then not missing as well."""
        known = (*k.spec_fields(record), "mixer", "kind")
        return any(key not in known and nearest_name(key, known) == name for key in entries)

    def _unknown_keys(self, node: Mapping, known: tuple[str, ...], path: str) -> None:
        """Report the keys of a mapping that are none of `known`."""
        for key, key_node in self._keys(node):
            if key not in known:
                self._report(key_node, unknown(key, path), known, nearest_name(key, known))

    # -- values -------------------------------------------------------------------------------------------

    def _value(self, node: Node, kind: k.Kind, path: str) -> Any:
        """The value of one field, or BAD after reporting why it has none."""
        match kind:
            case k.Name():
                return self._name(node, kind, path)
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
                return self._expression(node, kind, path)
            case k.Record():
                return self._record(node, kind, path)
            case k.Tagged():
                return self._tagged(node, kind, path)
            case k.Several():
                return self._several(node, kind, path)

    def _name(self, node: Node, kind: k.Name, path: str) -> Any:
        if not isinstance(node, Scalar):
            return self._wrong(node, path, "a name")
        if node.type != "str":
            remedy = "" if node.type == "null" else "; quote it"
            return self._report(node, f"`{path}` must be text, not {describe(node)}{remedy}")
        problem = names.name_problem(node.text, kind.hyphens)
        if problem is not None:
            shown = f"`{clip(node.text)}` " if node.text else ""
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
            node, f"`{path}` must be true or false, not {describe(node)}", ("true", "false"), meant
        )

    def _choice(
        self,
        node: Node,
        values: tuple[str, ...],
        path: str,
        nearest: Callable[[str, Iterable[str]], str | None] = nearest_name,
    ) -> Any:
        if isinstance(node, Scalar) and node.text in values:
            return node.text
        if not isinstance(node, Scalar):
            return self._report(node, f"`{path}` cannot be {describe(node)}", values)
        return self._report(node, f"`{path}` cannot be {clip(node.text)}", values, nearest(node.text, values))

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

    def _expression(self, node: Node, kind: k.Expression, path: str) -> Any:
        if kind.optional and isinstance(node, Scalar) and node.type == "null":
            return None
        if not isinstance(node, Scalar) or node.type != "str":
            or_null = ", or null" if kind.optional else ""
            return self._wrong(node, path, f"an expression in x, such as elu(x) + 1{or_null}")
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
        if kind.optional and isinstance(node, Scalar) and node.type == "null":
            return None
        if not isinstance(node, Mapping):
            inner = ", ".join(f"{name}: ..." for name in k.spec_fields(kind.type))
            or_null = ", or null" if kind.optional else ""
            return self._wrong(node, path, f"a mapping {{{inner}}}{or_null}")
        entries = self._entries(node, path)
        self._unknown_keys(node, tuple(k.spec_fields(kind.type)), path)
        values = self._values(node, entries, kind.type, kind.kinds, path)
        return kind.type(**values) if _is_complete(kind.type, values) else BAD

    def _tagged(self, node: Node, kind: k.Tagged, path: str) -> Any:
        if not isinstance(node, Mapping):
            example = f"a mapping with a `{kind.tag}`"
            nearest = nearest_kind(node.text, kind.types) if isinstance(node, Scalar) else None
            return self._wrong(
                node, path, example, tuple(kind.types), nearest and f"{{{kind.tag}: {nearest}}}"
            )
        entries = self._entries(node, path)
        types, certain = self._kind(node, entries, kind.tag, kind.types, path)
        known = [types[0]] if certain else list(kind.types)
        fields = dict.fromkeys(name for name in known for name in k.spec_fields(kind.types[name]))
        self._unknown_keys(node, (kind.tag, *fields), path)
        values = self._of_each(
            types, lambda self, name: self._values(node, entries, kind.types[name], {}, path)
        )
        record = kind.types[types[0]]
        tag = entries.get(kind.tag)
        right = isinstance(tag, Scalar) and tag.text == types[0]
        return record(**values) if right and _is_complete(record, values) else BAD

    def _several(self, node: Node, kind: k.Several, path: str) -> Any:
        if kind.optional and isinstance(node, Scalar) and node.type == "null":
            return None
        if not isinstance(node, Sequence):
            return self._wrong(node, path, "a list" + (", or null" if kind.optional else ""))
        if not kind.low <= len(node.items) <= kind.high:
            return self._report(
                node, f"`{path}` must list from {kind.low} to {kind.high}, not {len(node.items)}"
            )
        values = [self._value(item, kind.item, f"{path}[{i}]") for i, item in enumerate(node.items)]
        return BAD if BAD in values else tuple(values)

    # -- reporting ----------------------------------------------------------------------------------------

    def _wrong(
        self, node: Node, path: str, expected: str, allowed: tuple[str, ...] = (), nearest: str | None = None
    ) -> _Bad:
        return self._report(node, f"`{path}` must be {expected}, not {describe(node)}", allowed, nearest)

    def _report(
        self, node: Node, message: str, allowed: tuple[str, ...] = (), nearest: str | None = None
    ) -> _Bad:
        self.errors.append(SpecError(self.file, node.line, node.column, message, allowed, nearest))
        return BAD


def _is_complete(record: type, values: Table[str, Any]) -> bool:
    """Whether a dataclass can be made of these values."""
    items = k.spec_fields(record).items()
    return BAD not in values.values() and all(name in values or not k.is_required(x) for name, x in items)


def _fields_of_all_mixers() -> dict[str, Any]:
    fields: dict[str, Any] = {"name": None, "mixer": None}
    for cls in mixers().values():
        fields.update(k.spec_fields(cls))
    return fields


def _inner_node(node: Node, path: tuple[str | int, ...]) -> Node:
    """The value at a path of keys and of places in lists."""
    for name in path:
        if isinstance(node, Sequence) and isinstance(name, int):
            node = node.items[name]
        elif isinstance(node, Mapping):
            node = next(value for key, value in node.items if isinstance(key, Scalar) and key.text == name)
    return node


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
