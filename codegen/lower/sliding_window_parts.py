"""What the programs of the sliding window share: names, parameters, and their memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.nodes import INDEX, IO, Const, Expr, Span, Var, cdiv, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SOFTMAX
from ..memory.window import Window
from ..memory.window_rows import Rows
from ..mixers.sliding_window import SlidingWindow
from .ragged import BEGIN, BEGUN, END, FIRST, FLAGGED, LENGTH, RAGGED, Segment
from .sequence import Sequence

QUERIES = Sequence("T")
"""The tokens of a program that has no keys beside them."""
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
PACKED_QUERIES, PACKED_KEYS = (
    Sequence(axis, Chosen(RAGGED, BEGIN, Const(0)), Chosen(RAGGED, END, Var(axis))) for axis in ("T", "Tk")
)
"""The sequences that a program works on, which may be one of several that are packed."""
QUERY_ROWS, KEY_ROWS = ("B", "T", "H"), ("B", "Tk", "H")
UNDER = {"segments": RAGGED, "N": RAGGED}
NUMBERS = ("B", "H", "T")
"""One number a query: a head's lie side by side, for the program that has them."""


class Layer:
    """The sizes of one layer, and the pieces that several of its programs need."""

    def __init__(self, spec: SlidingWindow) -> None:
        self.window, self.qk, self.v = spec.window, spec.head_dims.qk, spec.head_dims.v

    # Parameters

    def inputs(self) -> tuple[Tensor, ...]:
        return (
            Tensor("q", (*QUERY_ROWS, self.qk), IO, strided=True),
            Tensor("k", (*KEY_ROWS, self.qk), IO, strided=True),
            Tensor("v", (*KEY_ROWS, self.v), IO, strided=True),
        )

    def program(
        self,
        name: str,
        summary: str,
        axis: Axis,
        tensors: tuple[Tensor, ...],
        b: Builder,
        constants: tuple[str, ...],
        does: Iterable[str] = (),
        streamed: bool = False,
    ) -> Program:
        """A program over chunks, or over segments, with the parameters that all of them have."""
        if not streamed:
            axis = replace(axis, extent=Chosen(RAGGED, Var("segments"), axis.extent))
        first = Tensor("first", ("B", "H"), INDEX, optional="PADDED")
        of_sequences = Tensor("first_of_sequences", ("N", "H"), INDEX, optional=BEGUN)
        return Program(
            name,
            summary,
            (*BATCH_AXES, axis),
            (*tensors, first, of_sequences, FLAGGED),
            ("B", "T", "Tk", "H", *(("segments",) if streamed else UNDER)),
            ("scale",),
            ("PADDED", *(() if streamed else ("FURTHER",)), RAGGED, BEGUN),
            (*constants, "QK", "VALUES"),
            b.body,
            {"QK": self.qk, "VALUES": self.v},
            frozenset((SOFTMAX, *does)),
            {} if streamed else UNDER,
        )

    # Pieces

    def memory(self, b: Builder) -> Window:
        return Window(b, self.window, PACKED_QUERIES, PACKED_KEYS)

    def chunk(self, b: Builder, again: bool = False) -> Expr:
        """The first token of a program's chunk, which under RAGGED is a segment; see `Segment.of_chunk`."""
        chunk = Var("chunk")
        with b.when(RAGGED):
            Segment.of_packed(b, chunk)
        if not again:
            b.only(RAGGED, FIRST < END)
        return Chosen(RAGGED, FIRST, chunk * "CHUNK")

    def rows(self, b: Builder) -> Rows:
        """The rows of a second look.

        What it needs is introduced anew: what the program had of it would be kept for its sake, through every
        loop, in registers.
        """
        b.let("d", Span(wrap(0), "QK"))
        b.let("u", Span(wrap(0), "VALUES"))
        return Rows(self.memory(b))

    def segment_length(self, b: Builder) -> Var:
        """Tokens of a segment of one sequence, see `ragged.segment_length`."""
        return b.let(LENGTH.name, cdiv(cdiv(QUERIES.length, "CHUNK"), "segments") * "CHUNK")

    def segment(self, b: Builder) -> tuple[Var, Var]:
        """Where the segment of a second look begins and ends."""
        segment = Segment.of_program(b, again=True)
        self.segment_length(b)
        return b.let("first_token", segment.first), b.let("stop_token", segment.end)
