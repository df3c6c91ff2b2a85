"""Hybrids in one pass over a segment, chunk after chunk, with the state in registers: each key is read once.

The memory is in `memory/hybrid_stream.py`.  A chunk's queries read the state first, which has the keys that
have left all their windows; then the keys of the chunk before enter it.  Where batch and heads alone do not
fill a GPU the sequence is cut into segments of older keys, and a program has the queries whose windows begin
in its segment: the first one also those that have no older keys.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.exchange import WIDTH
from ..ir.flags import Chosen
from ..ir.nodes import ACC, IO, Cast, Expr, Full, Span, Sum, Unary, Var, Where, cdiv, maximum, minimum, wrap
from ..ir.program import Axis, Program
from ..memory.hybrid_singles import Singles
from ..memory.hybrid_stream import HybridStream
from ..memory.normalizer import OfPairs
from ..memory.quadratic import Quadratic
from ..memory.states import B, H
from ..memory.sums import Sums
from ..memory.sums_singles import Chunk
from ..memory.window import Window
from ..mixers.hybrid import Hybrid
from ..spec.model import TaylorExp
from .exchanged import Exchanged
from .feature_maps import feature_map
from .hybrid_parts import Layer
from .hybrid_tokens import FIRSTS, Segments
from .linear_attention_recurrence import FLAGS
from .ragged import BEGIN, END, FIRST, LENGTH, RAGGED, STOP, Dense, Segment
from .second_look import second_look


def outputs(spec: Hybrid) -> Program:
    """o, lse and the state of one segment."""
    assert isinstance(spec.feature_map, TaylorExp)
    layer = Layer(spec, feature_map(spec))
    features, b = Exchanged(spec.feature_map, spec.head_dims.qk), Builder()
    segment, queries, keys = Segment.of_program(b), layer.tokens.queries, layer.tokens.keys
    sums = Sums(b, features, queries, spec.eps, products=OfPairs)
    memory = HybridStream(b, spec.window, queries, keys, sums)
    first = memory.first_key()
    _columns(b)
    sources, final = layer.sources(segment.number), layer.user_states("final_", "FINAL")
    with sums.each() as f0:
        block = sums.block(f0)
        weight = features.fixed_weights(b, block.f, block.selection)
        state = sums.restored(block, sources)
    form = Quadratic.zeros(b, features, False)
    form.restore(sources)
    start, stop = _ends(b, layer, memory)

    def entered(key: Expr) -> Expr:
        """How many of a program's own keys have entered, of those before one."""
        return maximum(key - maximum(memory.place(start) - spec.window, first), 0)

    doubt = b.let("doubt_of_rows", Full(("CHUNK",), 0.0))
    with b.loop("t0", start, stop, "CHUNK") as t0:
        t = b.let("t", queries.tile(t0, "CHUNK"))
        plain, scaled = memory.queries_of(t)
        weights, own, old = memory.weigh(t0, t, first, plain)
        answer = sums.answer()
        with sums.each():
            sums.read(answer, features.features(b, "P", scaled, block.selection), state, weight)
            sums.enter(state, block, old.k, old.v, wrap(0))
        older = form.read(scaled, entered(memory.place(t0) - spec.window))
        form.enter(old.k, None)
        found = memory.finish(answer.out, older, weights, own, old)
        b.store("lse", (B, H, t), b.let("logarithm", found.lse()))
        b.set(found.out, found.divided())
        b.add(doubt, Sum(b.let("nothing_of_O", Unary("nothing", found.out)), 1))
        b.store("o", (B, t, H, memory.u), Cast(found.out, IO))
    with b.when("FINAL"):
        with sums.each():
            state.store(sums.of_blocks(final))
        form.store(final, (), form.count + Cast(entered(keys.stop - spec.window), ACC))
    with second_look(b, b.let("doubt", Sum(doubt, 0))):
        _again(b, layer)
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *FIRSTS,
        *(tensor for kept, _ in sources.values() for tensor in kept),
        layer.values("o", strided=False),
        *layer.results(),
        *final,
    )
    axes = (Axis("segment", Var("segments")), Axis("value_block", cdiv(layer.v, "VALUES")))
    return layer.program(
        "outputs",
        "The outputs of one segment, with a window's keys in shared memory and the state in registers.",
        axes,
        tensors,
        b,
        ("SEGMENT", "CHUNK", "KEYS", "ROWS"),
        whole_values=False,
        flags=FLAGS,
        ragged=True,
    )


def _columns(b: Builder) -> None:
    b.let("d", Span(wrap(0), WIDTH))
    b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))


def _ends(b: Builder, layer: Layer, memory: Window) -> tuple[Var, Expr]:
    """The first query of a program, and one past its last; of a segment that has none, the end."""
    number, length = Var("segment"), b.let(LENGTH.name, Segments(b, layer.dense).of_one_sequence())
    late = memory.query_at(number * length + layer.window)
    dense = Where(number.equals(0), wrap(0), minimum(late, "T"))
    packed = Where(FIRST.equals(BEGIN), BEGIN, minimum(FIRST + layer.window, END))
    start = b.let("start", Chosen(RAGGED, packed, dense))
    last = minimum(memory.query_at((number + 1) * length + layer.window), "T")
    return start, Chosen(RAGGED, minimum(STOP + layer.window, END), last)


def _again(b: Builder, layer: Layer) -> None:
    """The rows of all chunks of a program, by selects."""
    segment = Segment.of_program(b, again=True)
    _columns(b)
    both = layer.both_by_query(b)
    first = layer.recent(b, layer.tokens).first_key()
    start, stop = _ends(b, layer, both.window)
    oldest = b.let("oldest_of_segment", segment.first)
    with b.loop("chunk_start", start, stop, "CHUNK") as begin:
        last = b.let("stop_token", layer.tokens.keys.until(both.window.place(begin) + "CHUNK"))
        chunk = Chunk(begin, oldest, last, layer.sources(segment.number), Dense(segment.number))
        Singles(both, chunk, first).outputs()
