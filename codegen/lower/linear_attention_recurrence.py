"""Linear attention in one pass over the sequence, with the state in registers.

For a chunk of queries, older keys are read from the state and the chunk's own keys directly; then the
chunk's keys enter the state.  Where batch and heads alone do not fill a GPU the sequence is cut into
segments, each of which starts from the sum of those before it.  So are packed sequences (`ragged.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.build import Builder
from ..ir.nodes import ACC, IO, Cast, Full, Span, Var, cdiv, column, row, wrap
from ..ir.program import Axis, Program
from ..ir.traits import RECURS
from ..memory.normalizer import Matrix
from ..memory.quadratic import Quadratic
from ..memory.states import B, H, State
from ..memory.sums import Sums
from .linear_attention_parts import Layer
from .ragged import Segment
from .second_look import doubt_of, second_look

FLAGS = ("INITIAL", "SEGMENTED", "FINAL")


def recurrence(
    layer: Layer,
    products: type[Matrix] = Matrix,
    quadratic: Callable[[Builder], Quadratic] | None = None,
    again: Layer | None = None,
) -> Program:
    """o and n of one segment, chunk after chunk; `products` are how small states normalise.

    With a `quadratic` form that has what older keys add to n, they have no part in that.  `again` has the
    features of the second look, if not the layer's own.
    """
    b = Builder()
    segment = Segment.of_program(b)
    tokens, features = segment.sequence, layer.features
    b.let("d", Span(wrap(0), layer.width))
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    memory = layer.memory(b, products=products, sequence=tokens)
    sources, final = layer.sources(segment.number), layer.user_states("final_", "FINAL")
    with memory.each() as f0:
        block = memory.block(f0)
        weight = features.fixed_weights(b, block.f, block.selection)
        state = memory.restored(block, sources)
    form = quadratic(b) if quadratic else None
    if form:
        form.restore(sources)
    layer.segment_length(b)
    first, end = segment.first, segment.end
    with b.loop("t0", first, end, "CHUNK") as t0:
        t = b.let("t", tokens.tile(t0, "CHUNK"))
        queries = memory.scaled_queries(t)
        keys, values = memory.keys(t)
        log, total = memory.of_tile("t_log", t, t0, tokens.until(t0 + "CHUNK"))
        kept = memory.until("kept", t, log, total)
        seen, one = column(t) >= row(t), wrap(1.0)
        if memory.fade:
            answer = memory.answer()
        else:
            b.comment("The chunk's own keys, directly.")
            answer = memory.pair(queries, keys, values, seen, scale=one)
        b.comment("Older keys, through the state; then the chunk's keys enter it.")
        with memory.each():
            of_queries, of_state = (None, weight) if features.weighs_states else (weight, None)
            plain = features.features(b, "P", queries, block.selection, of_queries)
            memory.read(answer, plain, state, of_state)
            state.fade(total)
            memory.enter(state, block, keys, values, tokens.past(t0, "CHUNK"), kept=kept)
        if memory.fade:
            memory.fade_answer(answer, log)
            b.comment("The chunk's own keys, directly: what they leave differs from pair to pair.")
            memory.pair(queries, keys, values, seen, answer, one, (log, log))
        older = form.read(queries, t0 - first) if form else None
        if form:
            form.enter(keys, None)
        memory.finish(answer, t, older)
        b.store("o", (B, t, H, u), Cast(answer.out, IO))
    with b.when("FINAL"):
        with memory.each():
            state.store(memory.of_blocks(final))
        if form:
            form.store(final, (), form.count + Cast(end - first, ACC))
    with second_look(b, doubt_of_state(b, memory, state)):
        (again or layer).walk(b, Var("value_block") * "VALUES").outputs()
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.given_decays(),
        *(tensor for kept, _ in sources.values() for tensor in kept),
        layer.values("o", strided=False),
        *layer.row_sums("n"),
        *final,
    )
    return layer.program(
        "recurrence",
        "The outputs of one segment, with the state in registers.",
        (Axis("segment", Var("segments")), Axis("value_block", cdiv(layer.v, "VALUES"))),
        tensors,
        b,
        ("SEGMENT", "CHUNK"),
        whole_values=False,
        flags=FLAGS,
        does=(RECURS,),
        ragged=True,
    )


def doubt_of_state(b: Builder, memory: Sums, state: State) -> Var:
    """Whether a value is not finite: each enters the state."""
    if memory.features.sizes:  # no sum of blocks that differ
        doubt = b.let("doubt", Full((), 0.0))
        with memory.each():
            doubt_of(b, state.sums, onto=doubt)
        return doubt
    all_rows = b.let("S_all", Full((memory.size, "VALUES"), 0.0))
    with memory.each():
        b.add(all_rows, state.sums)
    return doubt_of(b, all_rows)
