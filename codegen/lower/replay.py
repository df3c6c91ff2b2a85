"""The step of a layer whose state is seldom written: see `memory/replay.py`."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import INDEX, IO, Cast, Span, wrap
from ..ir.program import Program, Tensor
from ..ir.traits import TOKEN
from ..memory.replay import IN_SUMS, Late, Replay
from ..memory.states import B, H
from .linear_attention_parts import BATCH_AXES, ROWS, TOKENS, Layer
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one


def step(layer: Layer, period: int) -> Program:
    """Tokens one after the other: each enters the ring, and its query reads the sums and the ring."""
    b, zero = Builder(), wrap(0)
    d, u = b.let("d", Span(zero, "QK")), b.let("u", Span(zero, "VALUES"))
    memory, state = layer.memory(b), layer.user_states("")
    narrow = layer.spec.state_dtype if layer.spec.state_dtype != "float32" else None
    with one_by_one(b, TOKENS) as t, members(b):
        ring = Late(b, period, t, layer.features)
        token = Replay(memory, state, ring, t, narrow)
        with memory.blocks() as block:
            token.enter_and_read(block)
        _, query = layer.features.exact(b, "query_row", "q", (B, t, H, d), d)
        out = b.let("o_of_token", ring.read(query, token.sums()))
        b.store("o", (B, t, H, u), Cast(answered(b, out), IO))
        ring.store()
    tensors = (
        *(Tensor(name, (*ROWS, layer.qk), IO, strided=True) for name in ("q", "k")),
        layer.values("v"),
        *in_slots(
            (
                Tensor("ring_k", ("B", "H", 2 * period, layer.qk), IO),
                Tensor("ring_v", ("B", "H", 2 * period, layer.v), IO),
                Tensor("position", ("B", "H"), INDEX),
                Tensor(IN_SUMS, ("B", "H"), INDEX),
                *state,
            )
        ),
        layer.values("o", strided=False),
    )
    return Program(
        "token",
        "Tokens one after the other: the sums and the ring are read, and a full ring enters the sums.",
        BATCH_AXES,
        tensors,
        ("B", "T", "H", POOLED),
        ("scale",),
        FLAGS,
        tuple(dict.fromkeys((*layer.features.constants, "RING", "QK", "VALUES"))),
        b.body,
        {"QK": layer.qk, "VALUES": layer.v},
        frozenset({TOKEN}),
    )
