"""Layers over the compiled variants, as `torch.nn` modules."""

from __future__ import annotations

from ..mixers.short_conv import GatedShortConv, ShortConv
from .delta_net import DeltaNet, DeltaNetState
from .hybrid import HybridAttention
from .linear_attention import BasedDelta, LinearAttention
from .long_conv import H3, BaseConv, Hyena, ImplicitConv
from .mamba2 import Mamba2Mixer, Mamba2State
from .rotary import rotate
from .sliding_window import SlidingWindowAttention
from .sparse_attention import SparseAttention

__all__ = [
    "BaseConv",
    "BasedDelta",
    "DeltaNet",
    "DeltaNetState",
    "GatedShortConv",
    "H3",
    "HybridAttention",
    "Hyena",
    "ImplicitConv",
    "LinearAttention",
    "Mamba2Mixer",
    "Mamba2State",
    "ShortConv",
    "SlidingWindowAttention",
    "SparseAttention",
    "rotate",
]
