"""What the programs of a state space have in common: complex tiles, tensors, and walks over tokens.

Tiles are [modes, channels], so a thread has all modes of a channel and sums them by itself.  Where channels
share a filter its modes are a column for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..dtypes import ACC, IO
from ..ir.build import Builder
from ..ir.nodes import (
    INDEX,
    Const,
    Expr,
    Full,
    Load,
    Span,
    Sum,
    Unary,
    Var,
    cdiv,
    column,
    maximum,
    minimum,
    row,
    wrap,
)
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SPINS
from ..mixers.state_space import StateSpace
from ..names import packed as packed_name
from .ragged import SEQUENCE

B, H, T = Var("b"), Var("h"), Var("T")
BATCH, HEADS = Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True)
TILE, VECTOR = ("MODES", "CHANNELS"), ("CHANNELS",)
SEQUENCES = Tensor("sequences", ("N", 2), INDEX, strided=True)
EMPTY = -200.0
"""log |λ| of modes that only fill a tile: nothing is left of what enters them."""
ROUND = 4
"""Tokens of which the first makes good what the rounding of λ to float32 does to a state in all of them.

Without it the error of a state that lasts l tokens would be about l times that of a number.
"""


@dataclass(frozen=True)
class Complex:
    """A tile of complex numbers."""

    re: Expr
    im: Expr

    def __mul__(self, other: Complex) -> Complex:
        return Complex(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    def __add__(self, other: Complex) -> Complex:
        return Complex(self.re + other.re, self.im + other.im)

    def times(self, real: Expr) -> Complex:
        return Complex(self.re * real, self.im * real)


@dataclass(frozen=True)
class Named(Complex):
    """Its parts have names, so that products take them."""

    re: Var
    im: Var


@dataclass(frozen=True)
class Tile:
    """One that a program changes."""

    b: Builder = field(repr=False)
    re: Var
    im: Var

    @staticmethod
    def zeros(b: Builder, name: str) -> Tile:
        return Tile(b, *(b.let(f"{name}_{part}", Full(TILE, 0.0)) for part in ("re", "im")))

    @property
    def value(self) -> Complex:
        return Complex(self.re, self.im)

    def set(self, value: Complex) -> None:
        """Both parts at once: the new ones may be made of the old."""
        new = [self.b.let(f"{x.name}_next", y) for x, y in ((self.re, value.re), (self.im, value.im))]
        self.b.set(self.re, new[0])
        self.b.set(self.im, new[1])

    def add(self, value: Complex) -> None:
        self.b.add(self.re, value.re)
        self.b.add(self.im, value.im)


def take_token(b: Builder, state: Tile, pole: Complex, residues: Complex, skip: Var, x: Var) -> Var:
    """The state takes a token, and answers."""
    fed = pole * state.value
    state.set(Complex(fed.re + row(x), fed.im))
    read = b.let("read", residues.re * state.re - residues.im * state.im)
    y = b.let("y_own", Sum(read, 0))
    b.add(y, skip * x)
    return y


def owe_token(b: Builder, adjoint: Tile, residues: Complex, skip: Var, dy: Var) -> Expr:
    """What a token is owed by its output and all later ones; `adjoint` is still to be multiplied by λ."""
    adjoint.add(residues.times(row(dy)))
    dx = b.let("dX", Sum(adjoint.re, 0))
    return dx + skip * dy


class Layer:
    """One layer as its programs see it: which tensors, and where in them a program's channels are."""

    def __init__(self, spec: StateSpace) -> None:
        self.spec, self.shared, self.modes = spec, spec.shared, spec.modes
        self.units = spec.units
        self.tokens = ("B", "T", *self.units)
        self.sizes = ("B", "T", str(self.units[0]))
        self.head: tuple[Expr, ...] = (H,) if self.shared else ()
        channels = self.units[-1]
        extent = cdiv(channels, "CHANNELS")
        self.channel_block = Axis("channel_block", extent)
        self.heads = (HEADS,) if self.shared else ()

    # Parameters

    def given_poles(self) -> tuple[Tensor, ...]:
        """λ as calls have it."""
        dims = (self.modes, self.units[0])
        return Tensor("log_decay", dims, ACC), Tensor("angle", dims, ACC)

    def poles_found(self) -> Tensor:
        return Tensor("found_poles", (self.modes, self.units[0], 4), ACC)

    def given_residues(self) -> Tensor:
        return Tensor("residues", (self.modes, self.units[0], 2), ACC)

    def skip(self) -> Tensor:
        return Tensor("skip", self.units, ACC, optional="SKIP")

    def states(self, name: str, count: str, optional: str | None = None) -> Tensor:
        return Tensor(name, (count, self.modes, *self.units, 2), ACC, optional=optional)

    def of_tokens(self, name: str, strided: bool = True) -> Tensor:
        return Tensor(name, self.tokens, IO, strided=strided)

    # Pieces

    def begin(self, b: Builder) -> None:
        """The indices of a program's channels and modes."""
        b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        b.let("n", Span(wrap(0), "MODES"))

    def place(self, entry: Expr, t: Expr) -> tuple[Expr, ...]:
        return (entry, t, *self.head, Var("d"))

    @property
    def channel(self) -> tuple[Expr, ...]:
        """The index of the channels."""
        return (*self.head, Var("d"))

    @property
    def filter(self) -> tuple[Expr, ...]:
        """The index of their filters."""
        return self.head or (Var("d"),)

    def given(self, b: Builder, name: str, tensor: str, *part: Expr, fill: float = 0.0) -> Var:
        """What a tensor has for each mode of the filters."""
        return b.let(name, Load(tensor, (Var("n"), *self.filter, *part), ACC, fill))

    def laid(self, x: Var) -> Expr:
        """That, to meet tiles."""
        return column(x) if self.shared else x

    def poles(self, b: Builder) -> Complex:
        """λ."""
        size = b.let("pole_size", Unary("exp", self.log_size(b)))
        turn = self.given(b, "turn", "angle")
        parts = (("re", "cos"), ("im", "sin"))
        return Complex(
            *(self.laid(b.let(f"pole_{part}", size * Unary(function, turn))) for part, function in parts)
        )

    def poles_of_rounds(self, b: Builder) -> tuple[Complex, Complex]:
        """λ, and what the first token of a round is multiplied by, as the program `poles` has found them."""
        found = [
            self.laid(self.given(b, f"{name}_{part}", "found_poles", Const(i)))
            for i, (name, part) in enumerate((x, y) for x in ("pole", "first_pole") for y in ("re", "im"))
        ]
        return Complex(*found[:2]), Complex(*found[2:])

    def log_size(self, b: Builder) -> Var:
        return self.given(b, "log_size", "log_decay", fill=EMPTY)

    def residues(self, b: Builder) -> Complex:
        """2 R."""
        given = (self.given(b, f"R_{part}", "residues", Const(i)) for i, part in enumerate(("re", "im")))
        return Complex(*(self.laid(b.let(f"{x.name}_twice", x * 2.0)) for x in given))

    def load(self, b: Builder, name: str, tensor: str, entry: Expr) -> Complex:
        """A state."""
        parts = (
            b.let(f"{name}_{part}", Load(tensor, (entry, Var("n"), *self.channel, Const(i)), ACC))
            for i, part in enumerate(("re", "im"))
        )
        return Complex(*parts)

    def store(self, b: Builder, tensor: str, entry: Expr, value: Complex) -> None:
        for i, part in enumerate((value.re, value.im)):
            b.store(tensor, (entry, Var("n"), *self.channel, Const(i)), part)

    def skipped(self, b: Builder) -> Var:
        """D of the channels, 0 where there is none."""
        skip = b.let("D_own", Full(VECTOR, 0.0))
        with b.when("SKIP"):
            b.set(skip, Load("skip", self.channel, ACC))
        return skip

    def program(
        self,
        name: str,
        summary: str,
        b: Builder,
        grid: tuple[Axis, ...],
        tensors: tuple[Tensor, ...],
        sizes: tuple[str, ...],
        flags: tuple[str, ...],
        does: frozenset[str] = frozenset(),
    ) -> Program:
        constants = tuple(c for c in TILE if f"'{c}'" in repr((b.body, grid)))
        covers = {"MODES": self.modes} if "MODES" in constants else {}
        return Program(
            name, summary, grid, tensors, sizes, (), flags, constants, b.body, covers, does | {SPINS}
        )


