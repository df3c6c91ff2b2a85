"""The states of linear attention: what a segment adds to them, and what each segment starts from.

Of keys with values, S = Σ_j Φ(w_j) v_jᵀ and z = Σ_j Φ(w_j) over what lies before a segment; of queries with
output gradients, mirrored, Σ_i Φ(u_i) g_iᵀ and Σ_i e_i Φ(u_i) over what lies after it.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    OPERAND,
    STATE,
    Axis,
    Cast,
    Expr,
    Full,
    Load,
    Program,
    Span,
    Tensor,
    Var,
    cdiv,
    column,
    maximum,
    minimum,
    wrap,
)
from ..ir.traits import SUMS_STATES
from .feature_maps import Sums
from .linear_attention_parts import B, H, Layer, T


class _States:
    """One block of the state's rows and columns, and how tokens enter it."""

    def __init__(self, layer: Layer, of_queries: bool) -> None:
        self.layer, self.of_queries, self.b = layer, of_queries, Builder()
        b = self.b
        self.f = layer.features_at(b, Var("feature_block") * layer.features.block)
        self.u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
        self.d = b.let("d", Span(wrap(0), "QK"))
        self.selection = layer.features.select(b, self.f)
        self.weight = layer.features.weights(b, self.f) if of_queries else None

    def zeros(self, suffix: str = "") -> tuple[Var, Var | None]:
        """Introduce S and z."""
        block = self.layer.features.block
        state = self.b.let(f"S{suffix}", Full((block, "VALUES"), 0.0))
        return state, self.b.let(f"z{suffix}", Full((block,), 0.0)) if self.layer.spec.normalize else None

    def add(self, t0: Expr, size: str, state: Var, z: Var | None) -> None:
        """Add `size` tokens from `t0` on, without the weights of their features."""
        b, layer = self.b, self.layer
        t = b.let("t", Span(t0, size))
        _, operand = layer.features.load(b, "X", "q" if self.of_queries else "k", (B, t, H, self.d))
        if self.of_queries:
            values = layer.gradient_tile(b, t, self.u)
            factors = Load("e", (B, H, t), ACC) if z else None
        else:
            values = b.let("Y", Load("v", (B, t, H, self.u), OPERAND))
            factors = None
        sums = Sums(state, z, layer.rows_past_end(b, t0, size), factors)
        layer.features.accumulate(b, operand, self.f, self.selection, values, sums)

    def weigh(self, state: Var, z: Var | None) -> None:
        """Multiply sums of features by their weights."""
        if self.weight is None:
            return
        self.b.set(state, state * column(self.weight))
        if z:
            self.b.set(z, z * self.weight)

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
            (layer.queries("q"), layer.gradients(), *layer.row_sums("e"))
            if self.of_queries
            else (layer.queries("k"), layer.values("v"))
        )
        blocks = (
            Axis("feature_block", cdiv(layer.features.rows, layer.features.block)),
            Axis("value_block", cdiv(layer.v, "VALUES")),
        )
        present = tuple(dict.fromkeys(tensor.optional for tensor in tensors if tensor.optional))
        return layer.program(
            name,
            summary,
            (first, *blocks),
            (*inputs, *tensors),
            self.b,
            constants,
            whole_values=False,
            flags=(*present, *flags),
            scaled=self.of_queries,
            does=(SUMS_STATES,),
        )


def segment_sums(layer: Layer, name: str, of_queries: bool) -> Program:
    """What each segment adds: the sum over its keys with values, or its queries with output gradients."""
    states = _States(layer, of_queries)
    b = states.b
    state, z = states.zeros()
    length = layer.segment_length(b)
    start = Var("segment") * length
    with b.loop("t0", start, minimum(start + length, T), "CHUNK") as t0:
        states.add(t0, "CHUNK", state, z)
    states.weigh(state, z)
    b.store("sums", (B, H, Var("segment"), states.f, states.u), state)
    if z:
        b.store("normalizer_sums", (B, H, Var("segment"), states.f), z)
    what = "queries and their output gradients" if of_queries else "keys and values"
    return states.program(
        name,
        f"The sum of outer products of the {what} of each segment.",
        Axis("segment", Var("segments")),
        layer.segment_sums(),
        ("SEGMENT", "CHUNK"),
    )


def running_states(layer: Layer, name: str, of_queries: bool) -> Program:
    """The state before each segment, of keys; or after it, of queries.

    A program walks over one *span* of the sequence, in tiles of SEGMENT tokens, from what lies before that
    span (SEGMENTED) or from an initial state (INITIAL).  It keeps the state where it enters a segment: at
    every tile, or at one of several (LONG).  Segments have no loop of their own, because Triton loads ahead
    in innermost loops only, and would begin anew in each.  Nobody needs what the last segment adds, unless
    the sum over all queries is asked for (TOTAL).
    """
    states = _States(layer, of_queries)
    b, f, u = states.b, states.f, states.u
    state, z = states.zeros()
    for flag, prefix, index in (
        ("INITIAL", "initial_", (B, H)),
        ("SEGMENTED", "start_", (B, H, Var("walk"))),
    ):
        with b.when(flag):
            b.set(state, b.let(f"S_{prefix[:-1]}", Load(f"{prefix}state", (*index, f, u), ACC)))
            if z:
                b.set(z, b.let(f"z_{prefix[:-1]}", Load(f"{prefix}normalizer", (*index, f), ACC)))
    tiles = b.let("tiles", cdiv(T, "SEGMENT"))
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
    with b.loop("i", start, stop) as i:
        tile = b.let("tile", start + stop - 1 - i if of_queries else i)
        segment, entry = b.let("segment", tile), b.let("entry", tile)
        with b.when("LONG"):
            b.set(segment, tile // per_segment)
            first = segment * per_segment
            b.set(entry, minimum(first + per_segment, tiles) - 1 if of_queries else first)
        with b.when(tile.equals(entry)):
            b.store("state", (B, H, segment, f, u), Cast(state, OPERAND))
            if z:
                b.store("normalizer", (B, H, segment, f), z)
        added, z_added = states.zeros("_added")
        states.add(tile * "SEGMENT", "SEGMENT", added, z_added)
        states.weigh(added, z_added)
        b.add(state, added)
        if z and z_added:
            b.add(z, z_added)
    totals = layer.user_states("total_", "TOTAL") if of_queries else ()
    if totals:
        with b.when("TOTAL"):
            b.store("total_state", (B, H, f, u), Cast(state, STATE))
            if z:
                b.store("total_normalizer", (B, H, f), z)
    return states.program(
        name,
        f"The state {'after' if of_queries else 'before'} each segment.",
        Axis("walk", Var("spans")),
        (
            *layer.user_states("initial_", "INITIAL"),
            *layer.span_states("SEGMENTED"),
            *layer.segment_states(),
            *totals,
        ),
        ("SEGMENT",),
        flags=("LONG",),
    )
