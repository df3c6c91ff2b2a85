"""Naive mathematics in the input's precision: quadratic, obvious, and the oracle of the tests.

Every function is plain differentiable PyTorch; run it in float64 to judge a kernel.
"""

from __future__ import annotations

from .delta import delta_rule
from .feature_maps import elementwise, key_features, query_features
from .linear_attention import linear_attention
from .sliding_window import sliding_window

__all__ = [
    "delta_rule",
    "elementwise",
    "key_features",
    "linear_attention",
    "query_features",
    "sliding_window",
]
