"""Where specs lie and where kernels go."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import fail

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec

PACKAGE = Path(__file__).resolve().parent.parent
RESULTS = PACKAGE / "benchmarks" / "results"
"""Of a checkout: a wheel does not have them."""
RECORDS, RECALL = RESULTS / "h200.json", RESULTS / "recall-h200.csv"
"""Times of operators, and recall."""


def checkout() -> Path | None:
    """The root of the checkout that this package is run from, if it is."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "codegen").is_dir() else None


def shipped_specs() -> Path:
    """The specs that come with this package; in a checkout the room that the package links to."""
    return (PACKAGE / "specs").resolve()


def specs_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--specs``, a directory that must exist."""
    return click.option(
        "--specs",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Directory of specs.  [default: the shipped ones]",
    )(function)


def is_path(name: str) -> bool:
    """Whether an argument is a spec's file and not its name; names hold neither dots nor slashes."""
    return "." in name or "/" in name


def find_spec(name: str, specs: Path | None) -> LayerSpec:
    """The spec that a name or a path means; ends the command if it is wrong or missing."""
    from based_ops.codegen.errors import SpecErrors
    from based_ops.codegen.spec.load import load_dir, load_file

    try:
        return load_file(name) if is_path(name) else load_dir(specs or shipped_specs(), [name])[name]
    except SpecErrors as errors:
        fail(errors)


def command_line(words: Sequence[str | Path]) -> str:
    """A command to copy into a shell."""
    return shlex.join(str(word) for word in words)
