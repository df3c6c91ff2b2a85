"""Checkpoints by their name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..extras import require

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("*.json", "*.yaml", "*.safetensors", "pytorch_model*.bin")


def folder_of(name: str | Path, **options: Any) -> Path:
    """The folder of that name, or else the one that the hub's repository of that name is downloaded to.

    `options` are those of `huggingface_hub.snapshot_download`, such as `revision` and `local_files_only`.
    Raises `CheckpointError` if there is neither, or the hub cannot be reached and nothing is kept of it, and
    `MissingExtra` where huggingface_hub is not installed.
    """
    path = Path(name)
    if path.is_dir() or not isinstance(name, str) or not REPOSITORY.fullmatch(name):
        return path
    require("hf", f"downloading {name}", "huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES), **options))
    except Exception as error:  # of the network, of the hub, or of its client
        text = " ".join(str(error).split())
        wrong = CheckpointError(f"{name}: no folder, and not to be had from the hub: {text}")
        step = "check the name and the network; `based-ops models list` names what is shipped"
        raise wrong.then(step) from error
