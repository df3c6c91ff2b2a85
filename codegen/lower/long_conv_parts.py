"""What the programs of a long convolution have in common: tensors, tokens, sums over lags."""

from __future__ import annotations

from dataclasses import dataclass

from ..dtypes import ACC, IO
from ..ir.build import Builder
from ..ir.nodes import INDEX, Const, Expr, Full, Load, Span, Var, cdiv, maximum, minimum, row
from ..ir.program import Axis, Program, Tensor
from ..ir.rewrite import constants_read
from ..ir.traits import CONVOLVES
from ..mixers.long_conv import TAPS, LongConv
from ..names import packed as packed_name
from .ragged import BEGIN, END, FIRST, NUMBER, SEQUENCE, STOP, TABLE, Segment

B, H, T, D = Var("b"), Var("h"), Var("T"), Var("d")
BATCH, HEADS = Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True)
PART = Axis("part", Var("parts"))
PARTS = Tensor("part_tokens", ("parts", 5), INDEX)
"""The table of packed ones: see `ragged.py`."""
TILE = ("CHUNK", "CHANNELS")
SEQUENCES = Tensor("sequences", ("N", 2), INDEX, strided=True)


@dataclass(frozen=True)
class Part:
    """A tile of tokens, or a sequence: its entry of the batch, the state before it, and where it is."""

    entry: Expr
    row: Expr
    begin: Expr
    """The first token of the sequence."""
    end: Expr
    """One past its last."""
    first: Expr
    """The first token of the tile."""
    stop: Expr
    """One past its last, or past the end."""


