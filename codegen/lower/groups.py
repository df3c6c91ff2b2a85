"""What programs of attention are over heads in groups (`ir/heads.py`), and the sums over a group.

A gradient of what several heads share is the sum of what they have of it.  Where a program over states loops
over members it sums them as it goes; elsewhere `group_sums` does, of parts in the gradient's own dtype, as
those of repeated tensors are.
"""

from __future__ import annotations

from ..dtypes import ACC, IO
from ..ir.build import Builder
from ..ir.heads import grouped, members
from ..ir.host import (
    Allocate,
    Bind,
    Either,
    Extent,
    Launch,
    Literal,
    Multiple,
    Name,
    Operand,
    ReadSizes,
    Steps,
    Times,
    allocate,
    launch,
    wrap,
)
from ..ir.nodes import Cast, Full, Load, Span, Var, cdiv
from ..ir.program import ALL_HEADS, Axis, Program, Tensor
from ..ir.traits import STREAMS
from ..spec.signature import OF_KEYS as KEYS
from ..spec.signature import OF_QUERIES as QUERIES
from ..spec.signature import OF_STATES as STATES
from ..spec.signature import OF_VALUES as VALUES
from .sequence import Sequence

EVERY = ALL_HEADS
"""Heads of outputs, in programs over states."""
PAST = {"k": KEYS, "k_window": KEYS, "v": VALUES}
SHARED = {"q": QUERIES, "q_window": QUERIES} | PAST
MEMBERS = {"q": QUERIES, "q_window": QUERIES} | dict.fromkeys(("o", "do", "g", "e"), EVERY)
"""What programs over states read of the queries of a group, member by member."""
GROUPED = Name("GROUPED")
SUMS = "group_sums"
"""The program that adds up gradients over a group."""


def over_queries(program: Program, *states: str) -> Program:
    """A program over the heads of outputs; `states` are tensors that have those of states."""
    return grouped(program, SHARED | dict.fromkeys(states, STATES))


def over_states(program: Program, *every: str) -> Program:
    """A program over the heads of states; `every` are others that have those of outputs."""
    return grouped(program, PAST, MEMBERS | dict.fromkeys(every, EVERY))


def group_sums() -> Program:
    """The sum over each group of heads, of one chunk of tokens."""
    b = Builder()
    place = Var("b"), b.let("t", Sequence("T").tile(Var("chunk") * "CHUNK", "CHUNK")), Var("h")
    c = b.let("c", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    total = b.let("total", Full(("CHUNK", "CHANNELS"), 0.0))
    with members(b):
        b.add(total, b.let("part", Load("parts", (*place, c), ACC)))
    b.store("sums", (*place, c), Cast(total, IO))
    rows = ("B", "T", "H", "W")
    sums = Program(
        SUMS,
        "Sums over groups of heads.",
        (
            Axis("b", Var("B"), batch=True),
            Axis("h", Var("H"), batch=True),
            Axis("chunk", cdiv("T", "CHUNK")),
            Axis("channel_block", cdiv("W", "CHANNELS")),
        ),
        (Tensor("parts", rows, IO), Tensor("sums", rows, IO)),
        rows,
        (),
        (),
        ("CHUNK", "CHANNELS"),
        b.body,
        does=frozenset({STREAMS}),
    )
    return grouped(sums, {}, {"parts": EVERY})


# The host side

SIZES: Steps = (
    ReadSizes("q", ("B", "T", QUERIES, None)),
    Bind({KEYS: Extent("k", 2), VALUES: Extent("v", 2)}),
    Bind({"GROUPED": ~(Name(QUERIES).equals(KEYS) & Name(QUERIES).equals(VALUES))}),
    Bind(
        {
            "H": Either(GROUPED, Multiple((Name(QUERIES), Name(KEYS), Name(VALUES))), Name(QUERIES)),
            STATES: Either(GROUPED, Multiple((Name(KEYS), Name(VALUES))), Name(QUERIES)),
        }
    ),
)
"""The sizes of a call with q, k and v."""
OVER_STATES = {"H": STATES}
"""The heads of a program over states."""
OVER_GROUPS = OVER_STATES | {EVERY: "H"}
"""The same of one that meets queries."""


def of_each(gradient: str) -> str:
    """A gradient before it is summed over groups."""
    return f"{gradient}_of_each"


def summed(
    gradient: str, rows: tuple[str, str], each: Operand, heads: str, width: int
) -> tuple[Allocate, Launch]:
    """A gradient for `heads` heads, summed from those of `each` head; they are it where all are alike.

    Each head may have several parts, which are heads then.
    """
    each = wrap(each)
    made = allocate(gradient, (*rows, heads, width), IO, instead=(each.equals(heads), of_each(gradient)))
    arguments: dict[str, Operand] = {"parts": of_each(gradient), "sums": gradient, "T": rows[1], "W": width}
    if isinstance(each, Times):
        arguments["GROUPED"] = Literal(True)
    return made, launch(SUMS, arguments | {"H": heads, EVERY: each}, each > heads)
