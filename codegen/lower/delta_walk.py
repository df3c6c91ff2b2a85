"""A walk over a sequence in chunks, with some columns of its state in registers.

It keeps the state where a segment begins or ends, for programs that have a chunk each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from .. import names
from ..ir.build import Builder
from ..ir.nodes import Const, Expr, Span, Var, cdiv, minimum, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import HOLDS, SOLVES
from ..memory.states import Kept, State
from .delta_parts import DeltaLayer
from .linear_attention_parts import BATCH_AXES, SIZES, TOKENS
from .prefix import bounds
from .ragged import BEGIN, BOUNDS, END, SEQUENCE, TABLE, Segment
from .sequence import Sequence


class Walk:
    """The sequence of a program: all tokens of a batch entry, or one of several `packed` ones."""

    def __init__(self, layer: DeltaLayer, b: Builder, packed: bool) -> None:
        self.layer, self.b, self.packed = layer, b, packed
        b.let("d", Span(wrap(0), "QK"))
        b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
        self.begin: Expr = Const(0)
        self.segment: Expr = Const(0)
        """The first of its segments."""
        self.tokens = TOKENS
        if packed:
            self.segment, count = bounds(b)
            Segment.of_packed(b, self.segment)
            self.length = b.let("length", cdiv(cdiv("places", "SEGMENT"), "segments") * "SEGMENT")
            self.begin = BEGIN
            # A sequence without tokens has no segment, and one whose segments nobody has room for ends there.
            stop = b.let("stop", minimum(END, BEGIN + count * self.length))
            self.tokens = Sequence("T", start=BEGIN, end=stop, begin=BEGIN)
        else:
            self.length = layer.segment_length(b)
        self.memory = layer.corrected(b, self.tokens)

    def number(self, token: Expr) -> Expr:
        """The number of the segment that a token is in, among those of the sequence."""
        return (token - self.begin if self.packed else token) // self.length

    def state(self, given: Kept, flag: str) -> tuple[State, Var | None]:
        """The state at the start of the walk, as `given` under a flag; and weights of features."""
        b, memory, features = self.b, self.memory, self.layer.features
        with self.blocks() as f0:
            self.block = memory.block(f0)
            weight = features.fixed_weights(b, self.block.f, self.block.selection)
            state = memory.zeros(self.block.f)
            with b.when(flag):
                state.restore(given, "_given")
        return state, weight

    def blocks(self) -> AbstractContextManager[Var]:
        """Statements for each block of features."""
        return self.b.blocks("f0", self.layer.features.rows, self.memory.size, self.memory.tiles)

    def program(
        self,
        name: str,
        summary: str,
        tensors: tuple[Tensor, ...],
        flags: tuple[str, ...],
        does: tuple[str, ...] = (),
    ) -> Program:
        layer = self.layer
        sizes = (*SIZES, *(("N", "places") if self.packed else ()), "solved")
        block = () if layer.features.block == "QK" else ("FEATURES",)
        return Program(
            names.packed(name) if self.packed else name,
            summary,
            (
                *((BATCH_AXES[1], SEQUENCE) if self.packed else BATCH_AXES),
                Axis("value_block", cdiv(layer.v, "VALUES")),
            ),
            (*tensors, *((BOUNDS, TABLE) if self.packed else ())),
            sizes,
            ("scale",),
            flags,
            ("SEGMENT", "CHUNK", "QK", *block, "VALUES"),
            self.b.body,
            {"QK": layer.qk},
            frozenset({SOLVES, HOLDS, *does}),
        )
