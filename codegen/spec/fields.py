"""The kinds of value a spec field can hold.

The model attaches one to each of its dataclass fields; reader, JSON schema and template follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Name:
    """The name of what a file describes, or of a layer.  With `hyphens` it is no name of an operator."""

    hyphens: bool = False


@dataclass(frozen=True)
class Integer:
    """A whole number, bounds included."""

    low: int
    high: int


@dataclass(frozen=True)
class Number:
    """A finite number up to `high`; `low` itself is allowed unless `above`.  `optional` allows null."""

    low: float
    high: float
    above: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Flag:
    """true or false."""


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """A list of distinct words; kept in the order of `values`."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Expression:
    """An elementwise expression in x; kept in its canonical form.  `optional` allows null."""

    optional: bool = False


@dataclass(frozen=True)
class Record:
    """A mapping with the fields of the dataclass `type`; `kinds` narrows some of them for this use.

    `optional` allows null.
    """

    type: type
    kinds: Mapping[str, Kind]
    optional: bool = False


@dataclass(frozen=True)
class Tagged:
    """A mapping whose field `tag` says which of several dataclasses it is.

    Under a `name` the schema defines it once, for all that refer to it.
    """

    tag: str
    types: Mapping[str, type]
    name: str = ""


@dataclass(frozen=True)
class Several:
    """A list of `low` to `high` values of one kind.  `optional` allows null."""

    item: Kind
    low: int
    high: int
    optional: bool = False


Kind = Name | Integer | Number | Flag | Choice | Choices | Expression | Record | Tagged | Several


def spec_field(kind: Kind, doc: str, default: Any = MISSING, quiet: bool = False) -> Any:
    """A dataclass field of a spec: its kind, one line of documentation, and its default (none: required).

    One that is `quiet` is not written out where it has its default.
    """
    metadata = {"kind": kind, "doc": doc, "quiet": quiet}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def kind_of(item: Field[Any]) -> Kind:
    kind: Kind = item.metadata["kind"]
    return kind


def doc_of(item: Field[Any]) -> str:
    doc: str = item.metadata["doc"]
    return doc


def is_quiet(item: Field[Any]) -> bool:
    return bool(item.metadata["quiet"])


def is_required(item: Field[Any]) -> bool:
    return item.default is MISSING


def spec_fields(record: type) -> dict[str, Field[Any]]:
    """The fields of a spec dataclass by name, in the order in which a file should give them."""
    return {item.name: item for item in fields(record)}
