"""The tokens that a program of a short convolution goes through: those of batches, or of packed sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import Const, Expr, Span, Var, Where, cdiv, column, maximum, minimum, wrap
from ..ir.program import Axis, Tensor
from ..names import packed
from .ragged import BEGIN, END, FIRST, NUMBER, STOP, TABLE, Segment

B, T = Var("b"), Var("T")
BATCH, SEGMENTS = Axis("b", Var("B"), batch=True), Axis("segment", Var("segments"))
STATES = "N"
"""How many states there are before packed sequences."""


@dataclass(frozen=True)
class Tokens:
    """Of one sequence a batch entry, which programs cut into segments."""

    entry: Expr = B
    """Where in the batch they are."""
    row: Expr = B
    """Which of the states is before them."""
    states: str = "B"
    begin: Expr = Const(0)
    """The first token of the sequence."""
    end: Expr = T
    """One past its last."""
    own: Expr = T
    """Tokens of the segment are below it; those of the last one are any that are left."""
    tables: tuple[Tensor, ...] = ()
    batch: tuple[Axis, ...] = (BATCH,)
    sizes: tuple[str, ...] = ()

    def name(self, program: str) -> str:
        """The name of a program over them."""
        return program

    def segment(self, b: Builder, whole: Expr) -> tuple[Expr, Expr]:
        """The first token of a program's segment, which is a multiple of `whole`, and that after its last."""
        length = b.let("length", cdiv(cdiv("T", whole), "segments") * whole)
        start = b.let("start", minimum(Var("segment") * length, T))
        return start, b.let("stop", minimum(start + length, T))

    def tile(self, first: Expr, before: bool = False, end: bool = False) -> Span:
        """The indices of a chunk; a token at the sequence's `end`, or past the segment, is outside."""
        return Span(first, "CHUNK", Const(0) if before else None)

    def chunks(self) -> tuple[Axis, ...]:
        """The axis of programs over chunks of tokens."""
        return (Axis("chunk", cdiv("T", "CHUNK")),)

    @contextmanager
    def each_chunk(self, b: Builder) -> Iterator[Expr]:
        """What is done for the chunk from a token on."""
        yield b.let("t0", Var("chunk") * "CHUNK")

    @contextmanager
    def each_earlier(self, b: Builder, rows: int) -> Iterator[Expr]:
        """What is done for a chunk of the `rows` places before the sequence, counted from the first."""
        yield b.let("t0", Var("chunk") * "CHUNK")

    def earlier_chunks(self, rows: int) -> tuple[Axis, ...]:
        """The axis of programs over those."""
        return (Axis("chunk", cdiv(rows, "CHUNK")),)

    def once(self, b: Builder) -> AbstractContextManager[None]:
        """What of them one program of a sequence stores."""
        return nullcontext()

    def from_begin(self, t: Expr) -> Expr:
        """The token that has so many of its sequence before it."""
        return t

    def since_begin(self, t: Expr) -> Expr:
        """How many tokens of the sequence are before a token."""
        return t

    def seen(self, x: Expr, t: Expr) -> Expr:
        """What a tile holds of tokens, 0 where they are before the sequence."""
        return x

    def held(self, x: Expr, t: Expr) -> Expr:
        """What a tile or a vector is of tokens, 0 where they are those of no sequence."""
        return x

    def counted(self, x: Expr, t: Expr) -> Expr:
        """What a vector is of a token, 0 where that is another segment's."""
        return x

    def inside(self, t: Expr) -> Expr:
        """Which tokens of the segment there are."""
        return t < "T"

    def counted_sizes(self) -> tuple[str, ...]:
        """Those that programs over chunks need besides."""
        return ()

    def begins(self) -> Expr:
        """Whether the segment is the first of its sequence."""
        return Var("segment").equals(0)


class Packed(Tokens):
    """Segments that a table names: each sequence begins one, and the last goes on to where the next begins.

    So all tokens are in a segment, those of no sequence too, whose results are 0.  The first segments may be
    before all sequences; their number is -1.
    """

    def name(self, program: str) -> str:
        return packed(program)

    def segment(self, b: Builder, whole: Expr) -> tuple[Expr, Expr]:
        Segment.of_packed(b, Var("segment"))
        return FIRST, STOP

    def tile(self, first: Expr, before: bool = False, end: bool = False) -> Span:
        return Span(first, "CHUNK", Const(0) if before else None, END if end else STOP)

    def chunks(self) -> tuple[Axis, ...]:
        return (SEGMENTS,)

    @contextmanager
    def each_chunk(self, b: Builder) -> Iterator[Expr]:
        start, stop = self.segment(b, Const(1))
        with b.loop("t0", start, stop, "CHUNK") as t0:
            yield t0

    @contextmanager
    def each_earlier(self, b: Builder, rows: int) -> Iterator[Expr]:
        self.segment(b, Const(1))
        with b.loop("t0", 0, rows, "CHUNK") as t0:
            yield t0

    def once(self, b: Builder) -> AbstractContextManager[None]:
        return b.when(self.begins())

    def earlier_chunks(self, rows: int) -> tuple[Axis, ...]:
        return (SEGMENTS,)

    def from_begin(self, t: Expr) -> Expr:
        return BEGIN + t

    def since_begin(self, t: Expr) -> Expr:
        return t - BEGIN

    def seen(self, x: Expr, t: Expr) -> Expr:
        return Where(column(t) >= BEGIN, x, wrap(0.0))

    def held(self, x: Expr, t: Expr) -> Expr:
        return Where(t < END, x, wrap(0.0))

    def counted(self, x: Expr, t: Expr) -> Expr:
        return Where(t < STOP, x, wrap(0.0))

    def inside(self, t: Expr) -> Expr:
        return (t < END) & (t < STOP)

    def counted_sizes(self) -> tuple[str, ...]:
        return ("segments", *self.sizes)

    def begins(self) -> Expr:
        return (FIRST.equals(BEGIN)) & (FIRST < STOP) & (NUMBER >= 0)


DENSE = Tokens()
PACKED = Packed(
    Const(0), maximum(NUMBER, 0), STATES, BEGIN, END, STOP, tables=(TABLE,), batch=(), sizes=(STATES,)
)
