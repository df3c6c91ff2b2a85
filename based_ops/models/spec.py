"""Spec files of language models; `codegen.spec.language_model` says what they hold."""

from __future__ import annotations

import difflib
from pathlib import Path

from based_ops.codegen.spec.language_model import ModelSpec

from ..errors import CheckpointError
from ..extras import require

SHIPPED = Path(__file__).parent.parent / "specs" / "models"


def shipped() -> dict[str, Path]:
    """The spec files of the models that come with the package, by name.

    Examples:
        >>> from based_ops import models
        >>> "based-360m" in models.shipped()
        True
    """
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_spec(path: str | Path) -> ModelSpec:
    """The spec of a file, or the shipped one of that name.

    Raises `SpecErrors` with every fault and its place, and `CheckpointError` if there is no such file.

    Args:
        path: A file, or the name of a shipped model.

    Raises:
        SpecErrors: the spec is wrong.
        CheckpointError: there is no such file.

    Examples:
        >>> from based_ops import models
        >>> models.load_spec("based-360m").d_model
        1024
    """
    known = shipped()
    found = known.get(str(path), Path(path))
    try:
        text = found.read_bytes()
    except OSError as error:
        near = difflib.get_close_matches(str(path), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(known)}"
        raise CheckpointError(
            f"{path}: no shipped model, and no spec file: {error.strerror}; {hint}"
        ) from error
    return parse_spec(text, str(found), found.stem)


def parse_spec(data: bytes | str, file: str = "<spec>", stem: str | None = None) -> ModelSpec:
    """The model of a spec text; `stem`, when given, is the name that it must have.  Raises `SpecErrors`."""
    require("compile", "reading a model's spec")
    from based_ops.codegen.errors import SpecError, SpecErrors
    from based_ops.codegen.spec.source import read_nodes
    from based_ops.codegen.spec.validate import Validator

    root = read_nodes(data.encode() if isinstance(data, str) else data, file)
    if isinstance(root, SpecError):
        raise SpecErrors([root])
    validator = Validator(file)
    spec = validator.document(root, ModelSpec, stem)
    if spec is not None:
        for i, entry in enumerate(spec.placement):
            if wrong := [x for x in entry.layers if x >= spec.layers]:
                message = f"`placement[{i}].layers` names {wrong[0]}, the last layer is {spec.layers - 1}"
                validator.errors.append(SpecError(file, root.line, root.column, message))
    if spec is None or validator.errors:
        raise SpecErrors(validator.errors)
    return spec
