"""Folders of models for Transformers: read strictly, from our other formats too, and written whole."""

from __future__ import annotations

from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentTypeError, CheckpointError, fail
from ..models import checkpoint, published, transformers_folder
from ..models.files import read_weights, written_aside
from ..models.hub import folder_of
from ..models.transformers_folder import INDEX, TENSORS

HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")


def found(name: Any, options: dict[str, Any]) -> Path | None:
    """The folder of a name, downloaded if it has to be; None where weights are given instead."""
    if name is None:
        return None
    return folder_of(name, **{key: options.pop(key) for key in HUB if key in options})


def is_foreign(folder: Path) -> bool:
    """Whether it holds a model in another format than Transformers'."""
    if (folder / checkpoint.SPEC).is_file():
        return True
    return published.is_published(folder) and not transformers_folder.is_one(folder)


def converted(
    kind: Any, folder: Path, *, dtype: Any = None, output_loading_info: bool = False, **others: Any
) -> Any:
    """A model of `kind` from one of our other formats."""
    from .model import BasedForCausalLM

    others.pop("trust_remote_code", None)
    dtype = others.pop("torch_dtype", dtype)
    if others:
        what = (
            "left out, or given with a folder that `based-ops models convert IN OUT --to transformers` made"
        )
        fail(ArgumentTypeError, next(iter(others)), "one", what)
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    made = BasedForCausalLM.of(checkpoint.load(folder, dtype=dtype))
    made.config.name_or_path = str(folder)
    for token, number in published.tokens_of(folder).items():
        setattr(made.config, token, number)
        setattr(made.generation_config, token, number)
    model = made if kind is BasedForCausalLM else made.model
    nothing = {f"{what}_keys": set[str]() for what in ("missing", "unexpected", "mismatched")}
    return (model, nothing | {"error_msgs": []}) if output_loading_info else model


def checked(
    load: Callable[..., Any],
    name: Any,
    *args: Any,
    ignore_mismatched_sizes: bool = False,
    output_loading_info: bool = False,
    **options: Any,
) -> Any:
    """What `load` makes of a folder of Transformers; raises `CheckpointError` unless all weights fit."""
    from safetensors import SafetensorError

    try:
        model, info = load(name, *args, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    except (SafetensorError, JSONDecodeError) as error:
        read_weights(Path(name), [TENSORS])  # which says what file it is
        raise CheckpointError(f"{name}: cannot be read: {error}") from error
    wrong = [(key, "missing from the weights") for key in sorted(info["missing_keys"])]
    wrong += [(key, f"of no layer of {model.config.model_name}") for key in sorted(info["unexpected_keys"])]
    if not ignore_mismatched_sizes:
        for key, got, wanted in sorted(info["mismatched_keys"], key=lambda x: x[0]):
            wrong.append((key, f"got shape {list(got)}, must be of shape {list(wanted)}"))
    if wrong:
        key, what = wrong[0]
        more = f", and {len(wrong) - 1} more keys are wrong" if len(wrong) > 1 else ""
        raise CheckpointError(f"{key}: {what}{more}")
    return (model, info) if output_loading_info else model


def saved(save: Callable[..., Any], folder: Path, *args: Any, **options: Any) -> None:
    """Calls `save` for a folder aside, whose files are then renamed; weights of an earlier one go."""
    if folder.is_file():
        raise CheckpointError(f"{folder}: a file, and must be a folder")
    if options.get("push_to_hub"):  # by the name of the folder
        save(folder, *args, **options)
        return
    older = weights_of(folder)
    with written_aside(folder) as place:
        save(place, *args, **options)
        written = {folder / path.name for path in weights_of(place)}
    if written:  # other ranks write none
        for path in older - written:
            path.unlink(missing_ok=True)


def weights_of(folder: Path) -> set[Path]:
    """The files of weights of a folder."""
    return {*folder.glob("model*.safetensors"), *folder.glob(INDEX)}
