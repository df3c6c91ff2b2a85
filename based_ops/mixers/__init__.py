"""One module a mixer: its operators and its public object."""

from __future__ import annotations

from collections.abc import Callable

from ..ops import Ops
from ..variant import Variant
from . import linear_attention, sliding_window

DEFINE: dict[str, Callable[[Ops], None]] = {
    "linear_attention": linear_attention.define,
    "sliding_window": sliding_window.define,
}
VARIANT: dict[str, type[Variant]] = {
    "linear_attention": linear_attention.LinearAttentionVariant,
    "sliding_window": sliding_window.SlidingWindowVariant,
}
