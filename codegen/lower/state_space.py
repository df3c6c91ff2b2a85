"""The programs of a state space in modal form (`mixers/state_space.py` has its formulas).

Each walks over a sequence token by token, with the state of a block of channels in registers: a token costs
as many products a mode as a convolution with its taps would, whatever the length, and nothing is rounded but
in the state itself, which is float32.

Tiles are [channels, modes].  Where channels share a filter its modes are a row for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..dtypes import ACC, IO, WIDE
from ..ir.build import Builder
from ..ir.nodes import (
    INDEX,
    Cast,
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
    minimum,
    row,
    wrap,
)
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, SPINS, TOKEN
from ..mixers.state_space import StateSpace
from ..names import packed as packed_name
from .ragged import SEQUENCE
from .sequence import Sequence
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one

B, H, T = Var("b"), Var("h"), Var("T")
BATCH, HEADS = Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True)
TILE, VECTOR = ("CHANNELS", "MODES"), ("CHANNELS",)
SEQUENCES = Tensor("sequences", ("N", 2), INDEX)
EMPTY = -200.0
"""log |λ| of modes that only fill a tile: nothing is left of what enters them."""
ROUND = 16
"""Tokens of which the first makes good what the rounding of λ to float32 does to a state in all of them.

Without it the error of a state that lasts l tokens would be about l times that of a number.
"""
LOG_DECAY, ANGLE, RE, IM = range(4)
"""What the last dimension of `mode_sums` has."""


def programs(spec: StateSpace) -> tuple[Program, ...]:
    """All programs of a layer."""
    layer = Layer(spec)
    walks = (walk, walk_back, mode_sums)
    return (
        *(program(layer, packed) for packed in (False, True) for program in walks),
        mode_gradients(layer),
        skip_gradients(layer),
        token(layer),
    )


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

    def filters(self) -> tuple[Tensor, ...]:
        """λ and R."""
        unit = self.units[:1]
        return (
            Tensor("log_decay", (*unit, self.modes), ACC),
            Tensor("angle", (*unit, self.modes), ACC),
            Tensor("residues", (*unit, self.modes, 2), ACC),
        )

    def skip(self) -> Tensor:
        return Tensor("skip", self.units, ACC, optional="SKIP")

    def states(self, name: str, count: str, optional: str | None = None) -> Tensor:
        return Tensor(name, (count, *self.units, self.modes, 2), ACC, optional=optional)

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
        return b.let(name, Load(tensor, (*self.filter, Var("n"), *part), ACC, fill))

    def laid(self, x: Var) -> Expr:
        """That, to meet tiles."""
        return row(x) if self.shared else x

    def poles(self, b: Builder) -> Complex:
        """λ."""
        size = b.let("pole_size", Unary("exp", self.log_size(b)))
        turn = self.given(b, "turn", "angle")
        parts = (("re", "cos"), ("im", "sin"))
        return Complex(
            *(self.laid(b.let(f"pole_{part}", size * Unary(function, turn))) for part, function in parts)
        )

    def poles_of_rounds(self, b: Builder) -> tuple[Complex, Complex]:
        """λ, and what the first token of a round is multiplied by, which makes good what all others round."""
        size = b.let("exact_size", Unary("exp", Cast(self.log_size(b), WIDE)))
        turn = self.given(b, "turn", "angle")
        plain, first = [], []
        for part, function in (("re", "cos"), ("im", "sin")):
            exact = b.let(f"exact_{part}", size * Unary(function, Cast(turn, WIDE)))
            rounded = b.let(f"pole_{part}", Cast(exact, ACC))
            missing = Cast(exact - Cast(rounded, WIDE), ACC) * float(ROUND)
            plain.append(self.laid(rounded))
            first.append(self.laid(b.let(f"first_pole_{part}", rounded + missing)))
        return Complex(*plain), Complex(*first)

    def log_size(self, b: Builder) -> Var:
        return self.given(b, "log_size", "log_decay", fill=EMPTY)

    def residues(self, b: Builder) -> Complex:
        """2 R."""
        given = (self.given(b, f"R_{part}", "residues", Const(i)) for i, part in enumerate(("re", "im")))
        return Complex(*(self.laid(b.let(f"{x.name}_twice", x * 2.0)) for x in given))

    def load(self, b: Builder, name: str, tensor: str, entry: Expr) -> Complex:
        """A state."""
        parts = (
            b.let(f"{name}_{part}", Load(tensor, (entry, *self.channel, Var("n"), Const(i)), ACC))
            for i, part in enumerate(("re", "im"))
        )
        return Complex(*parts)

    def store(self, b: Builder, tensor: str, entry: Expr, value: Complex) -> None:
        for i, part in enumerate((value.re, value.im)):
            b.store(tensor, (entry, *self.channel, Var("n"), Const(i)), part)

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
        if packed:
            self.start, self.stop = (
                b.let(name, Load(SEQUENCES.name, (self.row, Const(i)), INDEX))
                for i, name in enumerate(("start", "stop"))
            )

    def each_token(self, what: Callable[[Expr, Complex], None], back: bool = False) -> None:
        """What is done with each token and its pole; `back`: from the last one to the first."""
        b = self.b
        plain, first = self.layer.poles_of_rounds(b)

        def one(i: Expr, poles: Complex) -> None:
            what(b.let("t", self.stop - 1 - i if back else self.start + i), poles)

        length = b.let("length", self.stop - self.start)
        with b.loop("i0", 0, length, ROUND) as i0:
            one(i0, first)
            with b.loop("i", i0 + 1, minimum(i0 + ROUND, length), ahead=True) as i:
                one(i, plain)

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


def walk(layer: Layer, packed: bool) -> Program:
    """Outputs, and the state after the last token."""
    b = Builder()
    over = Walk(layer, b, packed)
    residues, skip = layer.residues(b), layer.skipped(b)
    state = Tile.zeros(b, "s")
    with b.when("INITIAL"):
        state.add(layer.load(b, "given", "initial_state", over.row))

    def token(t: Expr, poles: Complex) -> None:
        y = _token(layer, b, state, poles, residues, skip, over.entry, t)
        b.store("y", layer.place(over.entry, t), Cast(y, IO))

    over.each_token(token)
    with b.when("FINAL"):
        layer.store(b, "final_state", over.row, state.value)
    return over.program(
        "walk",
        "The outputs of a sequence, token by token.",
        (
            layer.of_tokens("x"),
            *layer.filters(),
            layer.skip(),
            layer.states("initial_state", over.count, "INITIAL"),
            layer.of_tokens("y", strided=False),
            layer.states("final_state", over.count, "FINAL"),
        ),
        ("SKIP", "INITIAL", "FINAL"),
    )


def walk_back(layer: Layer, packed: bool) -> Program:
    """dx, and what is owed to the state before the first token."""
    b = Builder()
    over = Walk(layer, b, packed)
    residues, skip = layer.residues(b), layer.skipped(b)
    adjoint = Tile.zeros(b, "a")
    with b.when("FINAL"):
        owed = layer.load(b, "given", "d_final_state", over.row)
        adjoint.add(Complex(owed.re, -owed.im))

    def token(t: Expr, poles: Complex) -> None:
        dy = b.let("dy_own", Load("dy", layer.place(over.entry, t), ACC))
        adjoint.add(residues.times(column(dy)))
        dx = b.let("dX", Sum(adjoint.re, 1))
        b.store("dx", layer.place(over.entry, t), Cast(dx + skip * dy, IO))
        adjoint.set(poles * adjoint.value)

    over.each_token(token, back=True)
    with b.when("INITIAL"):
        layer.store(b, "d_initial_state", over.row, Complex(adjoint.re, -adjoint.im))
    return over.program(
        "walk_back",
        "The gradients of a sequence's inputs, from the last token to the first.",
        (
            layer.of_tokens("dy"),
            *layer.filters(),
            layer.skip(),
            layer.states("d_final_state", over.count, "FINAL"),
            layer.of_tokens("dx", strided=False),
            layer.states("d_initial_state", over.count, "INITIAL"),
        ),
        ("SKIP", "INITIAL", "FINAL"),
    )


def mode_sums(layer: Layer, packed: bool) -> Program:
    """What a sequence adds to the gradients of poles, residues and D."""
    b = Builder()
    over = Walk(layer, b, packed)
    residues = layer.residues(b)
    state, slope = Tile.zeros(b, "s"), Tile.zeros(b, "w")
    with b.when("INITIAL"):
        state.add(layer.load(b, "given", "initial_state", over.row))
    of_states, of_slopes = Tile.zeros(b, "by_state"), Tile.zeros(b, "by_slope")
    of_skip = b.let("by_skip", Full(VECTOR, 0.0))

    def token(t: Expr, poles: Complex) -> None:
        x, dy = (b.let(f"{name}_own", Load(name, layer.place(over.entry, t), ACC)) for name in ("x", "dy"))
        slope.set(poles * (slope.value + state.value))
        fed = poles * state.value
        state.set(Complex(fed.re + column(x), fed.im))
        of_states.add(state.value.times(column(dy)))
        of_slopes.add(slope.value.times(column(dy)))
        b.add(of_skip, x * dy)

    over.each_token(token)
    owed = residues * of_slopes.value
    log = b.let("of_log", owed.re)
    turn = b.let("of_angle", -owed.im)
    with b.when("FINAL"):
        final = layer.load(b, "owed", "d_final_state", over.row)
        b.add(log, final.re * slope.re + final.im * slope.im)
        b.add(turn, final.im * slope.re - final.re * slope.im)
    parts = {LOG_DECAY: log, ANGLE: turn, RE: of_states.re * 2.0, IM: of_states.im * -2.0}
    for part, value in parts.items():
        b.store("mode_parts", (over.row, *layer.channel, Var("n"), Const(part)), value)
    with b.when("SKIP"):
        b.store("skip_parts", (over.row, *layer.channel), of_skip)
    return over.program(
        "mode_sums",
        "What a sequence adds to the gradients of poles, residues and D.",
        (
            layer.of_tokens("dy"),
            layer.of_tokens("x"),
            *layer.filters(),
            layer.states("initial_state", over.count, "INITIAL"),
            layer.states("d_final_state", over.count, "FINAL"),
            *_parts(layer, over.count),
        ),
        ("SKIP", "INITIAL", "FINAL"),
        frozenset({GRADIENTS}),
    )


def _parts(layer: Layer, count: str) -> tuple[Tensor, Tensor]:
    """What each sequence adds."""
    return (
        Tensor("mode_parts", (count, *layer.units, layer.modes, 4), ACC),
        Tensor("skip_parts", (count, *layer.units), ACC, optional="SKIP"),
    )


def mode_gradients(layer: Layer) -> Program:
    """The gradients of poles and residues: sums over sequences, and over the channels of a head."""
    b = Builder()
    b.let("n", Span(wrap(0), "MODES"))
    names = {LOG_DECAY: "of_log", ANGLE: "of_angle", RE: "of_re", IM: "of_im"}
    totals = [b.let(name, Full(TILE, 0.0)) for name in names.values()]

    def add(i: Expr) -> None:
        for part, total in zip(names, totals, strict=True):
            place = (i, *layer.channel, Var("n"), Const(part))
            b.add(total, b.let(f"{total.name}_part", Load("mode_parts", place, ACC)))

    if layer.shared:
        with b.loop("i", 0, "N") as i, b.loop("d0", 0, wrap(layer.units[-1]), "CHANNELS") as d0:
            b.let("d", Span(d0, "CHANNELS"))
            add(i)
        totals = [b.let(f"{total.name}_total", Sum(total, 0)) for total in totals]
    else:
        b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        with b.loop("i", 0, "N") as i:
            add(i)
    results = (("dlog_decay", ()), ("dangle", ()), ("dresidues", (Const(0),)), ("dresidues", (Const(1),)))
    for total, (name, part) in zip(totals, results, strict=True):
        b.store(name, (*layer.filter, Var("n"), *part), total)
    unit = layer.units[:1]
    return layer.program(
        "mode_gradients",
        "The gradients of poles and residues, from what sequences add to them.",
        b,
        layer.heads or (layer.channel_block,),
        (
            _parts(layer, "N")[0],
            Tensor("dlog_decay", (*unit, layer.modes), ACC),
            Tensor("dangle", (*unit, layer.modes), ACC),
            Tensor("dresidues", (*unit, layer.modes, 2), ACC),
        ),
        ("N", str(unit[0])),
        (),
        frozenset({GRADIENTS}),
    )


def skip_gradients(layer: Layer) -> Program:
    """dD: sums over sequences."""
    b = Builder()
    b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    total = b.let("of_skip", Full(VECTOR, 0.0))
    with b.loop("i", 0, "N") as i:
        b.add(total, b.let("of_skip_part", Load("skip_parts", (i, *layer.channel), ACC)))
    b.store("dskip", layer.channel, total)
    parts = Tensor("skip_parts", ("N", *layer.units), ACC)
    return layer.program(
        "skip_gradients",
        "The gradient of D, from what sequences add to it.",
        b,
        (*layer.heads, layer.channel_block),
        (parts, Tensor("dskip", layer.units, ACC)),
        ("N", str(layer.units[0])),
        (),
    )


def token(layer: Layer) -> Program:
    """A step: the state is changed in place."""
    b = Builder()
    layer.begin(b)
    poles, residues, skip = layer.poles(b), layer.residues(b), layer.skipped(b)
    given = layer.load(b, "given", "state", B)
    state = Tile.zeros(b, "s")
    state.add(given)
    with one_by_one(b, Sequence("T")) as t:
        y = _token(layer, b, state, poles, residues, skip, B, t)
        b.store("y", layer.place(B, t), Cast(answered(b, y), IO))
    layer.store(b, "state", B, state.value)
    return layer.program(
        "token",
        "Tokens one after the other: the state turns and fades, and each is added.",
        b,
        (BATCH, *layer.heads, layer.channel_block),
        (
            layer.of_tokens("x"),
            *layer.filters(),
            layer.skip(),
            *in_slots((layer.states("state", "B"),)),
            layer.of_tokens("y", strided=False),
        ),
        (*layer.sizes, POOLED),
        ("SKIP", *FLAGS),
        frozenset({TOKEN}),
    )


def _token(
    layer: Layer, b: Builder, state: Tile, poles: Complex, residues: Complex, skip: Var, entry: Expr, t: Expr
) -> Var:
    """The state takes a token, and answers."""
    x = b.let("x_own", Load("x", layer.place(entry, t), ACC))
    fed = poles * state.value
    state.set(Complex(fed.re + column(x), fed.im))
    read = b.let("read", residues.re * state.re - residues.im * state.im)
    y = b.let("y_own", Sum(read, 1))
    b.add(y, skip * x)
    return y
