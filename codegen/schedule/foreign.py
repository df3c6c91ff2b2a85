"""Which kernels printed by hand a layer has for Hopper's warpgroups, in which dtypes, with which tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from ..mixers.hybrid import Hybrid
from ..mixers.linear_attention import LinearAttention
from ..mixers.sliding_window import SlidingWindow
from ..names import RECURRENCE
from ..spec.model import Elementwise, LayerSpec, TaylorExp
from .orders import (
    HYBRID,
    KEYS_OF_OBLONGS,
    KEYS_OF_SQUARES,
    OBLONG,
    QUERIES_OF_OBLONGS,
    QUERIES_OF_SQUARES,
    SQUARE,
    WIDE,
    WINDOW,
    WINDOW_GRADIENTS,
)

EXCHANGED = 16
"""Columns of a warpgroup's left operand that four neighbouring lanes hold, and can exchange."""
COPIED = 8
"""Columns that one asynchronous copy moves, of two bytes each."""
WARPGROUP_TILES = {"CHUNK": 64, "VALUES": 64}
"""Tiles of a kernel whose text is laid out for one warpgroup."""
LOOKED_AT_AGAIN = 64
"""Features of a state that a second look keeps in one tile."""
EXCHANGED_TILES = WARPGROUP_TILES | {"QK": EXCHANGED, "FEATURES": LOOKED_AT_AGAIN}
"""The same over columns that are exchanged, and of a second look."""
WIDE_TILES = {"CHUNK": 128, "VALUES": 64}
"""The same for two, over two operands' worth of such columns."""
SQUARE_TILES = WARPGROUP_TILES | {"QK": 64}
"""The same where tiles of queries and keys are as wide as those of values."""
OBLONG_TILES = WARPGROUP_TILES | {"QK": 128}
"""The same where they are twice as wide."""
STATE_BLOCK = {"query_gradients": 32}
"""Features that it keeps of all values that a kernel has, if they are not so many.

With these ptxas makes of the kernel's own loop what it makes of it without a second look, or nearly.
"""
WINDOW_TILES = {"ROWS": 16}
"""Keys or queries that a second look at a window reads at once."""
HYBRID_TILES = EXCHANGED_TILES | WINDOW_TILES | {"KEYS": WARPGROUP_TILES["CHUNK"]}
"""Of a window's worth of keys beside columns that are exchanged."""
LONGEST_WINDOW = {"outputs": 128, "gradients": 64}
"""Keys of a window of which such a program holds all tiles of products in registers."""


def exchanges(spec: LayerSpec, dtype: str) -> bool:
    """Whether a layer's features can be made by exchanging columns among lanes (`emit/warpgroups/`)."""
    return isinstance(spec, LinearAttention) and _exchanges(spec, dtype) and spec.head_dims.qk <= EXCHANGED


def halves_exchange(spec: LayerSpec, dtype: str) -> bool:
    """Whether they can be made of two operands' worth of columns."""
    narrow, wide = EXCHANGED, 2 * EXCHANGED
    return (
        isinstance(spec, LinearAttention) and _exchanges(spec, dtype) and narrow < spec.head_dims.qk <= wide
    )


def _exchanges(spec: LinearAttention, dtype: str) -> bool:
    return spec.feature_map == TaylorExp(order=2) and _copies(spec, dtype)


def maps_squares(spec: LayerSpec, dtype: str) -> bool:
    """Whether a layer's features are its columns, each mapped, and a tile of them is a warpgroup's."""
    return _maps(spec, dtype) and spec.head_dims.qk <= SQUARE_TILES["QK"]


def maps_oblongs(spec: LayerSpec, dtype: str) -> bool:
    """Whether they are up to twice as many, as they stand, and all else fits twice into a multiprocessor."""
    return (
        _maps(spec, dtype)
        and SQUARE_TILES["QK"] < spec.head_dims.qk <= OBLONG_TILES["QK"]
        and spec.feature_map == Elementwise("x")
        and not spec.normalize
    )


def gradients_map_oblongs(spec: LayerSpec, dtype: str) -> bool:
    """Whether gradients of such a layer are recurrences: registers do not hold what fades beside them."""
    return isinstance(spec, LinearAttention) and maps_oblongs(spec, dtype) and spec.decay == "none"


def _maps(spec: LayerSpec, dtype: str) -> TypeGuard[LinearAttention]:
    return (
        isinstance(spec, LinearAttention)
        and isinstance(spec.feature_map, Elementwise)
        and not spec.corrects
        and _copied(spec, dtype)
    )


def _copies(spec: LinearAttention | SlidingWindow, dtype: str) -> bool:
    """Whether rows can be copied asynchronously, and nothing fades or is corrected."""
    more = isinstance(spec, LinearAttention) and (spec.decay != "none" or spec.corrects)
    return not more and _copied(spec, dtype)


def _copied(spec: LinearAttention | SlidingWindow, dtype: str) -> bool:
    """Whether rows can be copied asynchronously."""
    return _aligned(spec) and dtype in ("bfloat16", "float16")


def _aligned(spec: LinearAttention | SlidingWindow | Hybrid) -> bool:
    """Whether rows are made of whole copies, in two bytes an element."""
    return spec.head_dims.qk % COPIED == 0 and spec.head_dims.v % COPIED == 0


