"""Layers over the compiled variants, as `torch.nn` modules."""

from __future__ import annotations

from ..mixers.short_conv import GatedShortConv, ShortConv
from .linear_attention import LinearAttention
from .rotary import rotate
from .sliding_window import SlidingWindowAttention

__all__ = ["GatedShortConv", "LinearAttention", "ShortConv", "SlidingWindowAttention", "rotate"]
