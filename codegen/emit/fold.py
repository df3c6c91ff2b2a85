"""Break a long line of Python the way a person would: at its loosest operator, or between arguments."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

OPERATORS = ((" & ",), (" >= ", " <= ", " == ", " < ", " > "), (" + ", " - "), (" * ", " / ", " // ", " % "))
"""Binary operators from loose to tight, as generated code spaces them."""
OPENING, CLOSING = "([{", ")]}"
TARGET = re.compile(r"\w+(\[[\w, ]+\])?")
"""What may stand on the left of an assignment."""


def fold(text: str, room: int, inside: bool = False) -> list[str]:
    """`text` as lines of at most `room` characters where it can be broken; inner lines are indented.

    `inside` brackets a line may end anywhere.
    """
    if len(text) <= room:
        return [text]
    if inside and len(parts := _operands(text)) > 1:
        return list(_packed(parts, room))
    target, assigned, value = text.partition(" = ")
    if assigned and TARGET.fullmatch(target):
        parts = _operands(value)
        if len(parts) > 1:
            return [f"{target} = (", *_indent(_packed(parts, room - 4)), ")"]
    group = _widest_group(text)
    if group is None:
        return [text]
    start, stop = group
    inner = text[start + 1 : stop]
    arguments = _split(inner, (", ",))
    if len(arguments) > 1:
        lines = _packed([f"{argument}," for argument in arguments], room - 4)
    else:
        lines = _packed(_operands(inner), room - 4)
    return [text[: start + 1], *_indent(lines), text[stop:]]


def _packed(parts: list[str], room: int) -> Iterator[str]:
    """The parts, as many on a line as fit; a part that fits on no line is folded itself."""
    current = ""
    for part in parts:
        if current and len(current) + 1 + len(part) <= room:
            current = f"{current} {part}"
            continue
        if current:
            yield from fold(current, room, inside=True)
        current = part
    if current:
        yield from fold(current, room, inside=True)


def _indent(lines: Iterator[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _operands(text: str) -> list[str]:
    """The operands of the loosest operators outside any bracket, each but the first led by its operator."""
    for operators in OPERATORS:
        parts = _split(text, operators)
        if len(parts) > 1:
            return parts
    return [text]


def _split(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split outside brackets and strings; an operator stays with what follows it, a comma goes."""
    parts, depth, begin = [], 0, 0
    for match in _places(separators).finditer(text):
        found = match[0]
        if found in OPENING:
            depth += 1
        elif found in CLOSING:
            depth -= 1
        elif depth == 0 and found in separators and match.start() > begin:
            parts.append(text[begin : match.start()])
            begin = match.end() if found == ", " else match.start() + 1
    return [*parts, text[begin:]]


@functools.cache
def _places(separators: tuple[str, ...]) -> re.Pattern[str]:
    """Where a text may be split, and what says that it may not: brackets and strings."""
    return re.compile("|".join(['"[^"]*"', r"[()\[\]{}]", *map(re.escape, separators)]))


def _widest_group(text: str) -> tuple[int, int] | None:
    """Where the longest outermost pair of round brackets opens and closes."""
    groups, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in OPENING:
            if depth == 0:
                start = position
            depth += 1
        elif character in CLOSING:
            depth -= 1
            if depth == 0 and text[start] == "(":
                groups.append((start, position))
    return max(groups, key=lambda group: group[1] - group[0], default=None)
