"""Linear attention: chunk programs and a step, for any feature map.

With A_ij = f(scale · u_i·w_j) for j <= i, o_i = Σ_j A_ij v_j / (Σ_j A_ij + eps)  (Based, arXiv 2402.18668).
The sequence is cut into *segments*.  Keys of earlier segments reach a query through the recurrent state S =
Σ_j Φ(w_j) v_jᵀ and its normaliser z = Σ_j Φ(w_j); keys of the query's own segment reach it directly, tile by
tile, as in exact attention.  The one dial, the segment's length, moves a kernel between the purely recurrent
and the purely quadratic form.

Backward, with g_i = do_i / (n_i + eps) and e_i = -(do_i·o_i) / (n_i + eps), where n_i = Σ_j A_ij:

    dA_ij = g_i·v_j + e_i      dv_j = Σ_{i>=j} A_ij g_i

and, across segments, the same through the state of earlier keys (for q) and the mirrored state Σ_i Φ(u_i)
g_iᵀ of later queries (for k and v).
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
from ..spec.model import LinearAttention
from .feature_maps import Sums, feature_map
from .linear_attention_backward import key_gradients, query_gradients
from .linear_attention_parts import BATCH_AXES, CHUNK_AXIS, ROWS, B, H, Layer, T
from .linear_attention_recurrence import recurrence
from .prefix import prefix


def programs(spec: LinearAttention) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = Layer(spec, feature_map(spec))
    chunked = (
        states(layer, "states", of_queries=False),
        prefix(layer, "prefix", reverse=False),
        outputs(layer),
        recurrence(layer),
        query_gradients(layer),
        states(layer, "query_states", of_queries=True),
        prefix(layer, "suffix", reverse=True),
        key_gradients(layer),
    )
    return (*chunked, step(layer))


def states(layer: Layer, name: str, of_queries: bool) -> Program:
    """The state that one segment adds: keys with values, or (mirrored) queries with output gradients."""
    b = Builder()
    normalize = layer.spec.normalize
    f = layer.features_at(b, Var("feature_block") * layer.features.block)
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    d = b.let("d", Span(wrap(0), "QK"))
    selection = layer.features.select(b, f)
    state = b.let("S", Full((layer.features.block, "VALUES"), 0.0))
    z = b.let("z", Full((layer.features.block,), 0.0)) if normalize else None
    length = layer.segment_length(b)
    start = Var("segment") * length
    with b.loop("t0", start, minimum(start + length, T), "CHUNK") as t0:
        t = b.let("t", Span(t0, "CHUNK"))
        _, operand = layer.features.load(b, "X", "q" if of_queries else "k", (B, t, H, d))
        if of_queries:
            values = layer.gradient_tile(b, t, u)
            factors = b.let("E", Load("e", (B, t, H), ACC)) if normalize else None
        else:
            values = b.let("Y", Load("v", (B, t, H, u), OPERAND))
            factors = None
        sums = Sums(state, z, layer.rows_past_end(b, t0), factors)
        layer.features.accumulate(b, operand, f, selection, values, sums)
    if of_queries:
        weight = layer.features.weights(b, f)
        b.set(state, state * column(weight))
        if z is not None:
            b.set(z, z * weight)
    b.store("sums", (B, H, Var("segment"), f, u), state)
    if z is not None:
        b.store("normalizer_sums", (B, H, Var("segment"), f), z)
    inputs = (
        (layer.queries("q"), layer.values("do"), *layer.row_sums("n", "e"))
        if of_queries
        else (layer.queries("k"), layer.values("v"))
    )
    axes = (
        Axis("segment", Var("segments")),
        Axis("feature_block", cdiv(layer.features.rows, layer.features.block)),
        Axis("value_block", cdiv(layer.v, "VALUES")),
    )
    what = "queries and their output gradients" if of_queries else "keys and values"
    return layer.program(
        name,
        f"The sum of outer products of the {what} of each segment.",
        axes,
        (*inputs, *layer.segment_sums()),
        b,
        ("SEGMENT", "CHUNK"),
        whole_values=False,
        scaled=of_queries,
    )


def outputs(layer: Layer) -> Program:
    """o and n of one chunk of queries."""
    b = Builder()
    normalize = layer.spec.normalize
    t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(Var("value_block") * "VALUES", "VALUES"))
    length = layer.segment_length(b)
    segment = b.let("segment", Var("chunk") * "CHUNK" // length)
    _, queries = layer.features.load(b, "Q", "q", (B, t, H, d))
    out = b.let("O", Full(("CHUNK", "VALUES"), 0.0))
    if normalize:
        b.let("N", Full(("CHUNK",), 0.0))
    with b.when("STATEFUL"):
        b.comment("Earlier segments, through their state.")
        with layer.feature_loop(b) as f0:
            f = layer.features_at(b, f0)
            selection = layer.features.select(b, f)
            features = layer.weighted_features(b, "P", queries, f, selection)
            matrix = b.let("P_operand", Cast(features, OPERAND))
            state = b.let("S", Load("state", (B, H, segment, f, u), OPERAND))
            b.add(out, Dot(matrix, state))
            if normalize:
                z = b.let("z", Load("normalizer", (B, H, segment, f), ACC))
                products = b.let("Pz", features * row(z))
                b.add(Var("N"), Sum(products, 1))
    b.comment("This segment, directly.")
    end = minimum(Var("chunk") * "CHUNK" + "CHUNK", T)
    with b.loop("j0", segment * length, end, "KEYS") as j0:
        j = b.let("j", Span(j0, "KEYS"))
        _, keys = layer.features.load(b, "K", "k", (B, j, H, d))
        values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
        products = b.let("R", Dot(queries, Transpose(keys)))
        attention = b.let("A", Where(column(t) >= row(j), layer.features.kernel(products), wrap(0.0)))
        matrix = b.let("A_operand", Cast(attention, OPERAND))
        b.add(out, Dot(matrix, values))
        if normalize:
            b.add(Var("N"), Sum(b.let("A_rounded", Cast(matrix, ACC)), 1))
    if normalize:
        b.store("n", (B, t, H), Var("N"))
        b.set(out, out / column(Var("N") + layer.spec.eps))
    b.store("o", (B, t, H, u), Cast(out, IO))
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        *layer.segment_states("STATEFUL"),
        layer.values("o", strided=False),
        *layer.row_sums("n"),
    )
    axes = (CHUNK_AXIS, Axis("value_block", cdiv(layer.v, "VALUES")))
    return layer.program(
        "outputs",
        "The outputs of one chunk of queries.",
        axes,
        tensors,
        b,
        ("SEGMENT", "CHUNK", "KEYS"),
        whole_values=False,
        flags=("STATEFUL",),
    )


def step(layer: Layer) -> Program:
    """One token: update the state in place and read the output from it."""
    b = Builder()
    normalize, block, zero = layer.spec.normalize, layer.features.block, wrap(0)
    u = b.let("u", Span(zero, "VALUES"))
    values = b.let("y", Load("v", (B, zero, H, u), ACC))
    out = b.let("out", Full(("VALUES",), 0.0))
    if normalize:
        b.let("products", Full((block,), 0.0))
    with layer.feature_loop(b) as f0:
        f = layer.features_at(b, f0)
        selection = layer.features.select(b, f)
        keys = layer.features.row_features(b, "key", "k", (B, zero, H), f, selection)
        weight = layer.features.weights(b, f)
        plain = layer.features.row_features(b, "query", "q", (B, zero, H), f, selection)
        state = b.let("S", Load("state", (B, H, f, u), ACC))
        b.add(state, column(keys) * row(values))
        b.store("state", (B, H, f, u), Cast(state, STATE))
        query = b.let("weighted_query", plain * weight)
        read = b.let("read", column(query) * state)
        b.add(out, Sum(read, 0))
        if normalize:
            z = b.let("z", Load("normalizer", (B, H, f), ACC))
            b.add(z, keys)
            b.store("normalizer", (B, H, f), Cast(z, STATE))
            b.add(Var("products"), query * z)
    if normalize:
        n = b.let("N", Sum(Var("products"), 0))
        b.set(out, out / (n + layer.spec.eps))
    b.store("o", (B, zero, H, u), Cast(out, IO))
    tensors = (
        Tensor("q", (*ROWS, layer.qk), IO, strided=True),
        Tensor("k", (*ROWS, layer.qk), IO, strided=True),
        layer.values("v"),
        *layer.user_states(""),
        layer.values("o", strided=False),
    )
    constants = (block, "VALUES")
    bounds = {"VALUES": layer.v} | ({"QK": layer.qk} if block == "QK" else {})
    return Program(
        "token",
        "One token: the state is updated in place and read.",
        BATCH_AXES,
        tensors,
        ("B", "T", "H"),
        ("scale",),
        (),
        constants,
        b.body,
        bounds,
    )
