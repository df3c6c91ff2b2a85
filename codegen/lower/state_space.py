"""The programs of a state space in modal form (`mixers/state_space.py` has its formulas).

Each walks over a sequence token by token, with the state of a block of channels in registers: a token costs
six products a mode, whatever the length.
"""

from __future__ import annotations

from ..dtypes import ACC, IO, WIDE
from ..ir.build import Builder
from ..ir.nodes import Cast, Const, Expr, Full, Load, Span, Sum, Unary, Var, cdiv, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, TOKEN
from ..mixers.state_space import StateSpace
from . import state_space_chunks as chunks
from . import state_space_running as running
from . import state_space_tables as tables
from .sequence import Sequence
from .state_space_parts import (
    BATCH,
    ROUND,
    TILE,
    VECTOR,
    B,
    Complex,
    Layer,
    Tile,
    Walk,
    owe_token,
    take_token,
)
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one

LOG_DECAY, ANGLE, RE, IM = range(4)
"""What the last dimension of `mode_sums` has."""


def programs(spec: StateSpace) -> tuple[Program, ...]:
    """All programs of a layer."""
    layer = Layer(spec)
    walks = (walk, walk_back, mode_sums)
    return (
        poles(layer),
        *(program(layer, packed) for packed in (False, True) for program in walks),
        mode_gradients(layer),
        skip_gradients(layer),
        *(_of_chunks(layer) if layer.shared else ()),
        token(layer),
    )


def _of_chunks(layer: Layer) -> tuple[Program, ...]:
    """Programs of filters that channels share: what matrix units multiply."""
    both = (False, True)
    return (
        tables.tables(layer),
        tables.toeplitz(layer),
        *(program(layer, back) for program in (chunks.states, chunks.outputs) for back in both),
        *(running.prefix(layer, back, packed) for packed in both for back in both),
        running.table_gradients(layer),
        tables.lag_sums(layer),
        tables.mode_gradients_of_tables(layer),
    )


def poles(layer: Layer) -> Program:
    """λ of all filters, found in float64; and what makes good in one token what rounding it does in ROUND."""
    b = Builder()
    n, f = b.let("n", Span(wrap(0), "MODES")), b.let("f", Span(Var("filter_block") * "CHANNELS", "CHANNELS"))
    log, angle = (
        b.let(name, Cast(b.let(f"{name}_given", Load(tensor, (n, f), ACC)), WIDE))
        for name, tensor in (("log_size", "log_decay"), ("turn", "angle"))
    )
    size = b.let("size", Unary("exp", log))
    for i, (part, function) in enumerate((("re", "cos"), ("im", "sin"))):
        exact = b.let(f"exact_{part}", size * Unary(function, angle))
        rounded = b.let(f"pole_{part}", Cast(exact, ACC))
        missing = Cast(exact - Cast(rounded, WIDE), ACC)
        b.store("found_poles", (n, f, Const(i)), rounded)
        b.store("found_poles", (n, f, Const(2 + i)), rounded + missing * float(ROUND))
    return layer.program(
        "poles",
        "λ of all filters, and what the first token of a round is multiplied by.",
        b,
        (Axis("filter_block", cdiv(layer.units[0], "CHANNELS")),),
        (*layer.given_poles(), layer.poles_found()),
        (str(layer.units[0]),),
        (),
    )


