"""What only some users need: packages that come with an extra, and the error that names it.

Running generated layers takes torch and triton alone.  Whatever takes more asks for it here before it
imports it.
"""

from __future__ import annotations

import importlib.util

from based_ops.codegen.errors import BasedOpsError

_COMPILE = ("sympy", "yaml")
EXTRAS = {
    "compile": _COMPILE,
    "tilelang": ("tilelang",),
    "models": (*_COMPILE, "safetensors"),
    "hf": (*_COMPILE, "transformers", "huggingface_hub"),
    "harness": (*_COMPILE, "lm_eval"),
    "cli": (*_COMPILE, "click", "rich"),
    "onnx": (*_COMPILE, "onnx"),
}
"""The modules that an extra brings, as far as this library imports them."""


class MissingExtra(BasedOpsError, ImportError):
    """A package is not installed that comes with an extra; the message says which."""

    remedy = (
        "use the pip of the Python that runs this, `python -m pip`; README.md#installation has the extras"
    )


def installed(module: str) -> bool:
    """Whether a top-level module can be imported; it is not imported.

    Neither a placeholder in its place nor a mere directory of that name can.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a placeholder may have no spec
        return False
    return spec is not None and spec.origin is not None


def command(extra: str) -> str:
    """What to type to have an extra."""
    return f"pip install 'based-ops[{extra}]'"


def require(extra: str, what: str, *modules: str) -> None:
    """Raises `MissingExtra` unless what `what` needs is there: `modules`, or all that the extra brings."""
    missing = [module for module in modules or EXTRAS[extra] if not installed(module)]
    if missing:
        raise MissingExtra(f"{what} needs {', '.join(missing)}; run: {command(extra)}")
