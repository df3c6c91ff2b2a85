"""Layers whose steps write their sums seldom."""

from __future__ import annotations

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import Elementwise, HeadDims, Power, TaylorExp

REPLAY = (
    LinearAttention("replay_taylor2", TaylorExp(2), HeadDims(9, 24), replay=3),
    LinearAttention("replay_elu", Elementwise("elu(x) + 1"), HeadDims(20, 40), replay=2),
    LinearAttention("replay_one", TaylorExp(1), HeadDims(8, 16), normalize=False, replay=1),
    LinearAttention("replay_narrow", TaylorExp(2), HeadDims(8, 17), state_dtype="float16", replay=4),
    LinearAttention(
        "replay_plain", Power(3), HeadDims(8, 16), normalize=False, state_dtype="float16", replay=5
    ),
)
"""Layers of every kind; the first is for backends on which compiling takes a minute."""
