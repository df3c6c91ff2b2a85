"""Files that commands write or judge."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def is_generated(path: Path) -> bool:
    """Whether a generator wrote this file, by its first line."""
    from based_ops.codegen.artifacts import MARK

    try:
        return path.read_bytes().startswith(MARK.encode())
    except OSError:
        return False


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or an interruption, finds it whole: the old one or the new."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
