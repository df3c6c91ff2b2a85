"""The host side of a pass: allocate, launch, return.

A pass is what PyTorch calls.  Its shapes, arguments and conditions are Python expressions over the names in
scope, because every backend's host language is Python; only how a kernel is launched differs, and that is the
emitters' business.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One line of Python, the same for every backend."""

    text: str


@dataclass(frozen=True)
class Allocate:
    """An uninitialised tensor on the device of the inputs.

    Where `when` is false there is None instead, or an empty tensor if the pass returns it.
    """

    name: str
    shape: tuple[str, ...]
    dtype: str
    when: str | None = None


@dataclass(frozen=True)
class Launch:
    """Run a program.  Parameters not named in `arguments` are the host variables of the same name."""

    program: str
    arguments: dict[str, str] = field(default_factory=dict, hash=False)
    when: str | None = None


@dataclass(frozen=True)
class Pass:
    """One function of a generated module."""

    name: str
    summary: str
    parameters: tuple[str, ...]
    body: tuple[Line | Allocate | Launch, ...]
    results: tuple[str, ...]
