"""The programs of a short convolution (`mixers/short_conv.py` has its formulas).

Over sequences there are two forms.  *Tiles* of tokens and channels are for backends that calculate with
whole tensors: x is read once for each tap, and r stored between the programs of a backward pass.  *Walks*,
for GPUs, are in `short_conv_walks.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

from ..dtypes import ACC, IO
from ..ir.build import Builder
from ..ir.nodes import Cast, Expr, Full, Load, Span, Sum, Var, Where, column, row, wrap
from ..ir.program import Program, Tensor
from ..ir.traits import GRADIENTS, STREAMS, TOKEN
from .sequence import Sequence
from .short_conv_parts import CHANNELS, SIZES, TILE, TOKENS, VECTOR, Layer
from .short_conv_tokens import BATCH, SEGMENTS, B
from .short_conv_walks import walk, walk_back
from .steps import FLAGS, POOLED, answered, in_slots, one_by_one


def programs(layer: Layer, packed: Layer) -> tuple[Program, ...]:
    """All programs of a layer, and those of packed sequences."""
    return (
        *_over_tokens(layer),
        tap_gradients(layer),
        token(layer),
        *_over_tokens(packed),
    )


def _over_tokens(layer: Layer) -> tuple[Program, ...]:
    return (
        outputs(layer),
        walk(layer),
        gradients(layer),
        input_gradients(layer, "input_gradients", "dx", None),
        input_gradients(layer, "earlier_gradients", "dbefore", layer.width - 1),
        walk_back(layer),
    )


def outputs(layer: Layer) -> Program:
    b, tokens = Builder(), layer.tokens
    d = layer.channels(b)
    with tokens.each_chunk(b) as t0:
        t = b.let("t", tokens.tile(t0))
        place = tokens.entry, t, d
        p = layer.argument(b, _seen(layer, b, t0, d), layer.offset(b, d), TILE)
        y = layer.output(b, p, place)
        b.store("y", place, Cast(tokens.held(y, column(t)), IO))
    return Program(
        tokens.name("outputs"),
        "The outputs of a tile of tokens and channels.",
        (*tokens.batch, *tokens.chunks(), CHANNELS),
        (*layer.inputs(), *layer.gates("gate"), Tensor("y", TOKENS, IO), *tokens.tables),
        (*SIZES, *tokens.counted_sizes()),
        (),
        (*layer.flags, "INITIAL"),
        TILE,
        b.body,
        does=frozenset({STREAMS}),
    )


def gradients(layer: Layer) -> Program:
    """r, dgate, and for one segment the sums over tokens."""
    b, tokens = Builder(), layer.tokens
    d = layer.channels(b)
    offset = layer.offset(b, d)
    taps, bias = layer.totals(b, TILE)
    start, stop = tokens.segment(b, Var("CHUNK"))
    with b.loop("t0", start, stop, "CHUNK") as t0:
        t = b.let("t", tokens.tile(t0))
        place = tokens.entry, t, d

        def store(name: str, value: Expr) -> None:
            b.store(name, place, Cast(tokens.held(value, column(t)), IO))

        seen = _seen(layer, b, t0, d)
        p = layer.argument(b, seen, offset, TILE)
        r = layer.slope(b, p, place, store)
        store("r", r)
        there = tokens.inside(column(t))  # what is past the end may still see what is not finite
        for total, x in zip(taps, seen, strict=True):
            b.add(total, Where(there, r * x, wrap(0.0)))
        if bias:
            b.add(bias, Where(there, r, wrap(0.0)))
    for j, total in enumerate(taps):
        sums = b.let(f"{total.name}_total", Sum(total, 0))
        b.store("tap_sums", (tokens.entry, Var("segment"), wrap(j), d), sums)
    if bias:
        with b.when("BIAS"):
            b.store("bias_sums", (tokens.entry, Var("segment"), d), b.let("db_total", Sum(bias, 0)))
    return Program(
        tokens.name("gradients"),
        "r and the gradient of the gate, and sums over a segment for the taps and the bias.",
        (*tokens.batch, SEGMENTS, CHANNELS),
        (
            *layer.inputs(),
            *layer.gates("gate", "dgate"),
            Tensor("dy", TOKENS, IO, strided=True),
            Tensor("r", TOKENS, IO),
            *layer.sums(),
            *tokens.tables,
        ),
        (*SIZES, "segments", *tokens.sizes),
        (),
        (*layer.flags, "INITIAL"),
        TILE,
        b.body,
        does=frozenset({STREAMS, GRADIENTS}),
    )


def input_gradients(layer: Layer, name: str, result: str, rows: int | None) -> Program:
    """dx of a tile of tokens, or of the `rows` tokens before the first."""
    b, tokens = Builder(), layer.tokens
    d = layer.channels(b)
    with tokens.each_chunk(b) if rows is None else tokens.each_earlier(b, rows) as t0:
        first = t0 if rows is None else tokens.from_begin(t0 - rows)
        dx = b.let("dX", Full(TILE, 0.0))
        for j in range(layer.width):
            place = tokens.tile(first + (layer.width - 1 - j), before=rows is not None, end=True)
            after = b.let(f"after{j}", place)
            r = b.let(f"r{j}", Load("r", (tokens.entry, after, d), ACC))
            b.add(dx, (r if rows is None else tokens.seen(r, after)) * row(Var(f"w{j}")))
        entry = tokens.entry if rows is None else tokens.row
        t = b.let("t", tokens.tile(t0) if rows is None else Span(t0, "CHUNK"))
        with nullcontext() if rows is None else tokens.once(b):
            b.store(result, (entry, t, d), Cast(dx, IO))
    return Program(
        tokens.name(name),
        "The gradients of a tile of inputs." if rows is None else "Those of the inputs before the first.",
        (*tokens.batch, *(tokens.chunks() if rows is None else tokens.earlier_chunks(rows)), CHANNELS),
        (
            Tensor("weight", ("D", layer.width), IO, strided=True),
            Tensor("r", TOKENS, IO),
            Tensor(result, TOKENS, IO) if rows is None else layer.earlier(result, None),
            *tokens.tables,
        ),
        (*SIZES, *tokens.counted_sizes()),
        (),
        (),
        TILE,
        b.body,
        does=frozenset({STREAMS}),
    )


def tap_gradients(layer: Layer) -> Program:
    """Sums over batch and segments."""
    b = Builder()
    d = b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
    taps = layer.tap_totals(b, ("PARTS", "CHANNELS"))
    bias = None
    if layer.spec.bias:
        with b.when("BIAS"):  # TileLang finds no layout for a tile that nothing else touches
            bias = layer.bias_total(b, ("PARTS", "CHANNELS"))
    with b.loop("i", 0, "B") as i, b.loop("s0", 0, "segments", "PARTS") as s0:
        s = b.let("s", Span(s0, "PARTS"))
        for j, total in enumerate(taps):
            b.add(total, b.let(f"{total.name}_part", Load("tap_sums", (i, s, wrap(j), d), ACC)))
        if bias:
            with b.when("BIAS"):
                b.add(bias, b.let("db_part", Load("bias_sums", (i, s, d), ACC)))
    for j, total in enumerate(taps):
        b.store("dweight", (d, wrap(j)), Cast(b.let(f"{total.name}_total", Sum(total, 0)), IO))
    if bias:
        with b.when("BIAS"):
            b.store("dbias", (d,), Cast(b.let("db_total", Sum(bias, 0)), IO))
    results = [Tensor("dweight", ("D", layer.width), IO)]
    if bias:
        results.append(Tensor("dbias", ("D",), IO, optional="BIAS"))
    return Program(
        "tap_gradients",
        "The gradients of the taps and of the bias, from what segments add to them.",
        (CHANNELS,),
        (*layer.sums(), *results),
        ("B", "D", "segments"),
        (),
        ("BIAS",) if layer.spec.bias else (),
        ("PARTS", "CHANNELS"),
        b.body,
        does=frozenset({STREAMS, GRADIENTS}),
    )


def token(layer: Layer) -> Program:
    b = Builder()
    d = layer.channels(b)
    last = layer.width - 1
    seen = [b.let(f"x{j}", Load("state", (B, d, wrap(j)), ACC)) for j in range(last)]
    offset = layer.offset(b, d)
    with one_by_one(b, Sequence("T")) as t:
        newest = b.let(f"x{last}", Load("x", (B, t, d), ACC))
        p = layer.argument(b, [*seen, newest], offset, VECTOR)
        b.store("y", (B, t, d), Cast(answered(b, layer.output(b, p, (B, t, d))), IO))
        for old, new in pairwise([*seen, newest]):
            b.set(old, new)
    for j, x in enumerate(seen):
        b.store("state", (B, d, wrap(j)), Cast(x, IO))
    return Program(
        "token",
        "Tokens one after the other: each is put behind the last inputs, and the oldest of them goes.",
        (BATCH, CHANNELS),
        (
            *layer.inputs(before=False),
            *in_slots((Tensor("state", ("B", "D", last), IO),)),
            *layer.gates("gate"),
            Tensor("y", TOKENS, IO),
        ),
        (*SIZES, POOLED),
        (),
        (*layer.flags, *FLAGS),
        VECTOR,
        b.body,
        does=frozenset({STREAMS, TOKEN}),
    )


def _seen(layer: Layer, b: Builder, t0: Expr, d: Var) -> list[Var]:
    """What the taps see of a tile of tokens from `t0` on, the oldest first."""
    found, tokens = [], layer.tokens
    for j in range(layer.width):
        seen = b.let(f"seen{j}", tokens.tile(t0 + (j - layer.width + 1), before=True))
        x = b.let(f"x{j}", Load("x", (tokens.entry, seen, d), ACC))
        if j < layer.width - 1:
            if (own := tokens.seen(x, seen)) is not x:
                b.set(x, own)
            with b.when("INITIAL"):
                earlier = b.let(f"earlier{j}", Span(tokens.since_begin(t0) + j, "CHUNK"))
                b.add(x, b.let(f"x{j}_before", Load("before", (tokens.row, earlier, d), ACC)))
        found.append(x)
    return found