def gradients_exchange(spec: LayerSpec, dtype: str) -> bool:
    """Whether its gradients can, too: those of queries and keys sum over all values, that are one tile."""
    return (
        isinstance(spec, LinearAttention)
        and exchanges(spec, dtype)
        and spec.head_dims.v <= WARPGROUP_TILES["VALUES"]
    )


def gradients_map_squares(spec: LayerSpec, dtype: str) -> bool:
    """Whether gradients of a layer that maps squares are recurrences: nothing both fades and is divided.

    What a token owes to a decay, or to what it is divided by, is a product over all its values: so these are
    one tile then.
    """
    return (
        isinstance(spec, LinearAttention)
        and maps_squares(spec, dtype)
        and not (spec.normalize and spec.decay != "none")
        and (not spec.normalize and spec.decay == "none" or spec.head_dims.v <= SQUARE_TILES["VALUES"])
    )


def window_streams(program: str, spec: LayerSpec, dtype: str) -> bool:
    """Whether a window's program has a version that keeps a whole window of keys in its multiprocessor."""
    return (
        isinstance(spec, SlidingWindow)
        and spec.window <= LONGEST_WINDOW[program]
        and spec.head_dims.qk <= SQUARE_TILES["QK"]
        and spec.head_dims.v <= SQUARE_TILES["VALUES"]
        and _copies(spec, dtype)
    )


def hybrid_streams(spec: LayerSpec, dtype: str) -> bool:
    """Whether a hybrid has a version that keeps a window of a chunk, and a state made by exchange, so.

    What a round has copied the next reads too, so nothing is converted: float16 is not what sums are made of.
    """
    return (
        isinstance(spec, Hybrid)
        and spec.feature_map == TaylorExp(order=2)
        and (spec.combine, spec.rescale) == ("normalizer", "shared")
        and not spec.factors
        and not spec.window_qk
        and spec.window == EXCHANGED_TILES["CHUNK"]
        and spec.head_dims.qk <= EXCHANGED
        and dtype == "bfloat16"
        and _aligned(spec)
    )


def sums_exchange(spec: LayerSpec, dtype: str) -> bool:
    """Whether what segments add to a state can be made by exchange, and is read by such a kernel."""
    return exchanges(spec, dtype) or hybrid_streams(spec, dtype)


@dataclass(frozen=True)
class Printer:
    """What a printer of `emit/warpgroups/` can print."""

    program: str
    """The program in whose place its kernel runs."""
    tiles: dict[str, int]
    serves: Callable[[LayerSpec, str], bool]
    """Whether it can print a layer's kernel for a dtype."""
    decides: bool = False
    """Whether a pass runs on warpgroups where this kernel can, and else not at all."""


def walk_tiles(printer: str, qk: int, block: str) -> dict[str, int]:
    """Tiles of a second look that walks over tokens, beside those of its kernel."""
    tiles = {"QK": max(EXCHANGED, 1 << (qk - 1).bit_length())}
    return tiles if block in tiles else tiles | {block: STATE_BLOCK.get(printer, LOOKED_AT_AGAIN)}


PRINTERS = {
    "states": Printer("states", WARPGROUP_TILES, sums_exchange),
    RECURRENCE: Printer(RECURRENCE, EXCHANGED_TILES, exchanges, decides=True),
    WIDE: Printer(RECURRENCE, WIDE_TILES, halves_exchange, decides=True),
    SQUARE: Printer(RECURRENCE, SQUARE_TILES, maps_squares, decides=True),
    OBLONG: Printer(RECURRENCE, OBLONG_TILES, maps_oblongs, decides=True),
    "query_states": Printer("query_states", WARPGROUP_TILES, gradients_exchange),
    "query_gradients": Printer("query_gradients", WARPGROUP_TILES, gradients_exchange, decides=True),
    "key_gradients": Printer("key_gradients", WARPGROUP_TILES, gradients_exchange),
    QUERIES_OF_SQUARES: Printer("query_gradients", SQUARE_TILES, gradients_map_squares, decides=True),
    KEYS_OF_SQUARES: Printer("key_gradients", SQUARE_TILES, gradients_map_squares),
    QUERIES_OF_OBLONGS: Printer("query_gradients", OBLONG_TILES, gradients_map_oblongs, decides=True),
    KEYS_OF_OBLONGS: Printer("key_gradients", OBLONG_TILES, gradients_map_oblongs),
    WINDOW: Printer("outputs", SQUARE_TILES, partial(window_streams, "outputs"), decides=True),
    HYBRID: Printer("outputs", HYBRID_TILES, hybrid_streams, decides=True),
    WINDOW_GRADIENTS: Printer("gradients", SQUARE_TILES, partial(window_streams, "gradients"), decides=True),
}
"""All of them by name, in the order in which a module has their kernels."""


def printers(spec: LayerSpec) -> tuple[str, ...]:
    """Those that print kernels of a layer."""
    return tuple(
        name for name, printer in PRINTERS.items() if any(printer.serves(spec, d) for d in spec.dtypes)
    )


def dtypes(spec: LayerSpec, printer: str) -> tuple[str, ...]:
    """The dtypes for which a printer can print a layer's kernel."""
    return tuple(dtype for dtype in spec.dtypes if PRINTERS[printer].serves(spec, dtype))
