"""The programs of a long convolution (`mixers/long_conv.py` has its formulas).

They are for what is short, and for packed sequences: each goes through the lags of the filters, and reads for
each the tokens that lie so far back.  Long sequences are transformed, and `finished` makes outputs of that.
"""

from __future__ import annotations

from ..dtypes import ACC, IO
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
    Var,
    Where,
    cdiv,
    column,
    maximum,
    minimum,
    wrap,
)
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, TOKEN
from ..mixers.long_conv import TAPS, LongConv
from .long_conv_parts import BATCH, PART, PARTS, SEQUENCES, TILE, B, D, Layer, Part
from .sequence import Sequence
from .steps import FLAGS, answered, in_slots, one_by_one


def programs(spec: LongConv) -> tuple[Program, ...]:
    """All programs of a layer, and those of packed sequences."""
    dense, packed = Layer(spec), Layer(spec, packed=True)
    return (
        *_over_tokens(dense),
        filter_sums(dense),
        skip_sums(dense),
        finished(dense),
        token(dense),
        *_over_tokens(packed),
    )


def _over_tokens(layer: Layer) -> tuple[Program, ...]:
    return (
        outputs(layer),
        *((gate_gradients(layer),) if layer.spec.gate else ()),
        input_gradients(layer),
        earlier_gradients(layer),
        filter_gradients(layer),
        skip_gradients(layer),
    )


def outputs(layer: Layer) -> Program:
    b = Builder()
    part = layer.tile(b)
    _store_output(layer, b, part, layer.convolved(b, part))
    return layer.program(
        "outputs",
        "The outputs of a tile of tokens and channels.",
        b,
        layer.tiles,
        (
            layer.of_tokens("u"),
            layer.filters(),
            layer.skip(),
            *layer.gates("gate"),
            layer.before(),
            layer.of_tokens("y", strided=False),
            *layer.tables,
        ),
        ("SKIP", *layer.gated, "INITIAL"),
    )


def finished(layer: Layer) -> Program:
    """Outputs of what transforms have found."""
    b = Builder()
    part = layer.tile(b)
    _store_output(layer, b, part, b.let("p", Load("sums", layer.place(part.entry, Var("t")), ACC)))
    return layer.program(
        "finished",
        "The outputs of a tile of tokens and channels, of sums over all lags.",
        b,
        layer.tiles,
        (
            Tensor("sums", layer.tokens, ACC),
            layer.of_tokens("u"),
            layer.skip(),
            *layer.gates("gate"),
            layer.of_tokens("y", strided=False),
        ),
        ("SKIP", *layer.gated),
    )


def _store_output(layer: Layer, b: Builder, part: Part, p: Var) -> None:
    """y = gate · (p + skip · u)."""
    place = layer.place(part.entry, Var("t"))
    layer.skipped(b, p, b.let("own", Load("u", place, ACC)))
    if layer.spec.gate:
        with b.when("GATED"):
            b.set(p, p * b.let("G", Load("gate", place, ACC)))
    b.store("y", place, Cast(p, IO))


def gate_gradients(layer: Layer) -> Program:
    b = Builder()
    part = layer.tile(b)
    p, place = layer.convolved(b, part), layer.place(part.entry, Var("t"))
    layer.skipped(b, p, b.let("own", Load("u", place, ACC)))
    b.store("dgate", place, Cast(p * b.let("dY", Load("dy", place, ACC)), IO))
    return layer.program(
        "gate_gradients",
        "The gradient of the gate, for which the sums are made again.",
        b,
        layer.tiles,
        (
            layer.of_tokens("dy"),
            layer.of_tokens("u"),
            layer.filters(),
            layer.skip(),
            layer.before(),
            layer.of_tokens("dgate", strided=False),
            *layer.tables,
        ),
        ("SKIP", "INITIAL"),
    )


def input_gradients(layer: Layer) -> Program:
    b = Builder()
    part = layer.tile(b)
    du = b.let("dU", Full(TILE, 0.0))
    layer.skipped(b, du, layer.slope(b, "own", part.entry, Var("t")))
    with b.loop("l", 0, minimum(TAPS, part.end - part.first)) as lag:
        after = b.let("after", Span(part.first + lag, "CHUNK", stop=part.end))
        b.add(du, layer.slope(b, "R", part.entry, after) * layer.tap(b, "tap", lag))
    b.store("du", layer.place(part.entry, Var("t")), Cast(du, IO))
    return layer.program(
        "input_gradients",
        "The gradients of a tile of inputs.",
        b,
        layer.tiles,
        (
            layer.of_tokens("dy"),
            layer.filters(),
            layer.skip(),
            *layer.gates("gate"),
            layer.of_tokens("du", strided=False),
            *layer.tables,
        ),
        ("SKIP", *layer.gated),
    )


