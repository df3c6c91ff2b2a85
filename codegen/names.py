"""Every name that leaves the compiler: of layers, operators, kernels and files."""

from __future__ import annotations

import keyword
import re
from pathlib import PurePosixPath

NAMESPACE = "based_ops"
"""The namespace of the registered operators: ``torch.ops.based_ops``."""

PASSES = ("forward", "backward", "step")
BACKENDS = ("triton", "tilelang", "torch")

FEATURES = "features"
"""The generated module of what queries and keys go through before a layer's kernels, in PyTorch."""

WINDOW_PROGRAMS = {"forward": "outputs", "backward": "gradients"}
"""The one program of each pass of a window over a sequence."""
RECURRENCE = "recurrence"

MAX_NAME_LENGTH = 64
NAME_RULE = "lower-case ASCII letters, digits and underscores, starting with a letter"
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def on_warpgroups(name: str) -> str:
    """The name of the kernel, plan or pass that is for Hopper's warpgroups, in place of another."""
    return f"{name}_warpgroups"


def packed(name: str) -> str:
    """The program, plan or pass that is for several sequences in one token axis, in place of another."""
    return f"{name}_packed"


def by_fourier(part: str) -> str:
    """The pass that convolves by Fourier transforms."""
    return f"{part}_fourier"


def second_look(program: str) -> str:
    """The function in which a kernel does rows again, where something is not finite."""
    return f"{program}_second_look"


def features_of(side: str | None) -> str:
    """What makes features of one side, query or key, or of both alike: for operators and modules."""
    return FEATURES if side is None else f"{side}_{FEATURES}"


def features_name(name: str, which: str) -> str:
    """How the operators that make a layer's features begin: ``t2r_qk64_v64_features``."""
    return f"{name}_{which}"


def variant_of(name: str) -> str:
    """The variant of operators of this name, which may make its features."""
    for side in ("query", "key", None):
        if name.endswith(end := f"_{features_of(side)}"):
            return name.removesuffix(end)
    return name


def features_module(which: str, backend: str) -> str:
    """The generated module of one backend that makes features: ``features_triton``."""
    return f"{which}_{backend}"


def name_problem(name: str, hyphens: bool = False) -> str | None:
    """Why `name` cannot name a layer, or None when it can.

    Names become Python identifiers, operator names and directory names, so nothing else passes.  With
    `hyphens` it is that of a file alone, and may have some.
    """
    if not name:
        return "is empty"
    if len(name) > MAX_NAME_LENGTH:
        return f"has {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed"
    if not _NAME.fullmatch(name.replace("-", "_") if hyphens else name):
        return f"must be {NAME_RULE}"
    if keyword.iskeyword(name):
        return "is a Python keyword"
    return None


def suggest_name(text: str) -> str | None:
    """A valid layer name made from `text`, or None when too little of it is usable."""
    candidate = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:MAX_NAME_LENGTH]
    return candidate if name_problem(candidate) is None else None


def op_name(name: str, pass_name: str) -> str:
    """The operator of one pass: ``window64_d64`` and ``forward`` give ``window64_d64_forward``."""
    return f"{name}_{pass_name}"


def qualified_op_name(name: str, pass_name: str) -> str:
    """The operator with its namespace, as ``torch.library`` wants it: ``based_ops::window64_d64_forward``."""
    return f"{NAMESPACE}::{op_name(name, pass_name)}"


def variant_dir(name: str) -> PurePosixPath:
    """The directory of a layer's generated modules, relative to the output directory."""
    return PurePosixPath(name)


def variant_file(name: str, backend: str) -> PurePosixPath:
    """The generated module of one backend, relative to the output directory: ``window64_d64/triton.py``."""
    return variant_dir(name) / f"{backend}.py"


def spec_file(name: str) -> PurePosixPath:
    """The spec of a layer, relative to the directory of specs."""
    return PurePosixPath(f"{name}.yaml")
