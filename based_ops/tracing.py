"""What the library says to Dynamo without importing it, and whether anybody records what it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def run_while_tracing(function: Callable[P, R]) -> Callable[P, R]:
    """Has Dynamo call `function` for real, on constants, and take its result as a constant.

    This is `torch.compiler.assume_constant_result`, which would import all of Dynamo, over a second, to set
    one attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active


def is_traced() -> bool:
    """Whether operators called now are recorded, to run again later and elsewhere, or transformed."""
    return torch.compiler.is_compiling() or _modes() != 0 or _transforms()
