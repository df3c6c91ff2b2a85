"""Running sums of segments of a sequence, and what tables of chunks are owed."""

from __future__ import annotations

from ..dtypes import ACC, OPERAND, WIDE
from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.nodes import (
    Cast,
    Const,
    Dot,
    Expr,
    Full,
    Load,
    Span,
    Sum,
    Transpose,
    Unary,
    Var,
    cdiv,
    column,
    maximum,
    minimum,
    wrap,
)
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, RUNNING_SUMS
from ..names import packed as packed_name
from .prefix import bounds
from .ragged import (
    BOUNDS,
    FIRST,
    FLAGGED,
    LENGTH,
    RAGGED,
    SEQUENCE,
    STOP,
    TABLE,
    UNDER,
    Segment,
    segment_length,
)
from .state_space_chunks import held, hold, kept
from .state_space_parts import BATCH, HEADS, VECTOR, B, Complex, H, Layer, T, Tile
from .state_space_tables import TAPS, L, chunked, powers, spans, table, table_parts


def prefix(layer: Layer, back: bool, packed: bool) -> Program:
    """For each segment the state before it, from an initial one on; backwards what is owed after it."""
    b = Builder()
    layer.begin(b)
    initial, total = ("d_final_state", "d_initial_state") if back else ("initial_state", "final_state")
    row_of_states: Expr = Var(SEQUENCE.name) if packed else B
    first, count = bounds(b) if packed else (Const(0), Var("segments"))
    log, turn = (
        b.let(f"{name}_wide", Cast(layer.given(b, f"{name}_given", name), WIDE))
        for name in ("log_decay", "angle")
    )
    state = Tile.zeros(b, "s")
    with b.when("INITIAL"):
        state.add(layer.load(b, "given", initial, row_of_states))
    length = None if packed else b.let("length", cdiv(cdiv("T", "SEGMENT"), "segments") * "SEGMENT")
    with b.loop("i", 0, count) as i:
        segment = b.let("segment", first + (count - 1 - i if back else i))
        if length is None:
            Segment.of_packed(b, segment)
            tokens = STOP - FIRST
        else:
            tokens = minimum(segment * length + length, T) - minimum(segment * length, T)
        hold(b, "segment_states", segment, state.value)
        lasting = b.let("tokens", Cast(tokens, WIDE))
        size = b.let("size", Unary("exp", log * lasting))
        turned = b.let("turned", turn * lasting)
        re, im = (
            column(b.let(f"decay_{part}", Cast(size * Unary(function, turned), ACC)))
            for part, function in (("re", "cos"), ("im", "sin"))
        )
        added = held(b, "added", "sums", segment)
        faded = Complex(re, -im if back else im) * state.value
        state.set(faded + added)
    with b.when("TOTAL"):
        layer.store(b, total, row_of_states, state.value)
    rows = "N" if packed else "B"
    name = "chunk_prefix_back" if back else "chunk_prefix"
    return chunked(
        layer,
        packed_name(name) if packed else name,
        f"The state {'after' if back else 'before'} each segment{' of each sequence' if packed else ''}.",
        b,
        (*((HEADS, SEQUENCE) if packed else (BATCH, HEADS)), layer.channel_block),
        (
            *layer.given_poles(),
            layer.states(initial, rows, "INITIAL"),
            kept(layer, "sums", "segments"),
            kept(layer, "segment_states", "segments"),
            layer.states(total, rows, "TOTAL"),
            *((BOUNDS, TABLE) if packed else ()),
        ),
        ("B", "T", "H", "segments", *(("N",) if packed else ())),
        ("INITIAL", "TOTAL"),
        frozenset({RUNNING_SUMS}),
    )


