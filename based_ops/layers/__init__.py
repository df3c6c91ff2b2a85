"""Attention layers over the compiled variants, as `torch.nn` modules."""

from __future__ import annotations

from .linear_attention import LinearAttention
from .rotary import rotate
from .sliding_window import SlidingWindowAttention

__all__ = ["LinearAttention", "SlidingWindowAttention", "rotate"]
