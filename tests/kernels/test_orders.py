"""Recurrences for Hopper's warpgroups in every order that a schedule may choose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen import pipeline
from based_ops.codegen.ir.kernels import ForeignKernel
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.names import RECURRENCE
from based_ops.codegen.schedule import orders
from tests.kernels import inputs, linear
from tests.kernels.test_warpgroups import LAYERS, MAPS, WIDE
from tests.kernels.warpgroups import Call
from tests.layers import FORMS, build
from tests.tolerance import FORWARD, assert_close, assert_same


def recurrence(spec: LinearAttention) -> ForeignKernel:
    kernels = pipeline.kernels(pipeline.lower(spec), "triton")
    return next(k for k in kernels if isinstance(k, ForeignKernel) and k.instead_of == RECURRENCE)


@pytest.mark.parametrize("spec", LAYERS + WIDE + MAPS[:1], ids=lambda spec: spec.name)
@given(st.data())
def test_every_order_computes_the_same(spec: LinearAttention, data: st.DataObject) -> None:
    """As Python, which also says where a product is read or its tile written too early."""
    program = recurrence(spec)
    options = {piece: st.sampled_from(places) for piece, places in orders.pieces(program).items()}
    order = orders.names(program, data.draw(st.fixed_dictionaries(options), "order"))
    dtype = data.draw(st.sampled_from((torch.bfloat16, torch.float16)), "dtype")
    segments = data.draw(st.sampled_from((1, 2)), "segments")

    call = Call(spec, dtype, data.draw(st.sampled_from((1, 65, 300)), "length"))
    module = build(spec, "triton", rewrites=("gather_by_product", *order))
    before = call.states_before(segments) if segments > 1 else ()
    found, state, _ = call.launch(segments, (), before, segments == 1, module)
    o, final = call.expected(None)
    assert_close("o", found, o, FORWARD[dtype])
    if segments == 1:
        tolerance = max(FORWARD[dtype], FORWARD[call.kept], key=lambda t: t.norm)
        assert_close("final state", state, final.state, tolerance)


CASES = [
    pytest.param(spec, name, id=f"{spec.name}-{name}")
    for spec in (LAYERS[0], LAYERS[2], *WIDE[:2], MAPS[0])
    for name in orders.known(recurrence(spec))
]


@pytest.mark.gpu
@pytest.mark.parametrize(("spec", "name"), CASES)
def test_every_order_gives_the_same_bits(spec: LinearAttention, name: str) -> None:
    """On a device, again and again."""
    call = inputs.Call(2, 3, 777, torch.bfloat16, "cuda", "heads_first", 1, 0.25)
    found = []
    for rewrites in (None, ("gather_by_product", name)):
        layer = linear.Layer(spec, build(spec, "triton", FORMS["recurrent"], rewrites), call)
        found += [layer.forward(*layer.qkv(), layer.earlier()) for _ in range(5)]
    for other in found[1:]:
        for what, once, again in zip(linear.Forward._fields, found[0], other, strict=True):
            assert_same(what, again, once)
