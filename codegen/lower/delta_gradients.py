"""What keys and rates are owed by the delta rule; `delta` says how it comes about.

A key k_j is read by later queries, with o's gradient, and by later errors, as if -z were the gradient of
what they read; and it reads earlier keys itself, for the error of its own token.  M has the first two of
later segments, S the last of earlier ones.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import ACC, IO, Cast, Full, Load, Span, Sum, Var, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, SOLVES, STREAMS
from ..memory.states import B, H, left
from ..memory.sums import Gradients
from .delta_parts import DeltaLayer
from .linear_attention_parts import BATCH_AXES, NUMBERS, ROWS, SIZES, TOKENS
from .ragged import CHUNKS, Segment, number_of_chunk


def key_gradients(layer: DeltaLayer) -> Program:
    """dk of one chunk of keys."""
    b = Builder()
    segment, first = Segment.of_chunk(b)
    tokens = segment.sequence
    j = b.let("j", tokens.tile(first, "CHUNK"))
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(wrap(0), "VALUES"))
    number_of_chunk(b)
    memory = layer.corrected(b, tokens)
    later, earlier = (layer.segment_states("STATEFUL", prefix) for prefix in ("mirrored_", ""))
    loaded, keys = memory.load("K", "k", j)
    values = memory.values(j)
    z = b.let("z_own", Load("z", (B, j, H, u), ACC))
    own = Gradients(memory.minus("Z", z), None)
    dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
    origin = memory.moment("origin", first)
    log = memory.since("j_log", j, origin)
    owed_later, owed_earlier = memory.owed(), memory.owed_too()
    with b.when("STATEFUL"):
        b.comment("Later segments, through the mirrored state of their queries and errors.")
        with memory.blocks() as block:
            mirrored = memory.stored(later, block.f, segment.number)
            memory.read_by_key(dk, None, keys, values, block, mirrored, owed_later)
        memory.fade_got((dk,), owed_later, layer.to_end_of_segment(memory, j, segment))
        b.comment("Earlier segments, through the state that the errors of these tokens have read.")
        since = layer.since_segment(memory, j, segment)
        faded = memory.minus("Z_faded", z * column(left(since))) if since else own.g
        with memory.blocks() as block:
            state = memory.stored(earlier, block.f, segment.number)
            memory.read_by_query(dk, keys, Gradients(faded, None), block, state, owed_earlier)
    b.comment("This segment, directly: later queries, later errors, and earlier keys.")
    begin = segment.tile_of(first, "QUERIES")
    with members(b), b.loop("t0", begin, segment.end, "QUERIES") as t0:
        t = b.let("t", tokens.tile(t0, "QUERIES"))
        queries, gradients = memory.queries(t), memory.gradients(t)
        logs = memory.since("t_log", t, origin), log
        memory.pair_by_key(dk, None, keys, values, queries, gradients, column(j) <= row(t), logs, owed_later)
    with b.loop("t0", begin, segment.end, "QUERIES") as t0:
        t = b.let("t", tokens.tile(t0, "QUERIES"))
        others = memory.load("K_later", "k", t)[1]
        errors = Gradients(memory.minus("G", b.let("z_later", Load("z", (B, t, H, u), ACC))), None)
        logs = memory.since("t_log", t, origin), log
        memory.pair_by_key(dk, None, keys, values, others, errors, column(j) < row(t), logs, owed_later)
    with b.loop("t0", segment.first, tokens.until(first + "CHUNK"), "QUERIES") as t0:
        t = b.let("t", tokens.tile(t0, "QUERIES"))
        others = memory.load("K_earlier", "k", t)[1]
        theirs = b.let("Y_earlier", memory.load_values(t))
        logs = log, memory.since("t_log", t, origin)
        memory.pair_by_query(dk, keys, own, others, theirs, column(j) > row(t), logs, owed_earlier)
    b.store("dk", (B, j, H, d), Cast(layer.features.leave(loaded, dk), IO))
    if owed_later and owed_earlier:
        b.comment("What a token's key owes to G, taken from what its query and its error do.")
        given = b.let("r_own", Load("r", (B, H, j), ACC))
        b.store("r", (B, H, j), given + owed_earlier - owed_later)
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.values("do"),
        layer.values("z", strided=False),
        *layer.decays(),
        *((Tensor("r", NUMBERS, ACC),) if memory.fade else ()),
        *later,
        *earlier,
        Tensor("dk", (*ROWS, layer.qk), IO),
    )
    return layer.program(
        "key_gradients",
        "The gradient of one chunk of keys.",
        (CHUNKS,),
        tensors,
        b,
        ("SEGMENT", "CHUNK", "QUERIES"),
        whole_values=True,
        flags=("STATEFUL",),
        does=(GRADIENTS,),
        ragged=True,
    )


def rate_gradients(layer: DeltaLayer) -> Program:
    """dβ of every token."""
    b = Builder()
    t = b.let("t", TOKENS.tile(Var("chunk") * "CHUNK", "CHUNK"))
    u = b.let("u", Span(wrap(0), "VALUES"))
    x, back = (b.let(f"{name}_tile", Load(name, (B, t, H, u), ACC)) for name in ("x", "back"))
    total = b.let("total", Sum(b.let("products", x * back), 1))
    b.store("d_beta", (B, t, H), total / layer.features.kernel(wrap(1.0)))
    return Program(
        "rate_gradients",
        "The gradients of rates.",
        (*BATCH_AXES, Axis("chunk", cdiv("T", "CHUNK"))),
        (
            layer.values("x", strided=False),
            layer.values("back", strided=False),
            Tensor("d_beta", ROWS, ACC),
        ),
        SIZES[:3],
        ("scale",),
        (),
        ("CHUNK", "VALUES"),
        b.body,
        {"VALUES": layer.v},
        frozenset({SOLVES, STREAMS}),
    )
