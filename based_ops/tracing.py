"""What the library says to Dynamo without importing it, and whether anybody records what it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

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


# Every call asks, so the names are looked up once.
_dynamo = torch.compiler.is_dynamo_compiling
_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active


def is_traced() -> bool:
    """Whether operators called now are recorded, to run again later and elsewhere, or transformed.

    All that compiles or exports is Dynamo or a mode.
    """
    return _dynamo() or _modes() != 0 or _transforms()


_numbers: dict[tuple[str, str], Any] = {}


def numbers(variant: str, values: Mapping[str, Any]) -> None:
    """Says what `number` gives."""
    _numbers.update({(variant, which): value for which, value in values.items()})


@run_while_tracing
def number(variant: str, which: str) -> Any:
    """A number of a variant, for Dynamo a constant.

    Dynamo takes numbers that it reads from an object as symbols under dynamic shapes, but not the result of a
    function that it runs on strings.
    """
    return _numbers[variant, which]


def constant(which: str, doc: str) -> Any:
    """A property, a number of a variant and for Dynamo a constant, which the class says the type of."""

    def read(variant: Any) -> Any:
        return number(variant.name, which)

    return property(read, doc=doc)
