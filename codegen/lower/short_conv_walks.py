"""Short convolutions on GPUs: programs that go through a segment token by token.

The last tokens stay in registers, so forward and backward read and write each tensor once.  Backward goes
from the last token to the first, and begins W − 1 tokens after its segment, whose part is computed again.

A round has W − 1 tokens: what it has read is what the next one keeps.  So nothing moves from
register to register, and Triton loads ahead, which it does only where a round hands on nothing that it was
handed itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..dtypes import ACC, IO
from ..ir.build import Builder
from ..ir.nodes import Cast, Expr, Full, Load, Var, Where, cdiv, maximum, minimum, wrap
from ..ir.program import Program, Tensor
from ..ir.traits import GRADIENTS, STREAMS, WALKS
from .short_conv_parts import CHANNELS, SIZES, TOKENS, VECTOR, Layer
from .short_conv_tokens import SEGMENTS, T

Store = Callable[[Expr, str, Expr], None]


def walk(layer: Layer) -> Program:
    """x0, x1, ... are what the taps of a round see, the oldest first."""
    b = Builder()
    d = layer.channels(b)
    offset, past, tokens = layer.offset(b, d), layer.width - 1, layer.tokens
    start, stop = tokens.segment(b, wrap(past))
    kept = [_input(layer, b, f"x{j}", start + (j - past), d) for j in range(past)]
    with b.loop("t0", start, stop, past, ahead=True) as t0:
        there = [t0, *(b.let(f"t{k}", minimum(t0 + k, T - 1)) for k in range(1, past))]
        read = [b.let(f"x{past + k}", Load("x", (tokens.entry, there[k], d), ACC)) for k in range(past)]
        seen = [*kept, *read]
        for k in range(past):
            p = layer.argument(b, seen[k : k + layer.width], offset, VECTOR)
            y = layer.output(b, p, (tokens.entry, there[k], d))
            with b.when(t0 + k < stop):
                b.store("y", (tokens.entry, t0 + k, d), Cast(tokens.held(y, t0 + k), IO))
        for old, new in zip(kept, read, strict=True):
            b.set(old, new)
    return Program(
        tokens.name("walk"),
        "The outputs of a segment, token by token.",
        (*tokens.batch, SEGMENTS, CHANNELS),
        (*layer.inputs(), *layer.gates("gate"), Tensor("y", TOKENS, IO), *tokens.tables),
        (*SIZES, "segments", *tokens.sizes),
        (),
        (*layer.flags, "INITIAL"),
        VECTOR,
        b.body,
        does=frozenset({STREAMS, WALKS}),
    )


def walk_back(layer: Layer) -> Program:
    """x0, x1, ... are what the taps of a round see, r0, r1, ... r of its tokens and of those after it.

    A segment is whole rounds; r is 0 past the end of the sequence, and so are the inputs.
    """
    b = Builder()
    d = layer.channels(b)
    offset, past, tokens = layer.offset(b, d), layer.width - 1, layer.tokens
    taps, bias = layer.totals(b, VECTOR)
    start, stop = tokens.segment(b, wrap(past))
    end = b.let("end", start + cdiv(stop - start, past) * past)
    zero = b.let("zero", Full(VECTOR, 0.0))

    def slopes(t0: Expr, x: list[Var], store: Store | None) -> list[Var]:
        """r of a round's tokens, each given what its taps see."""
        found = []
        for k in reversed(range(past)):
            t = t0 + k
            there = b.let(f"there{k}", minimum(t, T - 1))
            p = layer.argument(b, x[k : k + layer.width], offset, VECTOR)
            r = layer.slope(b, p, (tokens.entry, there, d), store and partial(store, t))
            found.append(b.let(f"r{k}", Where(t < tokens.end, r, zero)))
        return found[::-1]

    def store(t: Expr, name: str, value: Expr) -> None:
        with b.when(t < tokens.own):
            b.store(name, (tokens.entry, t, d), Cast(tokens.held(value, t), IO))

    # The round after the segment, whose inputs and r become those that the first of its own keeps.
    x = []
    for j in range(2 * past):
        t = end + (j - past)
        x.append(_input(layer, b, f"x{j}", minimum(t, T - 1), d))
        b.set(x[j], Where(t < tokens.end, x[j], zero))
    r = slopes(end, x, None)
    older, newer, after = x[:past], x[past:], [b.let(f"r{past + k}", r[k]) for k in range(past)]
    for old, new in zip(older, newer, strict=True):
        b.set(new, old)
    with b.loop("i", past, end - start + 1, past, ahead=True) as i:
        t0 = b.let("t0", end - i)
        x = [_input(layer, b, f"x{j}", t0 + (j - past), d) for j in range(past)] + newer
        r = [*slopes(t0, x, store), *after]
        for k in reversed(range(past)):
            dx = b.let("dX", Full(VECTOR, 0.0))
            for j in range(layer.width):
                b.add(dx, r[k + past - j] * Var(f"w{j}"))
            store(t0 + k, "dx", dx)
            for total, tap in zip(taps, x[k:], strict=False):  # a tap past the end may see what is not finite
                b.add(total, Where(tokens.inside(t0 + k), r[k] * tap, zero))
            if bias:
                b.add(bias, tokens.counted(r[k], t0 + k))
        for old, new in (*zip(older, newer, strict=True), *zip(r, after, strict=False)):
            b.set(new, old)
    with b.when("INITIAL"):  # what is kept now is of the first tokens
        for j in range(past):
            dx = b.let(f"dX{j}", Full(VECTOR, 0.0))
            for k in range(j + 1):
                b.add(dx, after[j - k] * Var(f"w{k}"))
            with b.when(tokens.begins()):
                b.store("dbefore", (tokens.row, wrap(j), d), Cast(dx, IO))
    for j, total in enumerate(taps):
        b.store("tap_sums", (tokens.entry, Var("segment"), wrap(j), d), total)
    if bias:
        with b.when("BIAS"):
            b.store("bias_sums", (tokens.entry, Var("segment"), d), bias)
    return Program(
        tokens.name("walk_back"),
        "All gradients of a segment's inputs, token by token, and its sums for the taps and the bias.",
        (*tokens.batch, SEGMENTS, CHANNELS),
        (
            *layer.inputs(),
            *layer.gates("gate", "dgate"),
            Tensor("dy", TOKENS, IO, strided=True),
            Tensor("dx", TOKENS, IO),
            layer.earlier("dbefore"),
            *layer.sums(),
            *tokens.tables,
        ),
        (*SIZES, "segments", *tokens.sizes),
        (),
        (*layer.flags, "INITIAL"),
        VECTOR,
        b.body,
        does=frozenset({STREAMS, WALKS, GRADIENTS}),
    )


def _input(layer: Layer, b: Builder, name: str, t: Expr, d: Var) -> Var:
    """The input of one token, which may be as much as W − 1 before the first."""
    past, tokens = layer.width - 1, layer.tokens
    earlier = b.let(f"{name}_before", Full(VECTOR, 0.0))
    with b.when("INITIAL"):
        b.set(earlier, Load("before", (tokens.row, minimum(tokens.since_begin(t) + past, past - 1), d), ACC))
    x = b.let(name, Load("x", (tokens.entry, maximum(t, 0), d), ACC))
    b.set(x, Where(t >= tokens.begin, x, earlier))
    return x