class Layer:
    """One layer as its programs see it, over one sequence a batch entry or over `packed` ones."""

    def __init__(self, spec: LongConv, packed: bool = False) -> None:
        self.spec, self.packed, self.rows, self.shared = spec, packed, spec.length, spec.shared
        self.units = spec.units
        self.tokens = ("B", "T", *self.units)
        self.head: tuple[Expr, ...] = (H,) if self.shared else ()
        self.heads = (HEADS,) if self.shared else ()
        self.channels = Axis("channel_block", cdiv(self.units[-1], "CHANNELS"))
        self.count = "N" if packed else "B"
        """How many states there are."""
        self.parts = "B", "parts"

    # Parameters

    def of_tokens(self, name: str, strided: bool = True, optional: str | None = None) -> Tensor:
        return Tensor(name, self.tokens, IO, strided=strided, optional=optional)

    def filters(self, name: str = "filters") -> Tensor:
        return Tensor(name, (TAPS, self.units[0]), ACC)

    def skip(self, name: str = "skip") -> Tensor:
        return Tensor(name, self.units, ACC, optional="SKIP")

    def before(self, name: str = "before", optional: str | None = "INITIAL") -> Tensor:
        return Tensor(name, (self.count, self.rows, *self.units), IO, optional=optional)

    def gates(self, *names: str) -> tuple[Tensor, ...]:
        gated = (self.of_tokens(name, name == "gate", "GATED") for name in names)
        return tuple(gated) if self.spec.gate else ()

    @property
    def gated(self) -> tuple[str, ...]:
        """The flag of gates, if there may be any."""
        return ("GATED",) if self.spec.gate else ()

    # Tokens

    def tile(self, b: Builder) -> Part:
        """The tokens of a program over tiles, `t`."""
        b.let(D.name, Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        if self.packed:
            Segment.of_packed(b, Var("segment"))
            b.let("t", Span(FIRST, "CHUNK", stop=STOP))
            return Part(Const(0), NUMBER, BEGIN, END, FIRST, STOP)
        first = b.let("first", Var("chunk") * "CHUNK")
        b.let("t", Span(first, "CHUNK"))
        return Part(B, B, Const(0), T, first, first + "CHUNK")

    def part(self, b: Builder) -> Part:
        """The tokens of a program over parts of sequences, each of whole tiles but the last of a sequence."""
        if self.packed:
            Segment.of_packed(b, Var(PART.name), table=PARTS.name)
            return Part(Const(0), NUMBER, BEGIN, END, FIRST, STOP)
        length = b.let("length", cdiv(cdiv("T", "CHUNK"), "parts") * "CHUNK")
        first = b.let("first", Var(PART.name) * length)
        return Part(B, B, Const(0), T, first, b.let("stop", minimum(first + length, T)))

    @property
    def tiles(self) -> tuple[Axis, ...]:
        """The grid of such programs."""
        tiles = Axis("segment", Var("segments")) if self.packed else Axis("chunk", cdiv("T", "CHUNK"))
        return (*(() if self.packed else (BATCH,)), *self.heads, tiles, self.channels)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What those over packed sequences read besides."""
        return (TABLE,) if self.packed else ()

    def sequence(self, b: Builder, number: Expr) -> Part:
        """A whole sequence."""
        if not self.packed:
            return Part(number, number, Const(0), T, Const(0), T)
        first, end = (
            b.let(name, Load(SEQUENCES.name, (number, Const(i)), INDEX))
            for i, name in enumerate(("given_first", "given_end"))
        )  # a device's offsets, at which nobody has looked, may lie anywhere
        start = b.let("start", maximum(first, 0))
        stop = b.let("stop", maximum(start, minimum(end, T)))
        return Part(Const(0), number, start, stop, start, stop)

    @property
    def of_sequence(self) -> tuple[Axis, ...]:
        """The first axes of the grid of programs that are each for a sequence."""
        return (*self.heads, SEQUENCE) if self.packed else (BATCH, *self.heads)

    @property
    def own(self) -> Expr:
        """The number of such a program's sequence."""
        return Var(SEQUENCE.name) if self.packed else B

    # Pieces

    def place(self, entry: Expr, t: Expr) -> tuple[Expr, ...]:
        return (entry, t, *self.head, D)

    @property
    def channel(self) -> tuple[Expr, ...]:
        """The index of the channels."""
        return (*self.head, D)

    @property
    def filter(self) -> tuple[Expr, ...]:
        """The index of their filters."""
        return self.head or (D,)

    def tap(self, b: Builder, name: str, lag: Expr) -> Expr:
        """h of a lag, to meet tiles."""
        tap = b.let(name, Load("filters", (lag, *self.filter), ACC))
        return tap if self.shared else row(tap)

    def convolved(self, b: Builder, part: Part) -> Var:
        """Σ_l h_l u_{t−l} of a tile of tokens."""
        p = b.let("p", Full(TILE, 0.0))
        with b.loop("l", 0, minimum(TAPS, part.stop - part.begin)) as lag:
            seen = b.let("seen", Span(part.first - lag, "CHUNK", part.begin, part.end))
            u = b.let("U", Load("u", self.place(part.entry, seen), ACC))
            b.add(p, u * self.tap(b, "tap", lag))
        with b.when("INITIAL"), b.loop("l_before", part.first - part.begin + 1, TAPS) as lag:
            rows = Span(part.first - part.begin - lag + self.rows, "CHUNK", Const(0))
            earlier = b.let("earlier", rows)
            u = b.let("U_before", Load("before", self.place(part.row, earlier), ACC))
            b.add(p, u * self.tap(b, "tap_before", lag))
        return p

    def skipped(self, b: Builder, p: Var, x: Expr) -> None:
        """skip · x of a tile is added."""
        with b.when("SKIP"):
            b.add(p, row(b.let("skipped", Load("skip", self.channel, ACC))) * x)

    def slope(self, b: Builder, name: str, entry: Expr, t: Expr) -> Var:
        """r of tokens."""
        r = b.let(name, Load("dy", self.place(entry, t), ACC))
        if self.spec.gate:
            with b.when("GATED"):
                b.set(r, r * b.let(f"{name}_gate", Load("gate", self.place(entry, t), ACC)))
        return r

    def program(
        self,
        name: str,
        summary: str,
        b: Builder,
        grid: tuple[Axis, ...],
        tensors: tuple[Tensor, ...],
        flags: tuple[str, ...] = (),
        does: frozenset[str] = frozenset(),
    ) -> Program:
        """One over packed sequences has a name of its own."""
        used = {dim for tensor in tensors for dim in tensor.stored if isinstance(dim, str)}
        sizes = ("B", "T", str(self.units[0]), TAPS, "N", "segments", "parts", "slots")
        counted = {axis.extent.name for axis in grid if isinstance(axis.extent, Var)}
        return Program(
            packed_name(name) if self.packed else name,
            summary,
            grid,
            tensors,
            tuple(size for size in sizes if size in used | counted),
            (),
            flags,
            constants_read(("CHUNK", "CHANNELS", "LAGS"), grid, b.body),
            b.body,
            does=does | {CONVOLVES},
        )
