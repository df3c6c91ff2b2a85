"""Scales that are tensors: a learned temperature for each head, with gradients.

A scale multiplies q·k.  Where a layer's weights are a function of that, it goes onto the queries; where they
are products of mapped queries and keys it is a factor on the output, which a normaliser would cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .checks import sizes
from .errors import ArgumentValueError, DeviceError, DtypeError, ShapeError, fail
from .heads import repeated

if TYPE_CHECKING:
    from .variant import Variant

NAME = "scale"


def call(variant: Variant, function: Callable[..., Any], q: Tensor, scale: Tensor) -> Any:
    """What `function` gives of q [B,T,H,D] and of a number, for `scale` [H]: an output, perhaps with more."""
    spec = variant.spec
    feature_map = getattr(spec, "feature_map", None)
    on_queries = feature_map is None or feature_map.kind != "elementwise"
    if not on_queries and spec.normalize:
        what = "a Python float: the sum by which this layer divides has the scale too"
        fail(ArgumentValueError, NAME, "a tensor", what)
    if not isinstance(q, Tensor) or q.dim() != 4:
        return function(q, scale=1.0)  # which says what is wrong
    _check(q, scale)
    factor = scale.view(1, 1, -1, 1)
    if on_queries:
        return function((q * factor).to(q.dtype), scale=1.0)
    found = function(q, scale=1.0)
    o, *more = found if isinstance(found, tuple) else (found,)
    o = (o * repeated(factor, o.shape[2])).to(o.dtype)
    return (o, *more) if more else o


def _check(q: Tensor, scale: Tensor) -> None:
    if not scale.is_floating_point():
        fail(DtypeError, NAME, str(scale.dtype), "a floating dtype")
    if scale.dim() != 1 or scale.shape[0] != q.shape[2]:
        fail(ShapeError, NAME, sizes(scale), f"of shape [{q.shape[2]}], a number for each head of q")
    if scale.device != q.device:
        fail(DeviceError, NAME, str(scale.device), f"on the device of q, {q.device}")
