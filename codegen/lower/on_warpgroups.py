"""Programs for Hopper's warpgroups that differ from the portable ones.

They differ in how they normalise, and those of second-order Taylor maps in the order of features, which are
made by exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.check import check
from ..ir.exchange import WIDTH
from ..ir.flags import Chosen
from ..ir.nodes import ACC, Cast, Expr, Span, Var, Where, cdiv, maximum, minimum, wrap
from ..ir.program import Axis, Program
from ..ir.rewrite import drop_unused
from ..ir.tidy import tidy
from ..ir.traits import SUMS_STATES
from ..memory.normalizer import Eighths, OfPairs
from ..memory.quadratic import Quadratic
from ..memory.states import B, H
from ..memory.sums import Sums
from ..mixers.hybrid import Hybrid
from ..mixers.linear_attention import LinearAttention
from ..mixers.sliding_window import SlidingWindow
from ..spec.model import TaylorExp
from . import hybrid_parts, hybrid_stream, sliding_window_parts
from .exchanged import Exchanged
from .feature_maps import feature_map
from .groups import over_queries, over_states
from .hybrid_tokens import Segments
from .linear_attention import heads_of_states
from .linear_attention_parts import Layer
from .linear_attention_recurrence import recurrence
from .ragged import ALL, FIRST, LENGTH, RAGGED, STOP, Segment, under
from .recurrent_gradients import key_gradients, query_gradients


@dataclass(frozen=True)
class Ends:
    """The first token of a segment, one past its last in packed sequences and in one, and the first of those
    that exist.
    """

    first: Expr
    packed: Expr
    last: Expr
    existing: Expr


class OfExchange(Layer):
    """A layer whose tiles of queries and keys are as wide as an exchange."""

    width = WIDTH

    def ends(self, b: Builder, segment: Segment) -> Ends:
        """The tokens of a segment."""
        self.segment_length(b)
        return Ends(segment.first, STOP, under(segment.end, False), segment.first)


class OlderOfExchange(hybrid_parts.Layer):
    """The same of a hybrid, whose states are sums over keys that have left all windows."""

    width = WIDTH

    def ends(self, b: Builder, segment: Segment) -> Ends:
        """The older keys of a segment."""
        older = self.tokens.older
        length = b.let(LENGTH.name, Segments(b, self.dense).of_one_sequence())
        oldest = self.recent(b, self.tokens).first_key()
        first = Chosen(RAGGED, FIRST, segment.number * length)
        last = minimum((segment.number + 1) * length, under(older.stop, False))
        return Ends(first, minimum(STOP, under(older.stop)), last, maximum(first, oldest))


def recurrence_of(spec: LinearAttention) -> Program:
    """The recurrence of a layer whose state is small, or whose features are made by exchange."""
    layer, features = Layer(spec, feature_map(spec)), spec.feature_map
    if isinstance(features, TaylorExp):
        exchanged = Exchanged(features, spec.head_dims.qk)
        form = (lambda b: Quadratic.zeros(b, exchanged, False)) if spec.normalize else None
        program = recurrence(OfExchange(spec, exchanged), OfPairs, form, OfExchange(spec, layer.features))
    else:
        program = recurrence(layer, Eighths)
    of_states, user_states = heads_of_states(layer)
    return _finished(over_queries(program, *of_states, *user_states))


def query_gradients_of(spec: LinearAttention, values: int) -> Program:
    """The gradients of queries of a layer whose state is small, so many `values` of it a program."""
    layer = Layer(spec, feature_map(spec))
    of_states, user_states = heads_of_states(layer)
    program = query_gradients(layer, -(-layer.v // values))
    return _finished(over_queries(program, *of_states, *user_states))


def key_gradients_of(spec: LinearAttention, values: int) -> Program:
    """Those of its keys and values, of which each query of a group has its own, and a state too."""
    layer = Layer(spec, feature_map(spec))
    return _finished(over_queries(key_gradients(layer, -(-layer.v // values))))


def window_of(
    spec: SlidingWindow, program: Callable[[sliding_window_parts.Layer, int], Program], chunk: int
) -> Program:
    """A program of a window that is kept whole, in chunks of so many tokens: see `window_stream.py`."""
    made = program(sliding_window_parts.Layer(spec), chunk)
    return _finished(over_queries(made, "first", "first_of_sequences"))


def hybrid_of(spec: Hybrid) -> Program:
    """A hybrid whose window is kept whole, and its state in registers: see `hybrid_stream.py`."""
    program = hybrid_stream.outputs(spec)
    of_states = ("ring_start", "first_of_sequences", "state", "normalizer")
    users = (f"{of}_{part}" for of in ("initial", "final") for part in ("state", "normalizer"))
    return _finished(over_queries(program, *of_states, *users))


def states_of(spec: LinearAttention | Hybrid, name: str, of_queries: bool) -> Program:
    """What each segment adds to the state of a second-order Taylor layer: see `linear_attention_states.py`.

    A program has all features of its values.  Queries have the scale in them, so that weights have none; and
    each of a group sums for itself, as gradients of keys and values do.
    """
    assert isinstance(spec.feature_map, TaylorExp)
    features = Exchanged(spec.feature_map, spec.head_dims.qk)
    layer = OlderOfExchange(spec, features) if isinstance(spec, Hybrid) else OfExchange(spec, features)
    number, b = Var("segment"), Builder()
    segment = Segment.of_sums(b, mirrored=of_queries)
    b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    d = b.let("d", Span(wrap(0), layer.width))
    ends = layer.ends(b, segment)
    first = b.let("start", ends.first)
    idle = number.equals(0 if of_queries else Var("segments") - 1)
    stop = b.let("stop", Chosen(RAGGED, ends.packed, Chosen(ALL, ends.last, Where(idle, first, ends.last))))
    tokens = layer.sequence_of(segment, of_queries)
    memory = Sums(b, features, tokens, spec.eps if spec.normalize else None, products=OfPairs)
    with memory.each() as f0:
        block = memory.block(f0)
        weight = b.let("weight", features.fixed_weight(block.f, block.selection))
        state = memory.zeros(block.f)
    quadratic = Quadratic.zeros(b, features, of_queries) if spec.normalize else None
    with b.loop("t0", first, stop, "CHUNK") as t0:
        t = b.let("t", tokens.tile(t0, "CHUNK"))
        factors, tensor = None, (B, t, H, d)
        if of_queries:
            rows = features.load_scaled(b, "X", "q", tensor, tokens)
            gradients = memory.gradients(t)
            values, factors = gradients.g, gradients.read_e(b)
        else:
            rows, values = features.load(b, "X", "k", tensor, tokens)[1], memory.values(t)
        with memory.each():
            memory.enter(state, block, rows, values, tokens.past(t0, "CHUNK"))
        if quadratic:
            quadratic.enter(rows, factors)
    sums = layer.segment_sums()
    with memory.each():
        if of_queries:
            memory.weigh(state, weight)
        state.store(memory.of_blocks(sums), number)
    if quadratic:
        count = Cast(maximum(stop - (first if ends.existing == ends.first else ends.existing), 0), ACC)
        quadratic.store(sums, (number,), count, 0.5 if of_queries else 1.0)
    inputs = (layer.queries("q"), layer.gradients(), *layer.row_sums("e")) if of_queries else layer.keys()
    axes = Axis("segment", Var("segments")), Axis("value_block", cdiv(layer.v, "VALUES"))
    what = "queries and their output gradients" if of_queries else "keys and values"
    program = layer.program(
        name,
        f"The sum of outer products of the {what} of each segment.",
        axes,
        (*inputs, *sums),
        b,
        ("SEGMENT", "CHUNK"),
        whole_values=False,
        flags=(ALL,),
        scaled=of_queries,
        does=(SUMS_STATES,),
        ragged=True,
    )
    return _finished(over_queries(program) if of_queries else over_states(program))


def _finished(program: Program) -> Program:
    check(program)
    return tidy(drop_unused(program))
