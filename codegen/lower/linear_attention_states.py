"""The states of linear attention: what a segment adds to them, and what each segment starts from.

Of keys with values, S = Σ_j Φ(w_j) v_jᵀ and z = Σ_j Φ(w_j) over what lies before a segment; of queries with
output gradients, mirrored, Σ_i Φ(u_i) g_iᵀ and Σ_i e_i Φ(u_i) over what lies after it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ..ir.build import Builder
from ..ir.heads import members
from ..ir.nodes import Expr, Span, Var, cdiv, maximum, minimum, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SUMS_STATES
from ..memory.states import Block, State
from .linear_attention_parts import Layer
from .ragged import ALL, Segment
from .sequence import Sequence


class _States:
    """One block of the state's rows and columns, and how tokens enter it."""

    def __init__(
        self, layer: Layer, b: Builder, of_queries: bool, sequence: Sequence, ragged: bool = False
    ) -> None:
        self.layer, self.of_queries, self.b = layer, of_queries, b
        self.sequence, self.ragged = sequence, ragged
        # A program with the flag reads where its tokens lie.
        self.memory = layer.summing(b, of_queries, sequence)
        f = b.let("f", Span(Var("feature_block") * self.memory.size, self.memory.size))
        b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
        b.let("d", Span(wrap(0), "QK"))
        self.block = Block(f, layer.features.select(b, f))
        self.weight = layer.features.weights(b, f, self.block.selection) if of_queries else None

    def zeros(self, suffix: str = "") -> State:
        """No tokens yet."""
        return self.memory.zeros(self.block.f, suffix)

    def members(self) -> AbstractContextManager[None]:
        """What goes through the queries of a group of heads; it has one head of keys."""
        return members(self.b) if self.of_queries else nullcontext()

    def add(self, first: Expr, size: str, state: State, start: Expr | None, end: Expr | None) -> None:
        """Add `size` tokens from `first` on, without the weights of their features.

        What is left of keys is as of the moment `end`, what is left at queries as since the moment `start`.
        """
        t = self.b.let("t", self.sequence.tile(first, size))
        past, memory = self.sequence.past(first, size), self.memory
        log = memory.since("t_log", t, start if self.of_queries else end)
        kept = memory.left_of_tile("kept", t, log, self.of_queries)
        if self.of_queries:
            _, queries = memory.load("X", "q", t)
            gradients = memory.gradients(t)
            memory.enter(state, self.block, queries, gradients.g, past, gradients.e, kept)
        else:
            _, keys = memory.load("X", "k", t)
            memory.enter(state, self.block, keys, memory.values(t), past, kept=kept)

    def moments(self, start: Expr, stop: Expr) -> tuple[Expr | None, Expr | None]:
        """Before a token and before another one."""
        return self.memory.moment("start_moment", start), self.memory.moment("stop_moment", stop)

    def weigh(self, state: State) -> None:
        """Multiply sums of features by their weights."""
        if self.weight:
            self.memory.weigh(state, self.weight)

    def program(
        self,
        name: str,
        summary: str,
        first: Axis,
        tensors: tuple[Tensor, ...],
        constants: tuple[str, ...],
        flags: tuple[str, ...] = (),
    ) -> Program:
        layer = self.layer
        inputs = (
            (layer.queries("q"), layer.gradients(), *layer.row_sums("e")) if self.of_queries else layer.keys()
        )
        blocks = (
            Axis("feature_block", cdiv(layer.features.rows, self.memory.size)),
            Axis("value_block", cdiv(layer.v, "VALUES")),
        )
        present = tuple(dict.fromkeys(tensor.optional for tensor in tensors if tensor.optional))
        return layer.program(
            name,
            summary,
            (first, *blocks),
            (*inputs, *layer.decays(), *tensors),
            self.b,
            constants,
            whole_values=False,
            flags=(*present, *flags),
            scaled=self.of_queries,
            does=(SUMS_STATES,),
            ragged=self.ragged,
        )


