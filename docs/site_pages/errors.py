"""The page of errors, from their classes: what each means, and what to do next."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

from based_ops import errors
from based_ops.codegen.errors import BasedOpsError

COMPILER = ("codegen.errors", "codegen.schedule.record_file", "codegen.schedule.legal")
"""Modules of the compiler that have errors of their own."""


def classes() -> list[type[BasedOpsError]]:
    """Every class of error that the library raises, for users first."""
    for module in COMPILER:
        importlib.import_module(f"based_ops.{module}")
    found = [x for x in _below(BasedOpsError) if x.__module__.partition(".")[0] == "based_ops"]
    public = [x for x in found if getattr(errors, x.__name__, None) is x]
    return public + [x for x in found if x not in public]


def _below(cls: type[BasedOpsError]) -> Iterator[type[BasedOpsError]]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)


def sections() -> str:
    """A section for each class."""
    return "\n\n".join(map(_section, classes()))


def _section(cls: type[BasedOpsError]) -> str:
    bases = ", ".join(f"`{x.__name__}`" for x in cls.__bases__ if x is not BasedOpsError)
    also = f"Also a {bases}." if bases else ""
    where = f"`based_ops.errors.{cls.__name__}`" if hasattr(errors, cls.__name__) else f"`{cls.__module__}`"
    step = re.sub(r"[\w/-]+\.md(#[\w-]+)?", r"[\g<0>](../\g<0>)", cls.remedy)
    return f"### {cls.__name__}\n\n{where}. {also}\n\n{inspect.getdoc(cls)}\n\n**Next:** {step}."
