"""Files of models: read with errors that name them, and written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..extras import require


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.  Raises `CheckpointError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a mapping")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU.  Raises `CheckpointError`."""
    try:
        if path.suffix == ".safetensors":
            require("models", "reading a model", "safetensors")
            from safetensors.torch import load_file

            found: dict[str, Tensor] = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise CheckpointError(f"{path}: not a dict of tensors by name")
    return found


def has_weights(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder has one of these files of weights, or the index of its shards."""
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in names)


def read_weights(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of the first of these files that there is, whole or in shards.  Raises `CheckpointError`."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if index.is_file():
            return _of_shards(folder, read_json(index).get("weight_map"), index)
    raise CheckpointError(f"{folder}: has neither {' nor '.join(names)}")


def _of_shards(folder: Path, places: Any, index: Path) -> dict[str, Tensor]:
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index}: its weight_map is not a mapping of names to files")
    shards = {file: read_tensors(folder / Path(file).name) for file in sorted(set(places.values()))}
    for name, file in places.items():
        if name not in shards[file]:
            raise CheckpointError(f"{name}: missing from {folder / file}, where the index has it")
    return {name: x for shard in shards.values() for name, x in shard.items()}


def free(folder: Path, known: bool) -> None:
    """Raises `CheckpointError` if a folder has files, and is not `known` for a model that may be replaced."""
    if folder.is_file() or (folder.exists() and not known and any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists, and is no model: name another folder")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; its files go there at the end, or are gone if something raises.

    A folder that is not there gets its name at once; else each file is renamed into it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield place
        place.chmod(0o777 & ~_umask())
        if not folder.exists():
            os.replace(place, folder)
            return
        for file in sorted(place.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _umask() -> int:
    """What new files may not be; asking for it sets it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
