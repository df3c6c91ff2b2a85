"""How messages about spec files call places and what stands there."""

from __future__ import annotations

from .source import Mapping, Node, Scalar, Sequence

_MAX_SHOWN = 40


def unknown(key: str, path: str) -> str:
    return f"unknown field `{join(path, clip(key))}`"


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in path).removeprefix(".")


def clip(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def describe(node: Node) -> str:
    """What stands there, for a message."""
    match node:
        case Sequence():
            return "a list"
        case Mapping():
            return "a mapping"
        case Scalar(quoted=True):
            return f"the text {clip(node.text)!r}"
        case Scalar(type="null"):
            return "nothing" if node.text in ("", "~") else "null"
        case Scalar(type="bool") if node.text.lower() not in ("true", "false"):
            meaning = "true" if node.text.lower() in ("yes", "on") else "false"
            return f"{node.text}, which YAML 1.1 reads as {meaning}"
    return clip(node.text) if node.text.isprintable() else repr(clip(node.text))