def table_gradients(layer: Layer) -> Program:
    """What a part of all chunks adds to the gradients of T, A, B and powers of λ, and of D."""
    b = Builder()
    spans(b)
    b.let("d", Span(wrap(0), "CHANNELS"))
    with b.when(RAGGED):
        segment_length(b)
    total = b.let("total", Var("B") * "chunks")
    share = b.let("share", cdiv(total, "parts"))
    of_taps = b.let("d_taps", Full(("CHUNK", "CHUNK"), 0.0))
    of_tables = {
        name: [b.let(f"d_{name}_{part}", Full(("MODES", "CHUNK"), 0.0)) for part in ("re", "im")]
        for name in ("entering", "leaving")
    }
    of_powers = [b.let(f"d_powers_{part}", Full(("MODES",), 0.0)) for part in ("re", "im")]
    of_skip = b.let("by_skip", Full(VECTOR, 0.0))
    begin = b.let("begin", Var("part") * share)
    with b.loop("c", begin, minimum(begin + share, total)) as c:
        entry = b.let("entry", c // "chunks")
        place = b.let("place", c % "chunks")
        with b.when(RAGGED):
            number = b.let("number", place * "CHUNK" // LENGTH)
            Segment.of_packed(b, number)
            b.let("start", FIRST + (place * "CHUNK" - number * LENGTH))
        t0 = b.let("t0", Chosen(RAGGED, Var("start"), place * "CHUNK"))
        stop = b.let("stop", minimum(t0 + "CHUNK", Chosen(RAGGED, STOP, T)))
        t = b.let("t", Span(t0, "CHUNK", stop=stop))
        late = b.let("t_late", Span(stop - "CHUNK", "CHUNK", t0, stop))
        dy = b.let("dY", Load("dy", layer.place(entry, t), OPERAND))
        x = b.let("X", Load("x", layer.place(entry, t), OPERAND))
        b.add(of_taps, Dot(dy, Transpose(x)))
        b.comment("What is owed to A, whose last columns are those of a chunk's tokens.")
        shifted = b.let("X_late", Load("x", layer.place(entry, late), OPERAND))
        before = held(b, "s", "kept_states", place, OPERAND, entry)
        after = held(b, "a", "kept_owed", place, OPERAND, entry)
        for name, states, tokens in (("entering", after, shifted), ("leaving", before, dy)):
            for table_, state in zip(of_tables[name], (states.re, states.im), strict=True):
                b.add(table_, Dot(state, Transpose(tokens)))
        count = b.let("count", maximum(stop - t0, 1))
        power = table(b, "power", "powers", ACC, count - 1)
        s = Complex(Cast(before.re, ACC), Cast(before.im, ACC))
        a = Complex(Cast(after.re, ACC), -Cast(after.im, ACC))
        met = a * s
        re, im = (
            b.let(f"{name}_sum", Sum(b.let(name, tile), 1))
            for name, tile in (("met_re", met.re), ("met_im", met.im))
        )
        owed = (power * Complex(re, im)).times(Cast(count, ACC))
        b.add(of_powers[0], owed.re)
        b.add(of_powers[1], owed.im)
        with b.when("SKIP"):
            products = b.let("products", Cast(dy, ACC) * Cast(x, ACC))
            b.add(of_skip, b.let("products_sum", Sum(products, 0)))
    part = Var("part")
    b.store("toeplitz_parts", (part, H, L, Var("m")), of_taps)
    for name, tables in of_tables.items():
        for i, tile in enumerate(tables):
            b.store(f"{name}_parts", (part, H, Const(i), Var("n"), L), tile)
    for i, vector in enumerate(of_powers):
        b.store("power_parts", (part, H, Const(i), Var("n")), vector)
    with b.when("SKIP"):
        b.store("skip_parts", (part, *layer.channel), of_skip)
    return chunked(
        layer,
        "table_gradients",
        "What a part of all chunks adds to the gradients of what they are multiplied by.",
        b,
        (Axis("part", Var("parts")), HEADS),
        (
            layer.of_tokens("dy"),
            layer.of_tokens("x"),
            powers(layer),
            kept(layer, "kept_states", "chunks", OPERAND),
            kept(layer, "kept_owed", "chunks", OPERAND),
            *table_parts(layer),
            Tensor("skip_parts", ("parts", *layer.units), ACC, optional="SKIP"),
            FLAGGED,
        ),
        ("B", "T", "H", TAPS, "chunks", "parts", "segments", "places"),
        ("SKIP", RAGGED),
        frozenset({GRADIENTS}),
        covers=("CHANNELS",),
        under=UNDER,
    )
