"""What the programs of the sliding window share: names, parameters, and which keys a query sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log

from ..ir.build import Builder
from ..ir.nodes import INDEX, IO, OPERAND, Axis, Expr, Load, Program, Span, Tensor, Var, maximum, row, wrap
from ..ir.traits import SOFTMAX
from ..mixers.sliding_window import SlidingWindow

B, H, T, TK = Var("b"), Var("h"), Var("T"), Var("Tk")
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
QUERY_ROWS, KEY_ROWS = ("B", "T", "H"), ("B", "Tk", "H")
NUMBERS = ("B", "H", "T")
"""One number a query: a head's lie side by side, for the program that has them."""
LOG2_E = 1.0 / log(2.0)
LOGIT = Var("scale") * LOG2_E
"""What makes of a product q·k the power of 2 that is its weight before normalisation."""


@dataclass(frozen=True)
class KeyTile:
    """A tile of keys and its values."""

    k: Var
    v: Var


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

    def first_key(self, b: Builder) -> Var:
        """The first key that exists."""
        first = b.let("first_key", wrap(0))
        with b.when("PADDED"):
            b.set(first, Load("first", (B, H), INDEX))
        return first

    def oldest(self, b: Builder, t: Var, first: Var) -> Var:
        """Of each query, the first key that it sees."""
        return b.let("oldest", maximum(place(t) - (self.window - 1), first))

    @contextmanager
    def further(self, b: Builder, start: Expr, d: Var, u: Var) -> Iterator[tuple[Var, Expr, KeyTile]]:
        """A loop over the keys that come before the tile of keys before `start`, where a chunk begins.

        Yields their indices, which of them do come before that tile, and their own tiles.
        """
        end = start - "KEYS"
        with b.when("FURTHER"), b.loop("j0", maximum(start - (self.window - 1), 0), end, "KEYS") as j0:
            j = b.let("further", Span(j0, "KEYS"))
            yield j, row(j) < end, load_keys(b, "_further", j, d, u)


def load_keys(b: Builder, suffix: str, j: Var, d: Var, u: Var) -> KeyTile:
    """Tiles whose names end in `suffix`."""
    keys = b.let(f"K{suffix}", Load("k", (B, j, H, d), OPERAND))
    return KeyTile(keys, b.let(f"Y{suffix}", Load("v", (B, j, H, u), OPERAND)))


def place(t: Expr) -> Expr:
    """The key at which query `t` stands: the last that it sees."""
    return t + (TK - T)
