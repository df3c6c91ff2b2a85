"""Programs for Hopper's warpgroups that differ from the portable ones: in how they normalise."""

from __future__ import annotations

from ..ir.check import check
from ..ir.program import Program
from ..ir.rewrite import drop_unused
from ..ir.tidy import tidy
from ..memory.normalizer import Eighths
from ..mixers.linear_attention import LinearAttention
from .feature_maps import feature_map
from .groups import over_queries
from .linear_attention import heads_of_states
from .linear_attention_parts import Layer
from .linear_attention_recurrence import recurrence


def recurrence_of(spec: LinearAttention) -> Program:
    """The recurrence of a layer whose state is small."""
    layer = Layer(spec, feature_map(spec))
    of_states, user_states = heads_of_states(layer)
    program = over_queries(recurrence(layer, Eighths), *of_states, *user_states)
    check(program)
    return tidy(drop_unused(program))
