"""The gradient programs of linear attention; `linear_attention` says what they compute."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    IO,
    OPERAND,
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
    column,
    minimum,
    row,
    wrap,
)
from ..ir.traits import GRADIENTS, ROW_SUMS
from .linear_attention_parts import CHUNK_AXIS, ROWS, B, H, Layer, T


def query_gradients(layer: Layer) -> Program:
    """dq of one chunk of queries; and g, and e, what every A_ij of a row owes to the normaliser."""
    b = Builder()
    normalize = layer.spec.normalize
    t = b.let("t", Span(Var("chunk") * "CHUNK", "CHUNK"))
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(wrap(0), "VALUES"))
    length = layer.segment_length(b)
    segment = b.let("segment", Var("chunk") * "CHUNK" // length)
    loaded, queries = layer.features.load(b, "Q", "q", (B, t, H, d))
    if normalize:
        do = b.let("dO", Load("do", (B, t, H, u), ACC))
        n = b.let("N", Load("n", (B, H, t), ACC, fill=1.0))
        products = b.let("products", do * b.let("O", Load("o", (B, t, H, u), ACC)))
        b.let("E", -b.let("total", Sum(products, 1)) / (n + layer.spec.eps))
        b.store("e", (B, H, t), Var("E"))
        gradients = b.let("G", Cast(do / column(n + layer.spec.eps), OPERAND))
        b.store("g", (B, t, H, u), gradients)
    else:
        gradients = layer.gradient_tile(b, t, u)
    dq = b.let("dQ", Full(("CHUNK", "QK"), 0.0))
    with b.when("STATEFUL"):
        b.comment("Earlier segments, through their state.")
        with layer.feature_loop(b) as f0:
            f = layer.features_at(b, f0)
            selection = layer.features.select(b, f)
            weight = layer.features.weights(b, f)
            state = b.let("S", Load("state", (B, H, segment, f, u), OPERAND))
            by_feature = b.let("dP", Dot(gradients, Transpose(state)))
            if normalize:
                z = b.let("z", Load("normalizer", (B, H, segment, f), ACC))
                b.add(by_feature, column(Var("E")) * row(z))
            b.set(by_feature, by_feature * row(weight))
            layer.features.adjoint(b, by_feature, queries, selection, into=dq)
    b.comment("This segment, directly.")
    end = minimum(Var("chunk") * "CHUNK" + "CHUNK", T)
    with b.loop("j0", segment * length, end, "KEYS") as j0:
        j = b.let("j", Span(j0, "KEYS"))
        _, keys = layer.features.load(b, "K", "k", (B, j, H, d))
        values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
        products = b.let("R", Dot(queries, Transpose(keys)))
        slope = layer.features.slope(products)
        by_kernel = b.let("dA", Dot(gradients, Transpose(values)))
        if normalize:
            b.add(by_kernel, column(Var("E")))
        by_product = b.let("dR", Cast(Where(column(t) >= row(j), by_kernel * slope, wrap(0.0)), OPERAND))
        b.add(dq, Dot(by_product, keys))
    b.store("dq", (B, t, H, d), Cast(layer.features.leave(loaded, dq), IO))
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.values("do"),
        *((layer.values("o", strided=False), layer.gradients()) if normalize else ()),
        *layer.row_sums("n", "e"),
        *layer.segment_states("STATEFUL"),
        Tensor("dq", (*ROWS, layer.qk), IO),
    )
    return layer.program(
        "query_gradients",
        "The gradient of one chunk of queries.",
        (CHUNK_AXIS,),
        tensors,
        b,
        ("SEGMENT", "CHUNK", "KEYS"),
        whole_values=True,
        flags=("STATEFUL",),
        does=(GRADIENTS, ROW_SUMS),
    )


def key_gradients(layer: Layer) -> Program:
    """dk and dv of one chunk of keys."""
    b = Builder()
    normalize = layer.spec.normalize
    j = b.let("j", Span(Var("chunk") * "CHUNK", "CHUNK"))
    d = b.let("d", Span(wrap(0), "QK"))
    u = b.let("u", Span(wrap(0), "VALUES"))
    length = layer.segment_length(b)
    segment = b.let("segment", Var("chunk") * "CHUNK" // length)
    loaded, keys = layer.features.load(b, "K", "k", (B, j, H, d))
    values = b.let("Y", Load("v", (B, j, H, u), OPERAND))
    dk = b.let("dK", Full(("CHUNK", "QK"), 0.0))
    dv = b.let("dV", Full(("CHUNK", "VALUES"), 0.0))
    with b.when("STATEFUL"):
        b.comment("Later segments, through the mirrored state of their queries.")
        with layer.feature_loop(b) as f0:
            f = layer.features_at(b, f0)
            selection = layer.features.select(b, f)
            features = layer.features.features(b, "P", keys, selection)
            matrix = b.let("P_operand", Cast(features, OPERAND))
            state = b.let("S", Load("state", (B, H, segment, f, u), OPERAND))
            b.add(dv, Dot(matrix, state))
            by_feature = b.let("dP", Dot(values, Transpose(state)))
            if normalize:
                z = b.let("z", Load("normalizer", (B, H, segment, f), ACC))
                b.add(by_feature, row(z))
            layer.features.adjoint(b, by_feature, keys, selection, into=dk)
    b.comment("This segment, directly.")
    end = minimum(segment * length + length, T)
    start = Var("chunk") * "CHUNK" // "QUERIES" * "QUERIES"
    with b.loop("t0", start, end, "QUERIES") as t0:
        t = b.let("t", Span(t0, "QUERIES"))
        _, queries = layer.features.load(b, "Q", "q", (B, t, H, d))
        gradients = layer.gradient_tile(b, t, u)
        products = b.let("R", Dot(keys, Transpose(queries)))
        seen = column(j) <= row(t)
        attention = b.let("A", Cast(Where(seen, layer.features.kernel(products), wrap(0.0)), OPERAND))
        b.add(dv, Dot(attention, gradients))
        by_kernel = b.let("dA", Dot(values, Transpose(gradients)))
        if normalize:
            e = b.let("E", Load("e", (B, H, t), ACC))
            b.add(by_kernel, row(e))
        by_product = b.let(
            "dR", Cast(Where(seen, by_kernel * layer.features.slope(products), wrap(0.0)), OPERAND)
        )
        b.add(dk, Dot(by_product, queries))
    b.store("dk", (B, j, H, d), Cast(layer.features.leave(loaded, dk), IO))
    b.store("dv", (B, j, H, u), Cast(dv, IO))
    tensors = (
        layer.queries("q"),
        layer.queries("k"),
        layer.values("v"),
        layer.gradients(),
        *layer.row_sums("e"),
        *layer.segment_states("STATEFUL"),
        Tensor("dk", (*ROWS, layer.qk), IO),
        layer.values("dv", strided=False),
    )
    return layer.program(
        "key_gradients",
        "The gradients of one chunk of keys and values.",
        (CHUNK_AXIS,),
        tensors,
        b,
        ("SEGMENT", "CHUNK", "QUERIES"),
        whole_values=True,
        flags=("STATEFUL",),
        does=(GRADIENTS,),
    )
