"""In which order a kernel for Hopper's warpgroups does what may be done in several.

What it computes is the same in each.  How long that takes is not: of the same instructions in another order
ptxas makes kernels that take up to 20 % more or less time, and nobody foretells which.  So the order is a
choice like any other, and measured.  A kernel has pieces with several places, or ways to be written; a
schedule names those that it wants among its rewrites, as in `copies_in_flight`.  The first needs no name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..ir.nodes import Program
from ..names import RECURRENCE, on_warpgroups

COPIES = ("arrived", "shown", "in_flight")
"""A later chunk is copied from when this one has arrived, is shown to products, or its last are in flight."""
STATE = ("late", "early")
"""The state is rounded for products after the chunk's features are stored, or before they are made."""
SUMS = ("early", "late")
"""The chunk enters the normaliser's sums as soon as these have been read, or with later products."""
QUERIES = ("late", "early")
"""Queries are loaded after the fence, or before it."""
SCALING = ("converted", "shifted")
"""Queries are widened by conversion, or by shifts that ptxas does not see through."""
MASK = ("compared", "bits")
"""Later keys are left out by comparing positions, or by a tile of bits."""

PIECES: dict[str, dict[str, tuple[str, ...]]] = {
    RECURRENCE: {"copies": COPIES, "state": STATE, "sums": SUMS, "scaling": SCALING, "mask": MASK},
    "wide": {"copies": COPIES[1:], "state": STATE, "queries": QUERIES},
    "square": {"copies": COPIES},
}
"""The alternatives of a recurrence, of one over more columns, and of one with elementwise maps."""
NAMES = frozenset(
    f"{piece}_{place}" for kind in PIECES.values() for piece, places in kind.items() for place in places
)
"""All rewrites that say so."""
OF_NORMALISERS = frozenset({"sums"})
"""Pieces that only kernels with a normaliser have."""
MEASURED = {
    (RECURRENCE, True): ("copies_in_flight", "sums_late"),
    (RECURRENCE, False): ("copies_shown", "state_early", "scaling_shifted", "mask_bits"),
    ("wide", 24): ("queries_early",),
    ("wide", 32): ("copies_in_flight", "state_early"),
    ("square", True): ("copies_in_flight",),
    ("square", False): ("copies_in_flight",),
}
"""The fastest on an H200: with and without a normaliser; by columns of queries (docs/performance.md)."""


def pieces(program: Program) -> Mapping[str, tuple[str, ...]]:
    """The alternatives of a program; none of one without a text of its own for warpgroups."""
    found = PIECES.get(_kind(program), {})
    return {name: places for name, places in found.items() if name not in OF_NORMALISERS or _sums(program)}


def measured(program: Program, qk: int) -> tuple[str, ...]:
    """The rewrites that were fastest, for a layer with so many columns of queries."""
    kind = _kind(program)
    return MEASURED.get((kind, qk if kind == "wide" else _sums(program)), ())


def known(program: Program) -> dict[str, tuple[str, str]]:
    """The rewrites that a program has: for each name a piece and its place."""
    return {
        f"{piece}_{place}": (piece, place) for piece, places in pieces(program).items() for place in places
    }


def chosen(program: Program, rewrites: Collection[str]) -> dict[str, str]:
    """The place of each piece."""
    named = dict(known(program)[name] for name in rewrites)
    return {piece: named.get(piece, places[0]) for piece, places in pieces(program).items()}


def names(program: Program, places: Mapping[str, str]) -> tuple[str, ...]:
    """Rewrites that choose these places, and the first of pieces that are not among them."""
    return tuple(
        f"{piece}_{places[piece]}"
        for piece, options in pieces(program).items()
        if places.get(piece, options[0]) != options[0]
    )


def _sums(program: Program) -> bool:
    """Whether a program has a normaliser."""
    return any("normalizer" in tensor.name for tensor in program.tensors)


def _kind(program: Program) -> str:
    if program.name != on_warpgroups(RECURRENCE):
        return ""
    if "QK" in program.bounds:
        return "square"
    # A chunk of two warpgroups has more tokens than a block has values.
    return "wide" if program.bounds["CHUNK"] > program.bounds["VALUES"] else RECURRENCE
