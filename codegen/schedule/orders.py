"""In which order a kernel for Hopper's warpgroups does what may be done in several.

What it computes is the same in each.  How long that takes is not: of the same instructions in another order
ptxas makes kernels that take up to 20 % more or less time, and nobody foretells which.  So the order is a
choice like any other, and measured.  A kernel has pieces with several places, or ways to be written; a
schedule names those that it wants among its rewrites, as in `copies_in_flight`.  The first needs no name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..ir.kernels import ForeignKernel
from ..names import RECURRENCE

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

WIDE, SQUARE, OBLONG = "wide", "square", "oblong"
"""Printers of a recurrence over more columns than one operand has, and of those with elementwise maps, whose
tiles of queries and keys are as wide as those of values or twice that."""
QUERIES_OF_SQUARES, KEYS_OF_SQUARES = "square_query_gradients", "square_key_gradients"
QUERIES_OF_OBLONGS, KEYS_OF_OBLONGS = "oblong_query_gradients", "oblong_key_gradients"
WINDOW, WINDOW_GRADIENTS = "window_outputs", "window_gradients"
"""Those of windows whose keys stay in shared memory."""
HYBRID = "hybrid_outputs"
"""That of such a window and a state under one normaliser."""
GRADIENTS = (QUERIES_OF_SQUARES, KEYS_OF_SQUARES, QUERIES_OF_OBLONGS, KEYS_OF_OBLONGS)
"""Those of gradients with such maps."""
PIECES: dict[str, dict[str, tuple[str, ...]]] = {
    RECURRENCE: {"copies": COPIES, "state": STATE, "sums": SUMS, "scaling": SCALING, "mask": MASK},
    **dict.fromkeys(("states", "query_states"), {"copies": COPIES[1:2]}),
    WIDE: {"copies": COPIES[1:], "state": STATE, "queries": QUERIES},
    **dict.fromkeys((SQUARE, OBLONG, *GRADIENTS), {"copies": COPIES}),
    **dict.fromkeys((WINDOW, WINDOW_GRADIENTS), {"copies": (COPIES[0], COPIES[2])}),
    HYBRID: {"copies": COPIES},
}
"""The alternatives of what each printer prints."""
NAMES = frozenset(
    f"{piece}_{place}" for kind in PIECES.values() for piece, places in kind.items() for place in places
)
"""All rewrites that say so."""
OF_NORMALISERS = frozenset({"sums"})
"""Pieces that only kernels with a normaliser have."""
MEASURED: dict[tuple[str, int | str], tuple[str, ...]] = {
    (RECURRENCE, True): ("copies_in_flight", "mask_bits"),
    (RECURRENCE, False): ("copies_shown", "state_early", "scaling_shifted", "mask_bits"),
    (WIDE, 24): ("queries_early",),
    (WIDE, 32): ("copies_in_flight", "state_early"),
    (SQUARE, True): ("copies_in_flight",),
    (SQUARE, False): ("copies_in_flight",),
    (OBLONG, True): ("copies_in_flight",),
    (OBLONG, False): ("copies_in_flight",),
}
"""The fastest on an H200: with and without a normaliser; by columns of queries (docs/lab-book.md)."""


def pieces(kernel: ForeignKernel) -> Mapping[str, tuple[str, ...]]:
    """The alternatives of a kernel."""
    found = PIECES.get(kernel.printer, {})
    return {name: places for name, places in found.items() if name not in OF_NORMALISERS or _sums(kernel)}


def measured(kernel: ForeignKernel) -> tuple[str, ...]:
    """The rewrites that were fastest."""
    what = kernel.tensors[0].dims[-1] if kernel.printer == WIDE else _sums(kernel)
    return MEASURED.get((kernel.printer, what), ())


def known(kernel: ForeignKernel) -> dict[str, tuple[str, str]]:
    """The rewrites that a kernel has: for each name a piece and its place."""
    return {
        f"{piece}_{place}": (piece, place) for piece, places in pieces(kernel).items() for place in places
    }


def chosen(kernel: ForeignKernel, rewrites: Collection[str]) -> dict[str, str]:
    """The place of each piece."""
    named = dict(known(kernel)[name] for name in rewrites)
    return {piece: named.get(piece, places[0]) for piece, places in pieces(kernel).items()}


def names(kernel: ForeignKernel, places: Mapping[str, str]) -> tuple[str, ...]:
    """Rewrites that choose these places, and the first of pieces that are not among them."""
    return tuple(
        f"{piece}_{places[piece]}"
        for piece, options in pieces(kernel).items()
        if places.get(piece, options[0]) != options[0]
    )


def _sums(kernel: ForeignKernel) -> bool:
    """Whether a kernel has a normaliser."""
    return any("normalizer" in tensor.name for tensor in kernel.tensors)
