"""What the library says to Dynamo without importing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def run_while_tracing(function: Callable[P, R]) -> Callable[P, R]:
    """Has Dynamo call `function` for real, on constants, and take its result as a constant.

    This is `torch.compiler.assume_constant_result`, which would import all of Dynamo, over a second, to set
    one attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
