"""Functions of numbers that TileLang lacks, or has in a form that loses NaN; for C and CUDA alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tilelang.language as tl
from tilelang import tvm


def maximum_or_nan(x: Any, y: Any) -> Any:
    """The larger of two, and NaN where one of them is."""
    return _or_nan(tl.max, x, y)


def minimum_or_nan(x: Any, y: Any) -> Any:
    """The smaller of two, likewise."""
    return _or_nan(tl.min, x, y)


def if_positive(x: Any, y: Any) -> Any:
    """y where x > 0, NaN where x is NaN, else 0."""
    name = tvm.tirx.Var("x", "float32")
    chosen = tvm.tirx.Select(name > 0.0, y, tvm.tirx.Select(tl.isnan(name), name, 0.0))
    return tvm.tirx.Let(name, x, chosen)


def log1p(x: Any) -> Any:
    """log(1 + x) with the digits of a small x."""
    return tl.call_pure_extern("float32", "log1pf", x)


def expm1(x: Any) -> Any:
    """exp(x) - 1 with the digits of a small x."""
    return tl.call_pure_extern("float32", "expm1f", x)


def erfc(x: Any) -> Any:
    """1 - erf(x) with the digits of a small result."""
    return tl.call_pure_extern("float32", "erfcf", x)


def _or_nan(choose: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """What `choose` gives, or a NaN among what it chooses from.

    TileLang simplifies comparisons as if there were no NaN; of `isnan` it knows nothing.
    """
    names = [x if isinstance(x, float) else tvm.tirx.Var("x", "float32")]
    names += [y if isinstance(y, float) else tvm.tirx.Var("y", "float32")]
    result = choose(*names)
    for name in names:
        if not isinstance(name, float):
            result = tvm.tirx.Select(tl.isnan(name), name, result)
    for name, value in zip(names, (x, y), strict=True):
        if not isinstance(name, float):
            result = tvm.tirx.Let(name, value, result)
    return result
