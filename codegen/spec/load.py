"""Spec files to layer specs.  All faults of all files are reported together; doubts are warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from ..errors import SpecError, SpecErrors, SpecWarning, nearest_name
from .model import LayerSpec
from .source import MAX_BYTES, read_nodes
from .validate import Validator


def parse_spec(data: bytes | str, file: str = "<spec>", stem: str | None = None) -> LayerSpec:
    """The layer of a spec text; `file` stands in messages, and `stem`, when given, is the name it must have.

    Raises SpecErrors.
    """
    spec, errors = _read(data.encode() if isinstance(data, str) else data, file, stem)
    if spec is None:
        raise SpecErrors(errors)
    return spec


def load_file(path: str | Path) -> LayerSpec:
    """The layer of one file, whose name must be that of the file.  Raises SpecErrors."""
    spec, errors = _load(Path(path))
    if spec is None:
        raise SpecErrors(errors)
    return spec


def load_dir(directory: str | Path, names: Iterable[str] = ()) -> dict[str, LayerSpec]:
    """The layers of a directory's ``*.yaml`` files by name, sorted; of those called `names` only, if any.

    Raises SpecErrors with every fault of every file that was read.
    """
    directory = Path(directory)
    try:
        entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise SpecErrors([_unreadable(directory, error)]) from error
    files = {entry.stem: entry for entry in entries if entry.suffix == ".yaml"}
    errors = [
        SpecError(str(entry), 0, 0, "spec files end in .yaml; rename it", (), f"{entry.stem}.yaml")
        for entry in entries
        if entry.suffix.lower() in (".yml", ".yaml") and entry.suffix != ".yaml"
    ]
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in files:
            message = f"there is no layer `{name}` in this directory"
            errors.append(SpecError(str(directory), 0, 0, message, (), nearest_name(name, files)))
    if not files and not errors:
        errors.append(SpecError(str(directory), 0, 0, "there is no spec (*.yaml) in this directory"))
    specs: dict[str, LayerSpec] = {}
    for stem, path in files.items():
        if wanted and stem not in wanted:
            continue
        spec, found = _load(path)
        errors += found
        if spec is not None:
            specs[spec.name] = spec
    if errors:
        raise SpecErrors(errors)
    return specs


def _load(path: Path) -> tuple[LayerSpec | None, list[SpecError]]:
    try:
        with path.open("rb") as stream:
            # One byte more than allowed, so that a file of any size is refused without reading it.
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        return None, [_unreadable(path, error)]
    if path.suffix != ".yaml":
        return None, [
            SpecError(str(path), 0, 0, "spec files end in .yaml; rename it", (), f"{path.stem}.yaml")
        ]
    return _read(data, str(path), path.stem)


def _read(data: bytes, file: str, stem: str | None) -> tuple[LayerSpec | None, list[SpecError]]:
    root = read_nodes(data, file)
    if isinstance(root, SpecError):
        return None, [root]
    validator = Validator(file)
    spec = validator.layer(root, stem)
    for warning in validator.warnings:
        warnings.warn(str(warning), SpecWarning, stacklevel=4)
    return spec, validator.errors


def _unreadable(path: Path, error: OSError) -> SpecError:
    return SpecError(str(path), 0, 0, f"cannot be read: {error.strerror or error}")
