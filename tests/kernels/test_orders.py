"""Recurrences for Hopper's warpgroups in every order that a schedule may choose, run as Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen import pipeline
from based_ops.codegen.names import RECURRENCE, on_warpgroups
from based_ops.codegen.schedule import orders
from based_ops.codegen.spec.model import LinearAttention
from tests.kernels.test_warpgroups import LAYERS, WIDE, Call
from tests.layers import build
from tests.tolerance import FORWARD, assert_close


@pytest.mark.parametrize("spec", LAYERS + WIDE, ids=lambda spec: spec.name)
@given(st.data())
def test_every_order_computes_the_same(spec: LinearAttention, data: st.DataObject) -> None:
    kernels = pipeline.kernels(pipeline.lower(spec), "triton")
    program = next(kernel for kernel in kernels if kernel.name == on_warpgroups(RECURRENCE))
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