def walk(layer: Layer, packed: bool) -> Program:
    """Outputs, and the state after the last token."""
    b = Builder()
    over = Walk(layer, b, packed)
    residues, skip = layer.residues(b), layer.skipped(b)
    state = Tile.zeros(b, "s")
    with b.when("INITIAL"):
        state.add(layer.load(b, "given", "initial_state", over.row))

    def token(t: Expr, pole: Complex, own: list[Var]) -> None:
        y = take_token(b, state, pole, residues, skip, *own)
        b.store("y", layer.place(over.entry, t), Cast(y, IO))

    over.each_token(token, ("x",))
    with b.when("FINAL"):
        layer.store(b, "final_state", over.row, state.value)
    return over.program(
        "walk",
        "The outputs of a sequence, token by token.",
        (
            layer.of_tokens("x"),
            layer.poles_found(),
            layer.given_residues(),
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

    def token(t: Expr, pole: Complex, own: list[Var]) -> None:
        (dy,) = own
        dx = owe_token(b, adjoint, residues, skip, dy)
        b.store("dx", layer.place(over.entry, t), Cast(dx, IO))
        adjoint.set(pole * adjoint.value)

    over.each_token(token, ("dy",), back=True)
    with b.when("INITIAL"):
        layer.store(b, "d_initial_state", over.row, Complex(adjoint.re, -adjoint.im))
    return over.program(
        "walk_back",
        "The gradients of a sequence's inputs, from the last token to the first.",
        (
            layer.of_tokens("dy"),
            layer.poles_found(),
            layer.given_residues(),
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

    def token(t: Expr, pole: Complex, own: list[Var]) -> None:
        x, dy = own
        slope.set(pole * (slope.value + state.value))
        fed = pole * state.value
        state.set(Complex(fed.re + row(x), fed.im))
        of_states.add(state.value.times(row(dy)))
        of_slopes.add(slope.value.times(row(dy)))
        b.add(of_skip, x * dy)

    over.each_token(token, ("x", "dy"))
    owed = residues * of_slopes.value
    log = b.let("of_log", owed.re)
    turn = b.let("of_angle", -owed.im)
    with b.when("FINAL"):
        final = layer.load(b, "owed", "d_final_state", over.row)
        b.add(log, final.re * slope.re + final.im * slope.im)
        b.add(turn, final.im * slope.re - final.re * slope.im)
    parts = {LOG_DECAY: log, ANGLE: turn, RE: of_states.re * 2.0, IM: of_states.im * -2.0}
    for part, value in parts.items():
        b.store("mode_parts", (over.row, Var("n"), *layer.channel, Const(part)), value)
    with b.when("SKIP"):
        b.store("skip_parts", (over.row, *layer.channel), of_skip)
    return over.program(
        "mode_sums",
        "What a sequence adds to the gradients of poles, residues and D.",
        (
            layer.of_tokens("dy"),
            layer.of_tokens("x"),
            layer.poles_found(),
            layer.given_residues(),
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
        Tensor("mode_parts", (count, layer.modes, *layer.units, 4), ACC),
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
            place = (i, Var("n"), *layer.channel, Const(part))
            b.add(total, b.let(f"{total.name}_part", Load("mode_parts", place, ACC)))

    if layer.shared:
        with b.loop("i", 0, "N") as i, b.loop("d0", 0, wrap(layer.units[-1]), "CHANNELS") as d0:
            b.let("d", Span(d0, "CHANNELS"))
            add(i)
        totals = [b.let(f"{total.name}_total", Sum(total, 1)) for total in totals]
    else:
        b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        with b.loop("i", 0, "N") as i:
            add(i)
    results = (("dlog_decay", ()), ("dangle", ()), ("dresidues", (Const(0),)), ("dresidues", (Const(1),)))
    for total, (name, part) in zip(totals, results, strict=True):
        b.store(name, (Var("n"), *layer.filter, *part), total)
    dims = (layer.modes, layer.units[0])
    return layer.program(
        "mode_gradients",
        "The gradients of poles and residues, from what sequences add to them.",
        b,
        layer.heads or (layer.channel_block,),
        (
            _parts(layer, "N")[0],
            Tensor("dlog_decay", dims, ACC),
            Tensor("dangle", dims, ACC),
            Tensor("dresidues", (*dims, 2), ACC),
        ),
        ("N", str(layer.units[0])),
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
    pole, residues, skip = layer.poles(b), layer.residues(b), layer.skipped(b)
    given = layer.load(b, "given", "state", B)
    state = Tile.zeros(b, "s")
    state.add(given)
    with one_by_one(b, Sequence("T")) as t:
        x = b.let("x_own", Load("x", layer.place(B, t), ACC))
        y = take_token(b, state, pole, residues, skip, x)
        b.store("y", layer.place(B, t), Cast(answered(b, y), IO))
    layer.store(b, "state", B, state.value)
    return layer.program(
        "token",
        "Tokens one after the other: the state turns and fades, and each is added.",
        b,
        (BATCH, *layer.heads, layer.channel_block),
        (
            layer.of_tokens("x"),
            *layer.given_poles(),
            layer.given_residues(),
            layer.skip(),
            *in_slots((layer.states("state", "B"),)),
            layer.of_tokens("y", strided=False),
        ),
        (*layer.sizes, POOLED),
        ("SKIP", *FLAGS),
        frozenset({TOKEN}),
    )