def segment_sums(layer: Layer, name: str, of_queries: bool) -> Program:
    """What each segment adds: the sum over its keys with values, or its queries with output gradients."""
    b, sums = Builder(), layer.segment_sums()
    segment = Segment.of_sums(b, mirrored=of_queries)
    states = _States(layer, b, of_queries, layer.sequence_of(segment, of_queries), ragged=True)
    state = states.zeros()
    start, stop = layer.ends_of(b, segment, of_queries)
    moments = states.moments(start, stop)
    with states.members(), b.loop("t0", start, stop, "CHUNK") as t0:
        states.add(t0, "CHUNK", state, *moments)
    states.weigh(state)
    state.store(sums, Var("segment"))
    what = "queries and their output gradients" if of_queries else "keys and values"
    return states.program(
        name,
        f"The sum of outer products of the {what} of each segment.",
        Axis("segment", Var("segments")),
        (*sums,),
        ("SEGMENT", "CHUNK"),
        flags=(ALL,),
    )


def running_states(layer: Layer, name: str, of_queries: bool, total: bool = False) -> Program:
    """The state before each segment, of keys; or after it, of queries.

    A program walks over one *span* of the sequence, in tiles of SEGMENT tokens, from what lies before that
    span (SEGMENTED) or from an initial state (INITIAL).  It keeps the state where it enters a segment: at
    every tile, or at one of several (LONG).  Segments have no loop of their own, because Triton loads ahead
    in innermost loops only, and would begin anew in each.  Nobody needs what the last segment adds, unless
    the sum over everything is asked for (TOTAL), as it can be of queries, or where `total` says so.
    """
    b, tokens = Builder(), layer.sequence(of_queries)
    states = _States(layer, b, of_queries, tokens)
    initial, spans = layer.user_states("initial_", "INITIAL"), layer.span_states("SEGMENTED")
    kept = layer.segment_states()
    state = states.zeros()
    with b.when("INITIAL"):
        state.restore(initial, "_initial")
    with b.when("SEGMENTED"):
        state.restore(spans, "_start", Var("walk"))
    whole = cdiv(tokens.length, "SEGMENT")
    # A part of a sequence may have no tokens; what lies before it is kept all the same.
    tiles = b.let("tiles", whole if tokens.end is None else maximum(whole, 1))
    per_segment = b.let("per_segment", 1)
    with b.when("LONG"):
        b.set(per_segment, cdiv(tiles, "segments"))
    length = b.let("length", cdiv(tiles, "spans"))
    start = b.let("start", Var("walk") * length)
    if of_queries:
        stop = b.let("stop", minimum(start + length, tiles))
        least = b.let("least", per_segment - 1)
        with b.when("TOTAL"):
            b.set(least, 0)
        b.set(start, maximum(start, least))
    else:
        stop = b.let("stop", minimum(start + length, (Var("segments") - 1) * per_segment + 1))
        if total:
            with b.when("TOTAL"):
                b.set(stop, minimum(start + length, tiles))
    with b.loop("i", start, stop) as i:
        tile = b.let("tile", start + stop - 1 - i if of_queries else i)
        segment, entry = b.let("segment", tile), b.let("entry", tile)
        with b.when("LONG"):
            b.set(segment, tile // per_segment)
            first = segment * per_segment
            b.set(entry, minimum(first + per_segment, tiles) - 1 if of_queries else first)
        with b.when(tile.equals(entry)):
            state.store(kept, segment)
        added = states.zeros("_added")
        first = tokens.token(tile * "SEGMENT")
        moments = states.moments(first, tokens.until(first + "SEGMENT"))
        with states.members():
            states.add(first, "SEGMENT", added, *moments)
        states.weigh(added)
        state.add(added, states.memory.between("tile_log", *moments))
    totals = layer.user_states("total_", "TOTAL") if of_queries or total else ()
    if totals:
        with b.when("TOTAL"):
            state.store(totals)
    return states.program(
        name,
        f"The state {'after' if of_queries else 'before'} each segment.",
        Axis("walk", Var("spans")),
        (*initial, *spans, *kept, *totals),
        ("SEGMENT",),
        flags=("LONG",),
    )
