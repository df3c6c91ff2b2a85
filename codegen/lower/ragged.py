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

from dataclasses import dataclass, replace

from ..ir.build import Builder
from ..ir.flags import Chosen, Only
from ..ir.fuse import mapped, rebuilt
from ..ir.host import Literal, Operand
from ..ir.nodes import INDEX, Blocks, Const, Expr, For, Load, Stmt, Var, When, cdiv
from ..ir.program import Axis, Program, Tensor
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
ALL = "ALL"
"""The flag of sums of segments that are to be made of all.

Without it those of packed sequences are not made of the last segment of each, or mirrored of the first: only
the sum over a whole sequence has these.
"""
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
ALONE: dict[str, Operand] = {RAGGED: Literal(False), TABLE.name: None}
DENSE: dict[str, Operand] = ALONE | {"places": None}
SEVERAL: dict[str, Operand] = {RAGGED: Literal(True)}
"""What a launch gives programs with the flag: of one sequence a batch entry, without or with places; and of
several.
"""
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
    def of_packed(b: Builder, number: Expr, ends: bool = True, table: str = TABLE.name) -> Segment:
        """A segment of a program that is for packed sequences alone, which may not ask where it `ends`."""
        for place, name in enumerate((FIRST, STOP, BEGIN, END, NUMBER)):
            if name == STOP and not ends:
                continue
            b.let(name.name, Load(table, (number, Const(place)), INDEX))
        return Segment(number, FIRST, PACKED)

    @staticmethod
    def of_program(b: Builder, again: bool = False) -> Segment:
        """The segment of a program over segments, which does nothing for one without tokens.

        Of such a segment a second look, `again`, finds none.
        """
        number = Var("segment")
        with b.when(RAGGED):
            Segment.of_packed(b, number)
        if not again:
            b.only(RAGGED, FIRST < STOP)
        return Segment.perhaps(number)

    @staticmethod
    def of_sums(b: Builder, mirrored: bool) -> Segment:
        """The segment of a program that sums it up, which does nothing where nobody reads that (`ALL`)."""
        number = Var("segment")
        with b.when(RAGGED):
            Segment.of_packed(b, number)
        b.only(RAGGED, Chosen(ALL, FIRST < STOP, BEGIN < FIRST if mirrored else STOP < END))
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
        """One past its last token, which of packed sequences the table says."""
        end = self.sequence.until(self.first + LENGTH)
        return Chosen(RAGGED, STOP, under(end, False)) if isinstance(self.first, Chosen) else STOP

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
    return rebuilt(expr, lambda part: under(part, on))


def never(program: Program) -> Program:
    """A program as it is without the flag, for printers of kernels that do not have it."""

    def kept(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return tuple(part for stmt in body for part in one(stmt))

    def one(stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case When(Var(name), _) | Only(name, _) if name == RAGGED:
                return ()
            case For() | When() | Blocks():
                return (replace(stmt, body=kept(stmt.body)),)
        return (stmt,)

    return replace(
        program,
        grid=tuple(map(off, program.grid)),
        tensors=tuple(tensor for tensor in program.tensors if tensor.optional != RAGGED),
        sizes=tuple(size for size in program.sizes if program.under.get(size) != RAGGED),
        flags=tuple(flag for flag in program.flags if flag != RAGGED),
        body=mapped(kept(program.body), lambda expr: under(expr, False)),
        under={size: flag for size, flag in program.under.items() if flag != RAGGED},
    )


def off(axis: Axis) -> Axis:
    """An axis of programs that do not have the flag."""
    return replace(axis, extent=under(axis.extent, False))
