"""Layers over the compiled variants, as `torch.nn` modules."""

from __future__ import annotations

from ..mixers.short_conv import GatedShortConv, ShortConv
from .delta_net import DeltaNet, DeltaNetState
from .h3 import H3, H3State
from .hybrid import HybridAttention
from .hyena import BaseConv, Hyena, HyenaState, MultiHyena
from .linear_attention import BasedDelta, LinearAttention
from .long_conv import ExplicitConv, ImplicitConv, LongConv
from .mamba2 import Mamba2Mixer, Mamba2State
from .modal import ModalConv
from .relaxed import LongConvState, RelaxedConvolution
from .rotary import rotate
from .s4 import S4, S4State
from .sliding_window import SlidingWindowAttention
from .sparse_attention import SparseAttention
from .state_space import StateSpace
from .timescales import parameter_groups

__all__ = [
    "BaseConv",
    "BasedDelta",
    "DeltaNet",
    "DeltaNetState",
    "ExplicitConv",
    "GatedShortConv",
    "H3",
    "H3State",
    "HybridAttention",
    "Hyena",
    "HyenaState",
    "ImplicitConv",
    "LinearAttention",
    "LongConv",
    "LongConvState",
    "Mamba2Mixer",
    "Mamba2State",
    "ModalConv",
    "MultiHyena",
    "RelaxedConvolution",
    "S4",
    "S4State",
    "ShortConv",
    "SlidingWindowAttention",
    "SparseAttention",
    "StateSpace",
    "parameter_groups",
    "rotate",
]
