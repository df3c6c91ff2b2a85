"""Which tokens of a hybrid's sequence are older keys, and in which segments of these they lie.

Query i has keys older than its window up to key i' = i + (Tk - T) - W.  So of Tk keys the last W leave no
window, and the queries that have older keys are those from i' = 0 on: the sums over older keys are those of
a causal linear attention between as many queries and keys, whose queries only stand elsewhere.

Of packed sequences keys lie where queries do, and segments are those of `ragged.py`: of all tokens of a
sequence, though the last W of these are no older keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.nodes import INDEX, Const, Expr, Var, cdiv, maximum, minimum
from ..ir.program import Tensor
from ..memory.hybrid import Recent
from .ragged import BEGIN, BEGUN, END, FIRST, LENGTH, RAGGED, Segment
from .sequence import Sequence
from .sliding_window_parts import PACKED_KEYS, PACKED_QUERIES

PADDED = "PADDED"
COUNT = "sequence_count"
"""How many sequences there are; N are sums of weights here."""
FIRSTS = (
    Tensor(Recent.first, ("B", "H"), INDEX, optional=PADDED),
    Tensor("first_of_sequences", (COUNT, "H"), INDEX, optional=BEGUN),
)
"""The first keys that exist."""


@dataclass(frozen=True)
class Tokens:
    """The sequences that a program works on: all queries and keys, older keys, and queries that have some."""

    queries: Sequence
    keys: Sequence
    older: Sequence
    late: Sequence

    @staticmethod
    def dense(window: int) -> Tokens:
        """Those of one sequence a batch entry."""
        queries, keys = Sequence("T"), Sequence("Tk")
        older = Sequence("Tk", end=maximum(keys.stop - window, 0))
        before = window - (keys.stop - queries.stop)
        return Tokens(queries, keys, older, Sequence("T", start=minimum(before, queries.stop)))

    def or_packed(self, window: int) -> Tokens:
        """Under RAGGED those of one of several packed sequences."""
        older, late = self.older, self.late
        return Tokens(
            PACKED_QUERIES,
            PACKED_KEYS,
            Sequence(
                "Tk", Chosen(RAGGED, BEGIN, Const(0)), _packed(maximum(END - window, BEGIN), older.stop)
            ),
            Sequence("T", _packed(minimum(BEGIN + window, END), late.start), _packed(END, late.stop)),
        )


@dataclass(frozen=True)
class Place:
    """A segment of older keys: its number among those of all sequences, and its first key."""

    number: Expr
    first: Expr


class Segments:
    """The segments of older keys of a program, whose sequence is that of `dense` or a packed one."""

    def __init__(self, b: Builder, dense: Tokens) -> None:
        self.b, self.older = b, dense.older

    def length(self) -> Var:
        """As of linear attention; of no older keys at all, a grain."""
        packed = cdiv(cdiv("places", "SEGMENT"), "segments")
        return self.b.let(LENGTH.name, _packed(packed * "SEGMENT", self.of_one_sequence()))

    def of_one_sequence(self) -> Expr:
        """The same where none are packed."""
        return maximum(cdiv(cdiv(self.older.length, "SEGMENT"), "segments"), 1) * "SEGMENT"

    def of(self, token: Expr) -> Place:
        """That of an older key; of any other key before or after, the first or the last of the sequence."""
        b, length = self.b, self.length()
        last = maximum(self.older.length - 1, 0)
        own = (maximum(token, BEGIN) - BEGIN) // length
        own = b.let("own_segment", _packed(own, minimum(maximum(token, 0), last) // length))
        before = Var("segment") - (FIRST - BEGIN) // length
        number = b.let("number_of_segment", _packed(before + own, own))
        return Place(number, _packed(BEGIN + own * length, own * length))

    def ends(self, segment: Segment, sequence: Sequence, late: int, dense: Sequence) -> tuple[Expr, Expr]:
        """The first token of a program's segment, of a sequence that begins `late`, and one past its last."""
        length = self.length()
        first = _packed(FIRST + late, dense.token(segment.number * length))
        return first, sequence.until(first + length)


def _packed(there: Expr, dense: Expr) -> Expr:
    return Chosen(RAGGED, there, dense)
