"""A step of the delta rule: tokens one after the other, with some columns of the state in registers.

A column of the state knows nothing of the others, so programs share them out.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import ACC, IO, Cast, Full, Load, Span, Sum, Var, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SOLVES, TOKEN
from ..memory.states import B, H
from .delta_parts import DeltaLayer
from .linear_attention_parts import BATCH_AXES, ROWS, TOKENS
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one


def step(layer: DeltaLayer) -> Program:
    """The state is corrected in place and read."""
    b = Builder()
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    memory, features, kept = layer.corrected(b, fades=False), layer.features, layer.user_states("")
    tiles = (*memory.tiles, "key")

    def row_of(name: str, tensor: str, t: Var) -> Var:
        return features.row_features(b, name, tensor, (B, t, H), block.f, block.selection)

    with b.blocks("f0", features.rows, memory.size, tiles) as f0:
        block = memory.block(f0)
        weight = features.weights(b, block.f, block.selection)
        state = memory.zeros(block.f)
        state.restore(kept, "_given")
    with one_by_one(b, TOKENS) as t:
        decay = layer.decay_of(b, t)
        answer = b.let("answer", Full(("VALUES",), 0.0))
        with b.blocks("f0", features.rows, memory.size, tiles):
            state.fade(decay)
            key = row_of("key", "k", t)
            b.add(answer, Sum(b.let("answered", column(key * weight) * state.sums), 0))
        value = b.let("y", Load("v", (B, t, H, u), ACC))
        given = b.let("beta_given", Load("beta", (B, t, H), ACC))
        rate = b.let("rate", given / features.kernel(wrap(1.0)))
        corrected = b.let("corrected", (value - answer) * rate)
        with b.blocks("f0", features.rows, memory.size, tiles):
            b.add(state.sums, column(key) * row(corrected))
        with members(b):
            out = b.let("out", Full(("VALUES",), 0.0))
            with b.blocks("f0", features.rows, memory.size, tiles):
                query = b.let("weighted_query", row_of("query", "q", t) * weight)
                b.add(out, Sum(b.let("read", column(query) * state.sums), 0))
            b.store("o", (B, t, H, u), Cast(answered(b, out), IO))
    with b.blocks("f0", features.rows, memory.size, tiles):
        state.store(kept)
    tensors = (
        Tensor("q", (*ROWS, layer.qk), IO, strided=True),
        Tensor("k", (*ROWS, layer.qk), IO, strided=True),
        layer.values("v"),
        *layer.given_decays(),
        layer.rates(),
        *in_slots(kept),
        layer.values("o", strided=False),
    )
    constants = features.constants
    return Program(
        "token",
        "Tokens one after the other: the state is corrected in place and read.",
        (*BATCH_AXES, Axis("value_block", cdiv(layer.v, "VALUES"))),
        tensors,
        ("B", "T", "H", POOLED),
        ("scale",),
        FLAGS,
        (*constants, "VALUES"),
        b.body,
        {"QK": layer.qk} if "QK" in constants else {},
        frozenset({TOKEN, SOLVES}),
    )
