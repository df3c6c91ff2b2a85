"""Compile layer specs into registered PyTorch operators.

    import based_ops
    op = based_ops.get("taylor2_qk16_v64")       # a generated variant
    op = based_ops.load("my_layer.yaml")         # compiled just in time
    o, final_state = op(q, k, v, output_final_state=True)

Importing the package registers the operators of the generated variants; kernels, and the compilers of the
backends, are imported by the first call that needs them.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from . import errors
from .registry import get, names
from .state import LinearAttentionState, SlidingWindowState

if TYPE_CHECKING:
    from . import layers
    from .variant import Variant

__all__ = [
    "LinearAttentionState",
    "SlidingWindowState",
    "Variant",
    "errors",
    "get",
    "layers",
    "load",
    "names",
]
__version__ = "0.1.0"

_LAZY = {"layers": "based_ops.layers", "Variant": "based_ops.variant"}


def load(path: str | os.PathLike[str]) -> Variant:
    """The variant that a spec file describes, compiled on first use; see `based_ops.jit.load`."""
    from .jit import load as compile_and_load

    return compile_and_load(path)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if name == "layers" else getattr(module, name)


def _register_generated() -> None:
    try:
        importlib.import_module("based_ops.generated")
    except ModuleNotFoundError as error:
        if error.name != "based_ops.generated":
            raise
        # A checkout in which nothing has been generated yet: `based-ops generate` must still run.


_register_generated()
