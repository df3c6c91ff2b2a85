"""Compile layer specs into registered PyTorch operators.

    import based_ops
    op = based_ops.get("taylor2_qk16_v64")       # a generated variant
    op = based_ops.load("my_layer.yaml")         # compiled just in time
    o, final_state = op(q, k, v, output_final_state=True)

Importing the package registers the operators of the generated variants; kernels, and the compilers of the
backends, are imported by the first call that needs them.  The command line alone waits with PyTorch, and with
the operators, until a command asks for one of them: most commands need neither.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import log

if TYPE_CHECKING:
    from . import errors, layers
    from .mixers.hybrid import HybridState
    from .mixers.linear_attention import ReplayState
    from .mixers.long_conv import LongConvHistory
    from .mixers.short_conv import ShortConvState
    from .mixers.state_space import StateSpaceState
    from .registry import get, names
    from .state import LinearAttentionState, SlidingWindowState
    from .state_base import State
    from .variant import Variant

__all__ = [
    "HybridState",
    "LinearAttentionState",
    "LongConvHistory",
    "ReplayState",
    "ShortConvState",
    "SlidingWindowState",
    "StateSpaceState",
    "Variant",
    "errors",
    "get",
    "layers",
    "load",
    "names",
]
__version__ = "0.1.0"

_AT_ONCE = {
    "HybridState": "mixers.hybrid",
    "LinearAttentionState": "state",
    "LongConvHistory": "mixers.long_conv",
    "ReplayState": "mixers.linear_attention",
    "ShortConvState": "mixers.short_conv",
    "SlidingWindowState": "state",
    "StateSpaceState": "mixers.state_space",
    "errors": "errors",
    "get": "registry",  # whose import registers what is generated
    "names": "registry",
}
_LATER = {"Variant": "variant", "layers": "layers"}


def load(path: str | os.PathLike[str]) -> Variant[State]:
    """The variant that a spec file describes, compiled on first use; see `based_ops.jit.load`.

    Equal specs give the same object, and its operators have names that no shipped layer has.

    Args:
        path: That of a YAML file.

    Raises:
        ArgumentTypeError: `path` is no path.
        SpecErrors: the spec is wrong; with every fault, its place and what is allowed.
        CacheError: the cache directory cannot be used or trusted.
        MissingExtra: the compiler's packages, extra `compile`, are not installed.

    Examples:
        >>> import based_ops, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "my_map.yaml")
        >>> fields = "feature_map: {kind: elementwise, expression: relu(x)**2}, head_dims: {qk: 8, v: 16}"
        >>> _ = path.write_text(f"{{name: my_map, mixer: linear_attention, {fields}}}")
        >>> based_ops.load(path).state_bytes(batch=1, heads=1)  # 8 rows of 16 values and a normaliser
        544
    """
    from .jit import load as compile_and_load

    return compile_and_load(path)


def __getattr__(name: str) -> Any:
    where = (_AT_ONCE | _LATER).get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{where}")
    globals()[name] = module if name == where else getattr(module, name)
    return globals()[name]


def _is_command_line() -> bool:
    """Whether this process was started as ``based-ops`` or ``python -m based_ops``."""
    program, words = getattr(sys, "argv", [""])[0], sys.orig_argv
    if program == "-m":  # and not yet the file that it names
        return ("-m", __name__) in zip(words, words[1:], strict=False)
    return Path(program).stem == "based-ops"


log.set_up()
if not _is_command_line():
    for _name in _AT_ONCE:
        __getattr__(_name)
