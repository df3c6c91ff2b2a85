"""The library's logger, `logging.getLogger("based_ops")`: silent unless a program or the environment asks.

`BASED_OPS_LOG=info` prints on standard error which backend serves a layer and why, what is compiled and how
long that took, and what the cache had; `debug` says besides which packages register layers, and what the
first call of a kind took.  A program sets handlers and levels as for any logger, and needs no variable.
"""

from __future__ import annotations

import logging
import os
import warnings

VARIABLE = "BASED_OPS_LOG"
LEVELS = ("debug", "info", "warning", "error")
LOGGER = logging.getLogger("based_ops")
FORMAT = "%(asctime)s based_ops %(levelname)s: %(message)s"


def set_up() -> None:
    """Makes the logger silent, or as loud as the environment says; a word that is no level is warned of."""
    if not any(isinstance(handler, logging.NullHandler) for handler in LOGGER.handlers):
        LOGGER.addHandler(logging.NullHandler())
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if not asked:
        return
    if asked not in LEVELS:
        text = f"{VARIABLE}: got {asked!r}, must be one of {', '.join(LEVELS)}; nothing is logged"
        warnings.warn(text, stacklevel=2)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(asked.upper())
    LOGGER.propagate = False  # else a program's own handler would print each line again
