"""Text that lies on any machine: Python's own library, and the documents of `based-ops recall fields`."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from based_ops.errors import BasedOpsError
from based_ops.recall.tasks import Example, examples, fields

LIBRARY, FIELDS = "library", "fields"
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}
"""Folders of the library that hold others' packages, or no text."""


def gather(folder: Path) -> tuple[list[Path], list[Example]]:
    """Copies the text below `folder`; the folders to train on, and the examples that are asked afterwards.

    Where there are too few packages to ask about, there are no examples.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        below = path.relative_to(library)
        if not LEFT_OUT & set(below.parts):
            (folder / LIBRARY / below).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / LIBRARY / below)
    try:
        fields.make(folder / FIELDS)
    except BasedOpsError:
        return [folder / LIBRARY], []
    asked = examples.read(folder / FIELDS / "validation.jsonl")
    return [folder / LIBRARY, folder / FIELDS / "text"], asked
