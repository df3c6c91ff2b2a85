"""Linear attention in one pass over the sequence, with the state in registers.

For a chunk of queries, older keys are read from the state and the chunk's own keys directly; then the
chunk's keys enter the state.  Where batch and heads alone do not fill a GPU the sequence is cut into
segments, each of which starts from the sum of those before it.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    IO,
    OPERAND,
    STATE,
    Axis,
    Cast,
    Dot,
    Expr,
    Full,
    Load,
    Program,
    Span,
    Sum,
    Tensor,
    Transpose,
    Var,
    Where,
    cdiv,
    column,
    minimum,
    row,
    wrap,
)
from .feature_maps import Sums
from .linear_attention_parts import B, H, Layer, T

FLAGS = ("INITIAL", "SEGMENTED", "FINAL")


def recurrence(layer: Layer) -> Program:
    """o and n of one segment, chunk after chunk."""
    b = Builder()
    normalize, features = layer.spec.normalize, layer.features
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    tiles = ("f", "first", "second", "weight", "S", *(("z",) if normalize else ()))

    def read(name: str, suffix: str, index: tuple[Expr, ...], f: Var) -> None:
        """Load S and z of one block from a stored state."""
        state = b.let(f"S_{suffix}", Load(f"{name}state", (*index, f, u), ACC))
        b.set(Var("S"), state)
        if normalize:
            z = b.let(f"z_{suffix}", Load(f"{name}normalizer", (*index, f), ACC))
            b.set(Var("z"), z)

    with b.blocks("f0", features.rows, features.block, tiles) as f0:
        f = layer.features_at(b, f0)
        selection = features.select(b, f)
        weight = features.fixed_weights(b, f)
        state = b.let("S", Full((features.block, "VALUES"), 0.0))
        if normalize:
            b.let("z", Full((features.block,), 0.0))
        with b.when("INITIAL"):
            read("initial_", "initial", (B, H), f)
        with b.when("SEGMENTED"):
            read("", "before", (B, H, Var("segment")), f)
    length = layer.segment_length(b)
    start = Var("segment") * length
    with b.loop("t0", start, minimum(start + length, T), "CHUNK") as t0:
        t = b.let("t", Span(t0, "CHUNK"))
        sums = Sums(state, Var("z") if normalize else None, layer.rows_past_end(b, t0))
        queries = features.load_scaled(b, "Q", "q", (B, t, H, d))
        _, keys = features.load(b, "K", "k", (B, t, H, d))
        values = b.let("Y", Load("v", (B, t, H, u), OPERAND))
        b.comment("The chunk's own keys, directly.")
        products = b.let("R", Dot(queries, Transpose(keys)))
        attention = b.let("A", Where(column(t) >= row(t), features.kernel(products, wrap(1.0)), wrap(0.0)))
        matrix = b.let("A_operand", Cast(attention, OPERAND))
        out = b.let("O", Dot(matrix, values))
        if normalize:
            b.let("N", Sum(attention, 1))
        b.comment("Older keys, through the state; then the chunk's keys enter it.")
        with b.blocks("f0", features.rows, features.block, tiles):
            seen = features.features(b, "P", queries, selection, weight)
            matrix = b.let("P_operand", Cast(seen, OPERAND))
            earlier = b.let("S_operand", Cast(state, OPERAND))
            b.add(out, Dot(matrix, earlier))
            if normalize:
                part = b.let("Pz", seen * row(Var("z")))
                b.add(Var("N"), Sum(part, 1))
            features.accumulate(b, keys, f, selection, values, sums)
        if normalize:
            b.store("n", (B, t, H), Var("N"))
            b.set(out, out / column(Var("N") + layer.spec.eps))
        b.store("o", (B, t, H, u), Cast(out, IO))
    with b.when("FINAL"), b.blocks("f0", features.rows, features.block, tiles):
        b.store("final_state", (B, H, f, u), Cast(state, STATE))
        if normalize:
            b.store("final_normalizer", (B, H, f), Cast(Var("z"), STATE))
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *_states(layer, "initial_", "INITIAL"),
        *layer.segment_states("SEGMENTED"),
        layer.values("o", strided=False),
        *layer.row_sums("n"),
        *_states(layer, "final_", "FINAL"),
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
    )


def _states(layer: Layer, prefix: str, flag: str) -> tuple[Tensor, ...]:
    """A state as the user passes or gets it."""
    rows = layer.features.rows
    state = Tensor(f"{prefix}state", ("B", "H", rows, layer.v), STATE, optional=flag)
    normalizer = Tensor(f"{prefix}normalizer", ("B", "H", rows), STATE, optional=flag)
    return (state, normalizer) if layer.spec.normalize else (state,)
