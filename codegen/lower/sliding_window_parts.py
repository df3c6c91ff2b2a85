"""What the programs of the sliding window share: names, parameters, and their memory."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.build import Builder
from ..ir.nodes import INDEX, IO, Span, Var, cdiv, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SOFTMAX
from ..memory.window import Window
from ..memory.window_rows import Rows
from ..mixers.sliding_window import SlidingWindow
from .sequence import Sequence

QUERIES, KEYS = Sequence("T"), Sequence("Tk")
"""The sequences that a program works on."""
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
QUERY_ROWS, KEY_ROWS = ("B", "T", "H"), ("B", "Tk", "H")
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
    ) -> Program:
        """A program over chunks, with the parameters that all of them have."""
        first = Tensor("first", ("B", "H"), INDEX, optional="PADDED")
        return Program(
            name,
            summary,
            (*BATCH_AXES, axis),
            (*tensors, first),
            ("B", "T", "Tk", "H"),
            ("scale",),
            ("PADDED", "FURTHER"),
            (*constants, "QK", "VALUES"),
            b.body,
            {"QK": self.qk, "VALUES": self.v},
            frozenset((SOFTMAX, *does)),
        )

    # Pieces

    def memory(self, b: Builder) -> Window:
        return Window(b, self.window, QUERIES, KEYS)

    def rows(self, b: Builder) -> Rows:
        """The rows of a second look.

        What it needs is introduced anew: what the program had of it would be kept for its sake, through every
        loop, in registers.
        """
        b.let("d", Span(wrap(0), "QK"))
        b.let("u", Span(wrap(0), "VALUES"))
        return Rows(self.memory(b))

    def segment(self, b: Builder) -> tuple[Var, Var]:
        """Where a segment begins and ends, of a program that has one."""
        length = cdiv(cdiv(QUERIES.length, "CHUNK"), "segments") * "CHUNK"
        first = b.let("first_token", QUERIES.token(Var("segment") * length))
        return first, b.let("stop_token", QUERIES.until(first + length))
