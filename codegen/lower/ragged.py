"""Segments of a call: of one sequence a batch entry, or of several that lie in one token axis.

A program works on *segments* of `length` tokens each.  Of a dense call, segment s has the tokens from
s·length on.  Under the flag RAGGED the batch is one, and several sequences lie in its tokens.  Each begins a
segment of its own, so segments are cut as if it were alone, and a table says where they lie: the first token
of each and one past its last, the same of its sequence, and the sequence's number.  There are as many
segments as the sequences may need at most; those that none needs have no tokens.

A *place* is a token of a segment, whether there is one or not: chunks are cut out of places, and chunks of
places without tokens do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.host import Literal, Operand
from ..ir.nodes import INDEX, Const, Expr, Load, Var, cdiv
from ..ir.program import Axis, Tensor
from .sequence import Sequence

RAGGED = "RAGGED"
"""The flag.  A kernel without it has nothing of what follows."""
TABLE = Tensor("segment_tokens", ("segments", 5), INDEX)
FLAGGED = replace(TABLE, optional=RAGGED)
BOUNDS = Tensor("sequence_segments", ("N", 2), INDEX)
"""Of each sequence, its first segment and one past its last."""
BEGUN = "BEGUN"
"""The flag of windows of several sequences that go on from states."""
FLAGS = RAGGED, BEGUN
UNDER = {"places": RAGGED}
PLACES = Chosen(RAGGED, Var("places"), Var("T"))
CHUNKS = Axis("chunk", cdiv(PLACES, "CHUNK"))
FIRST, STOP, BEGIN, END, NUMBER = (
    Var(name)
    for name in (
        "first_of_segment",
        "stop_of_segment",
        "first_of_sequence",
        "stop_of_sequence",
        "number_of_sequence",
    )
)
"""The columns of the table."""
START, LENGTH = Var("first_of_chunk"), Var("length")
PACKED = Sequence("T", end=STOP, begin=BEGIN)
"""The sequence of a segment that was read of the table."""
PERHAPS = Sequence("T", end=Chosen(RAGGED, STOP, Var("T")), begin=Chosen(RAGGED, BEGIN, Const(0)))
"""The same of a program with the flag."""
DENSE: dict[str, Operand] = {RAGGED: Literal(False), "places": None, TABLE.name: None}
SEVERAL: dict[str, Operand] = {RAGGED: Literal(True)}
"""What a launch gives programs with the flag: of one sequence a batch entry, and of several."""
SEQUENCE = Axis("sequence", Var("N"), leads=True)
"""The axis of programs that are for packed sequences alone."""


def segment_length(b: Builder) -> Var:
    """Tokens of a segment: the fewest whole grains of SEGMENT tokens with which `segments` cover all."""
    return b.let(LENGTH.name, cdiv(cdiv(PLACES, "SEGMENT"), "segments") * "SEGMENT")


def number_of_chunk(b: Builder, size: str = "CHUNK") -> None:
    """The number of the segment of a program over chunks, and the length of segments."""
    length = segment_length(b)
    b.let("segment", Var("chunk") * size // length)


@dataclass(frozen=True)
class Segment:
    """The segment of a program: the tokens from `first` on, up to the stop of `sequence`."""

    number: Expr
    first: Expr
    sequence: Sequence

    @staticmethod
    def of_packed(b: Builder, number: Expr, ends: bool = True) -> Segment:
        """A segment of a program that is for packed sequences alone, which may not ask where it `ends`."""
        for place, name in enumerate((FIRST, STOP, BEGIN, END, NUMBER)):
            if name == STOP and not ends:
                continue
            b.let(name.name, Load(TABLE.name, (number, Const(place)), INDEX))
        return Segment(number, FIRST, PACKED)

    @staticmethod
    def of_program(b: Builder) -> Segment:
        """The segment of a program over segments, which does nothing for one without tokens."""
        number = Var("segment")
        with b.when(RAGGED):
            Segment.of_packed(b, number)
        b.only(RAGGED, FIRST < STOP)
        return Segment.perhaps(number)

    @staticmethod
    def perhaps(number: Expr) -> Segment:
        """A segment of a program with the flag, which has read of the table under it."""
        return Segment(number, Chosen(RAGGED, FIRST, number * LENGTH), PERHAPS)

    @staticmethod
    def of_chunk(
        b: Builder, size: str = "CHUNK", again: bool = False, ends: bool = True
    ) -> tuple[Segment, Expr]:
        """The segment of a program over chunks of `size`, and the first token of its chunk.

        It does nothing for one without tokens, of which a second look, `again`, finds none.  What a program
        without the flag needs of the segment comes with `number_of_chunk`.
        """
        number, place = Var("segment"), Var("chunk") * size
        with b.when(RAGGED):
            segment_length(b)
            b.let(number.name, place // LENGTH)
            Segment.of_packed(b, number, ends)
            b.let(START.name, FIRST + (place - number * LENGTH))
        if not again:
            b.only(RAGGED, START < STOP)
        return Segment.perhaps(number), Chosen(RAGGED, START, place)

    @property
    def end(self) -> Expr:
        """One past its last token."""
        return self.sequence.until(self.first + LENGTH)

    def tile_of(self, token: Expr, size: str) -> Expr:
        """The first token of the tile of `size` that has a token: tiles begin with the segment."""
        return Chosen(
            RAGGED, FIRST + (under(token) - FIRST) // size * size, under(token, False) // size * size
        )

    def tiles_until(self, token: Expr, size: str) -> Expr:
        """One past the last token of the last tile of `size` that begins before a token."""
        return Chosen(
            RAGGED, FIRST + cdiv(under(token) - FIRST, size) * size, cdiv(under(token, False), size) * size
        )


@dataclass(frozen=True)
class Dense:
    """The segment of a program without the flag, of which tiles are counted from the start of the tensor."""

    number: Expr

    def tile_of(self, token: Expr, size: str) -> Expr:
        """As of `Segment`."""
        return token // size * size

    def tiles_until(self, token: Expr, size: str) -> Expr:
        """As of `Segment`."""
        return cdiv(token, size) * size


def under(expr: Expr, on: bool = True) -> Expr:
    """What an expression is where the flag is on, or off."""
    if isinstance(expr, Chosen) and expr.flag == RAGGED:
        return under(expr.x if on else expr.y, on)
    parts = {entry.name: getattr(expr, entry.name) for entry in fields(expr)}  # type: ignore[arg-type]
    changed = {name: under(part, on) for name, part in parts.items() if isinstance(part, Expr)}
    return replace(expr, **changed) if changed else expr  # type: ignore[type-var]


def off(axis: Axis) -> Axis:
    """An axis of programs that do not have the flag."""
    return replace(axis, extent=under(axis.extent, False))
