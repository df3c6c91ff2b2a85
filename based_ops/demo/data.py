"""Real text that is on every machine: the source files of Python's standard library, as bytes."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT = 20
"""Every so many files, one is kept from training."""
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
"""Directories of other people's code, and of files that are no ordinary code."""


@dataclass(frozen=True)
class Text:
    """Bytes to learn from and bytes to be judged on, as uint8 tensors, from different files."""

    train: Tensor
    held_out: Tensor
    files: int


def standard_library() -> Text:
    """The standard library of the Python that runs, its files in alphabetical order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts))
    contents = [path.read_bytes() for path in paths]
    kept = b"".join(text for i, text in enumerate(contents) if i % HELD_OUT == HELD_OUT - 1)
    train = b"".join(text for i, text in enumerate(contents) if i % HELD_OUT != HELD_OUT - 1)
    return Text(_tensor(train), _tensor(kept), len(contents))


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch(text: Tensor, size: int, length: int, generator: torch.Generator) -> Tensor:
    """Random pieces of a text, int64 [size, length + 1]: inputs and, one further, targets."""
    start = torch.randint(len(text) - length - 1, (size,), generator=generator)
    return torch.stack([text[i : i + length + 1] for i in start.tolist()]).long()
