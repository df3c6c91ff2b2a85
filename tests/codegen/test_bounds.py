"""Whether index tiles stay inside a tensor: those of something wider than it do not."""

from __future__ import annotations

import pytest

from based_ops.codegen import pipeline
from based_ops.codegen.emit.bounds import Bounds
from based_ops.codegen.emit.layer import ScheduledProgram
from based_ops.codegen.ir.nodes import Var
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.spec.model import HeadDims, TaylorExp
from tests.layers import resized


@pytest.mark.parametrize("qk", [16, 32, 64])
def test_one_row_more_than_components(qk: int) -> None:
    """Features of the first order are the components and a 1: their last tile begins where keys end."""
    spec = LinearAttention("first", TaylorExp(1), HeadDims(qk, 64), normalize=False)
    (token,) = (x for x in pipeline.lower(spec).programs if x.name == "token")
    chosen = resized(choose(spec, token, "triton"), {"FEATURES": qk})
    scheduled = ScheduledProgram.of(token, chosen)
    bounds = Bounds(scheduled.program, scheduled.schedule)
    assert not bounds.inside(Var("f"), qk)
    assert not bounds.inside(Var("f"), qk + 1)
    assert bounds.inside(Var("f"), 2 * qk)
    assert bounds.inside(Var("u"), 64)