def earlier_gradients(layer: Layer) -> Program:
    """Those of the inputs before a sequence, of which row i lies `rows` - i before the first token."""
    b = Builder()
    b.let(D.name, Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    part, rows = layer.sequence(b, layer.own), layer.rows
    i0 = b.let("i0", Var("chunk") * "CHUNK")
    du = b.let("dU", Full(TILE, 0.0))
    back = b.let("back", rows - i0)
    last = minimum(TAPS, part.end - part.begin + back)
    with b.loop("l", maximum(back - Var("CHUNK") + 1, 1), last) as lag:
        after = b.let("after", Span(part.begin - back + lag, "CHUNK", part.begin, part.end))
        b.add(du, layer.slope(b, "R", part.entry, after) * layer.tap(b, "tap", lag))
    b.store("dbefore", layer.place(part.row, b.let("i", Span(i0, "CHUNK"))), Cast(du, IO))
    return layer.program(
        "earlier_gradients",
        "The gradients of a tile of the inputs before the first.",
        b,
        (*layer.of_sequence, Axis("chunk", cdiv(rows, "CHUNK")), layer.channels),
        (
            layer.of_tokens("dy"),
            layer.filters(),
            *layer.gates("gate"),
            layer.before("dbefore", None),
            *((SEQUENCES,) if layer.packed else ()),
        ),
        layer.gated,
    )


def filter_gradients(layer: Layer) -> Program:
    """What a part of the tokens adds to dh of each lag; where channels share a filter, all of them."""
    b = Builder()
    part, unit = layer.part(b), layer.filter
    if not layer.shared:
        b.let(D.name, Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    with b.loop("l", 0, Var(TAPS)) as lag:
        total = b.let("total", Full(TILE, 0.0))
        if layer.shared:
            with b.loop("d0", 0, wrap(layer.units[-1]), "CHANNELS") as d0:
                b.let(D.name, Span(d0, "CHANNELS"))
                _pairs(layer, b, part, lag, total)
        else:
            _pairs(layer, b, part, lag, total)
        sums = b.let("total_sums", Sum(total, 0))
        of_lag = b.let("total_sum", Sum(sums, 0)) if layer.shared else sums
        b.store("filter_parts", (part.entry, Var(PART.name), lag, *unit), of_lag)
    return _of_parts(
        layer,
        "filter_gradients",
        "What the tokens of a part add to the gradients of the taps of each lag.",
        b,
        () if layer.shared else (layer.channels,),
        Tensor("filter_parts", (*layer.parts, TAPS, layer.units[0]), ACC),
        earlier=True,
    )


def skip_gradients(layer: Layer) -> Program:
    b = Builder()
    part = layer.part(b)
    b.let(D.name, Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    total = b.let("total", Full(TILE, 0.0))
    _pairs(layer, b, part, Const(0), total, earlier=False)
    b.store("skip_parts", (part.entry, Var(PART.name), *layer.channel), b.let("total_sums", Sum(total, 0)))
    return _of_parts(
        layer,
        "skip_gradients",
        "What the tokens of a part add to the gradients of what an output has of its own input besides.",
        b,
        (layer.channels,),
        Tensor("skip_parts", (*layer.parts, *layer.units), ACC),
        earlier=False,
    )


def _of_parts(
    layer: Layer,
    name: str,
    summary: str,
    b: Builder,
    channels: tuple[Axis, ...],
    result: Tensor,
    earlier: bool,
) -> Program:
    """A program of sums of pairs over the tokens of a part, with what those read."""
    return layer.program(
        name,
        summary,
        b,
        (*(() if layer.packed else (BATCH,)), *layer.heads, PART, *channels),
        (
            layer.of_tokens("dy"),
            layer.of_tokens("u"),
            *layer.gates("gate"),
            *((layer.before(),) if earlier else ()),
            result,
            *((PARTS,) if layer.packed else ()),
        ),
        (*layer.gated, *(("INITIAL",) if earlier else ())),
        frozenset({GRADIENTS}),
    )


def _pairs(layer: Layer, b: Builder, part: Part, lag: Expr, total: Var, earlier: bool = True) -> None:
    """Adds r_t u_{t − lag} of a part; rounds have the tokens with such an input, and no others."""
    own = b.let("own", maximum(part.first, part.begin + lag))
    with b.loop("t0", own, part.stop, "CHUNK") as t0:
        t = b.let("t", Span(t0, "CHUNK", stop=part.stop))
        seen = b.let("seen", Span(t0 - lag, "CHUNK", stop=part.stop - lag))
        u = b.let("U", Load("u", layer.place(part.entry, seen), ACC))
        b.add(total, layer.slope(b, "R", part.entry, t) * u)
    if not earlier:
        return
    with b.when("INITIAL"):
        stop = b.let("stop_before", minimum(part.begin + lag, part.stop))
        back = b.let("back", part.begin + lag - layer.rows)  # from a token to its row
        with b.loop("t1", part.first, stop, "CHUNK") as t1:
            t = b.let("t_begin", Span(t1, "CHUNK", stop=stop))
            i = b.let("i", Span(t1 - back, "CHUNK", Const(0), stop - back))
            u = b.let("U_before", Load("before", layer.place(part.row, i), ACC))
            b.add(total, layer.slope(b, "R_begin", part.entry, t) * u)


def filter_sums(layer: Layer) -> Program:
    unit = layer.units[0]
    axes = Axis("lag", Var(TAPS)), Axis("channel_block", cdiv(unit, "CHANNELS"))
    return _sums_of_parts(layer, "filter", "dfilters", axes, (TAPS, unit), (Var("lag"), D))


def skip_sums(layer: Layer) -> Program:
    axes = (*layer.heads, layer.channels)
    return _sums_of_parts(layer, "skip", "dskip", axes, layer.units, layer.channel)


def _sums_of_parts(
    layer: Layer,
    name: str,
    result: str,
    grid: tuple[Axis, ...],
    dims: tuple[str | int, ...],
    place: tuple[Expr, ...],
) -> Program:
    """Gradients as sums of what parts of all sequences add to them."""
    b = Builder()
    b.let(D.name, Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    total = b.let("total", Full(TILE, 0.0))
    with b.loop("n", 0, Var("B")) as n, b.loop("s0", 0, Var("parts"), "CHUNK") as s0:
        s = b.let("s", Span(s0, "CHUNK", stop=Var("parts")))
        b.add(total, b.let("added", Load(f"{name}_parts", (n, s, *place), ACC)))
    b.store(result, place, b.let("total_sums", Sum(total, 0)))
    return layer.program(
        f"{name}_sums",
        "Gradients as sums of what parts of the tokens add to them.",
        b,
        grid,
        (
            Tensor(f"{name}_parts", (*layer.parts, *dims), ACC),
            Tensor(result, dims, ACC),
        ),
        does=frozenset({GRADIENTS}),
    )


def token(layer: Layer) -> Program:
    """Each is read with the inputs in the ring, and takes the row of the oldest, which no lag reaches."""
    b, rows = Builder(), layer.rows
    d0 = b.let("d0", Var("channel_block") * "CHANNELS")
    b.let(D.name, Span(d0, "CHANNELS"))
    others = b.let("others", minimum(TAPS, rows) - 1)
    first = b.let("first_tap", Load("filters", (Const(0), *layer.filter), ACC))
    own = b.let("own", Full(("CHANNELS",), 0.0))
    b.add(own, first)
    with b.when("SKIP"):
        b.add(own, b.let("skipped", Load("skip", layer.channel, ACC)))
    # All channels of a sequence have had as many tokens: the first says where they are.
    place = b.let("place", Load("oldest", (B, *layer.head, d0), INDEX))
    every = b.let("places", Load("oldest", (B, *layer.channel), INDEX))
    with one_by_one(b, Sequence("T")) as t:
        newest = b.let("U", Load("u", layer.place(B, t), ACC))
        row_now = b.let("row_now", (place + t) % rows)
        total = b.let("total", Full(("LAGS", "CHANNELS"), 0.0))
        with b.loop("j0", 0, others, "LAGS") as j0:
            age = b.let("age", Span(j0, "LAGS"))
            behind = b.let("behind", row_now - 1 - age)
            around = Where(behind < 0, behind + rows, behind)
            # Of rows outside of the ring nothing is read, nor of lags that the filter has not.
            there = b.let("there", Where(age < others, around, wrap(rows)))
            lags = b.let("lags", Span(j0 + 1, "LAGS"))
            past = b.let("past", Load("history", layer.place(B, there), ACC))
            taps = b.let("taps", Load("filters", (lags, *layer.filter), ACC))
            b.add(total, past * (column(taps) if layer.shared else taps))
        y = b.let("Y", Sum(total, 0))
        b.add(y, own * newest)
        if layer.spec.gate:
            with b.when("GATED"):
                b.set(y, y * b.let("G", Load("gate", layer.place(B, t), ACC)))
        b.store("y", layer.place(B, t), Cast(answered(b, y), IO))
        b.store("history", layer.place(B, row_now), Cast(newest, IO))
    b.store("oldest", (B, *layer.channel), (every + "T") % rows)
    return layer.program(
        "token",
        "Tokens one after the other: each is put into the row of the oldest of the last inputs.",
        b,
        (BATCH, *layer.heads, layer.channels),
        (
            layer.of_tokens("u"),
            layer.filters(),
            layer.skip(),
            *layer.gates("gate"),
            *in_slots(
                (
                    Tensor("history", ("B", rows, *layer.units), IO),
                    Tensor("oldest", ("B", *layer.units), INDEX),
                )
            ),
            layer.of_tokens("y", strided=False),
        ),
        ("SKIP", *layer.gated, *FLAGS),
        frozenset({TOKEN}),
    )
