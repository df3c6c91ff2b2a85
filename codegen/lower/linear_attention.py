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
    Dithered,
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
from ..ir.traits import TOKEN
from ..mixers.linear_attention import LinearAttention
from .feature_maps import feature_map
from .linear_attention_backward import key_gradients, query_gradients
from .linear_attention_parts import BATCH_AXES, CHUNK_AXIS, ROWS, B, H, Layer, T
from .linear_attention_recurrence import recurrence
from .linear_attention_states import running_states, segment_sums
from .prefix import prefix


def programs(spec: LinearAttention) -> tuple[Program, ...]:
    """Every kernel of the layer, in the order in which they run."""
    layer = Layer(spec, feature_map(spec))
    chunked = (
        segment_sums(layer, "states", of_queries=False),
        prefix(layer, "prefix", reverse=False),
        outputs(layer),
        recurrence(layer),
        running_states(layer, "states_before", of_queries=False),
        query_gradients(layer),
        segment_sums(layer, "query_states", of_queries=True),
        prefix(layer, "suffix", reverse=True),
        running_states(layer, "states_after", of_queries=True),
        key_gradients(layer),
    )
    return (*chunked, step(layer))


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
        b.store("n", (B, H, t), Var("N"))
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
    """One token: update the state in place and read the output from it.

    A narrow state is rounded at random, or it would stand still as soon as a token adds less than half of its
    last digit.  Chance differs from one token to the next because the normaliser, in float32, does; without
    one, because their keys do.
    """
    b = Builder()
    normalize, block, zero = layer.spec.normalize, layer.features.block, wrap(0)
    narrow = layer.spec.state_dtype != "float32"

    def kept(state: Var, keys: Var, f: Var) -> Expr:
        if not narrow:
            return Cast(state, STATE)
        chance = b.let("chance", Sum(normalizer(keys, f) if normalize else keys, 0))
        return Dithered(state, layer.spec.state_dtype, chance, row(values), column(f))

    def normalizer(keys: Var, f: Var) -> Var:
        z = b.let("z", Load("normalizer", (B, H, f), ACC))
        b.add(z, keys)
        return z

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
        b.store("state", (B, H, f, u), kept(state, keys, f))
        query = b.let("weighted_query", plain * weight)
        read = b.let("read", column(query) * state)
        b.add(out, Sum(read, 0))
        if normalize:
            z = Var("z") if narrow else normalizer(keys, f)
            b.store("normalizer", (B, H, f), z)
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
        frozenset({TOKEN}),
    )
