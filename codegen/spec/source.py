"""YAML text as nodes that remember where they stand.

Only what a spec needs: one document of mappings, lists and plain values.  Anchors, aliases and tags are
refused, depth and size are bounded, and no Python object is ever constructed from the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import SpecError

MAX_BYTES = 16 * 1024
MAX_DEPTH = 8
_TAG = "tag:yaml.org,2002:"
_TYPES = frozenset({"str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map"})


@dataclass(frozen=True)
class Scalar:
    """One value: its text, and what YAML takes it for (str, int, float, bool, null, ...).

    `verbatim`: the text stands in the file as it is here, so that positions in it are positions in the file.
    """

    line: int
    column: int
    text: str
    type: str
    quoted: bool
    verbatim: bool


@dataclass(frozen=True)
class Sequence:
    line: int
    column: int
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Mapping:
    """Key and value pairs in the order of the file, duplicates included."""

    line: int
    column: int
    items: tuple[tuple[Node, Node], ...]


Node = Scalar | Sequence | Mapping


class _Fault(Exception):
    """A finding at a mark; the rest of the text cannot be read."""

    def __init__(self, message: str, mark: yaml.Mark) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """The safe loader, up to its nodes, without anchors, aliases and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Fault("anchors (&) and aliases (*) are not allowed", event.start_mark)
        if self.depth > MAX_DEPTH:
            raise _Fault(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_nodes(data: bytes, file: str) -> Node | SpecError:
    """The one document of a file, or why it cannot be read."""
    if len(data) > MAX_BYTES:
        return SpecError(file, 1, 1, f"the file is larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        return SpecError(file, *_end_of(before), "the file is not UTF-8 text")
    try:
        root = _Loader(text).get_single_node()
        if root is None:
            return SpecError(
                file, 1, 1, "the file is empty; a spec is a mapping with at least `name` and `mixer`"
            )
        return _convert(root)
    except _Fault as fault:
        return SpecError(file, fault.mark.line + 1, fault.mark.column + 1, fault.message)
    except yaml.reader.ReaderError as error:
        line, column = _end_of(text[: error.position])
        return SpecError(file, line, column, f"the character {chr(error.character)!r} is not allowed")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            return SpecError(file, 1, 1, "not YAML")
        return SpecError(file, mark.line + 1, mark.column + 1, _explain(error))


def _end_of(text: str) -> tuple[int, int]:
    """Line and column, from 1, of the position just after `text`."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return "a tab; YAML is indented with spaces"
    if problem == "but found another document":
        return "a second document; a file holds one spec"
    if problem == "mapping values are not allowed here":
        return "not YAML: a `:` where no key can stand; check the indentation, and quote text that holds `: `"
    return f"not YAML: {problem}"


def _convert(node: yaml.Node) -> Node:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    if node.tag.removeprefix(_TAG) not in _TYPES:
        raise _Fault(f"tags such as {node.tag} are not allowed", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        quoted = node.style is not None
        verbatim = not quoted and node.start_mark.line == node.end_mark.line
        return Scalar(line, column, node.value, node.tag[len(_TAG) :], quoted, verbatim)
    if isinstance(node, yaml.SequenceNode):
        return Sequence(line, column, tuple(map(_convert, node.value)))
    assert isinstance(node, yaml.MappingNode)  # the third and last kind of node
    return Mapping(line, column, tuple(_pairs(node)))


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[Node, Node]]:
    for key, value in node.value:
        yield _convert(key), _convert(value)