class Walk:
    """The sequence of a program: all tokens of a batch entry, or one of several `packed` ones."""

    def __init__(self, layer: Layer, b: Builder, packed: bool) -> None:
        self.layer, self.b, self.packed = layer, b, packed
        layer.begin(b)
        self.entry: Expr = Const(0) if packed else B
        self.row: Expr = Var(SEQUENCE.name) if packed else B
        """Which of the states is its own."""
        self.count = "N" if packed else "B"
        self.start: Expr = Const(0)
        self.stop: Expr = T
        if packed:  # a device's offsets, at which nobody has looked, may lie anywhere
            first, end = (
                b.let(name, Load(SEQUENCES.name, (self.row, Const(i)), INDEX))
                for i, name in enumerate(("first", "end"))
            )
            self.start = b.let("start", maximum(first, 0))
            self.stop = b.let("stop", maximum(self.start, minimum(end, T)))

    def each_token(
        self, what: Callable[[Expr, Complex, list[Var]], None], read: tuple[str, ...], back: bool = False
    ) -> None:
        """What is done with each token, its pole, and what the tensors `read` have of it.

        `back`: from the last token to the first.
        """
        b, layer = self.b, self.layer
        plain, first = layer.poles_of_rounds(b)
        length = b.let("length", self.stop - self.start)
        whole = b.let("whole", length // ROUND * ROUND)

        def token(i: Expr) -> Expr:
            return self.stop - 1 - i if back else self.start + i

        def load(tensor: str, i: Expr) -> Load:
            """What the tensor has of a token; of another, which nobody looks at, where there is none."""
            there = maximum(minimum(token(i), T - 1), 0)
            return Load(tensor, layer.place(self.entry, there), ACC)

        own = [[b.let(f"{x}{k}", load(x, Const(k))) for x in read] for k in range(ROUND)]
        with b.loop("i0", 0, whole, ROUND) as i0:
            ahead = []
            for k in range(ROUND):
                ahead.append([b.let(f"{x}{k}_ahead", load(x, i0 + (ROUND + k))) for x in read])
            for k in range(ROUND):
                what(b.let("t", token(i0 + k)), plain if k else first, own[k])
            for tiles, later in zip(own, ahead, strict=True):
                for tile, x in zip(tiles, later, strict=True):
                    b.set(tile, x)
        with b.loop("i", whole, length) as i:
            what(b.let("t", token(i)), plain, [b.let(f"{x}_last", load(x, i)) for x in read])

    def program(
        self,
        name: str,
        summary: str,
        tensors: tuple[Tensor, ...],
        flags: tuple[str, ...],
        does: frozenset[str] = frozenset(),
    ) -> Program:
        layer, packed = self.layer, self.packed
        grid = ((*layer.heads, SEQUENCE) if packed else (BATCH, *layer.heads), (layer.channel_block,))
        return layer.program(
            packed_name(name) if packed else name,
            summary,
            self.b,
            (*grid[0], *grid[1]),
            (*tensors, *((SEQUENCES,) if packed else ())),
            (*layer.sizes, *(("N",) if packed else ())),
            flags,
            does,
        )
