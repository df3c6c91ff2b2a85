"""Sums of segments for Hopper's warpgroups, printed from their tile program, as Python: see `gluon.py`."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.names import on_warpgroups
from based_ops.codegen.spec.model import HeadDims, TaylorExp
from based_ops.support.host import cdiv
from tests.kernels.gluon import run
from tests.kernels.warpgroups import SCALE, B, H
from tests.layers import build
from tests.tolerance import FORWARD, assert_close

SEGMENT = 128


def features(x: Tensor) -> Tensor:
    """Φ(x) in the order of the state, without weights."""
    d = x.shape[-1]
    f = torch.arange((d + 1) * (d + 2) // 2)
    pairs = d * (d + 1) // 2
    first = torch.where(f < pairs, f % d, f - pairs)
    second = torch.where(f < pairs, (f % d + f // d) % d, d)
    with_one = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    return with_one[..., first] * with_one[..., second]


def expected(
    x: Tensor, y: Tensor, e: Tensor, weight: Tensor, ends: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Σ Φ(x) yᵀ and Σ e Φ(x) of segments."""
    phi = features(x.double()) * weight
    sums = [torch.einsum("bthf,bthv->bhfv", phi[:, a:c], y[:, a:c].double()) for a, c in ends]
    numbers = [torch.einsum("bthf,bht->bhf", phi[:, a:c], e[:, :, a:c].double()) for a, c in ends]
    return torch.stack(sums, 2), torch.stack(numbers, 2)


@given(
    st.sampled_from((8, 16)),
    st.sampled_from((8, 40, 64, 72, 128)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1, 63, 64, 200, 333)),
    st.integers(1, 3),
    st.integers(2, 4),
    st.sampled_from((torch.bfloat16, torch.float16)),
)
def test_sums_of_segments(
    d: int,
    v: int,
    normalize: bool,
    of_queries: bool,
    every: bool,
    length: int,
    segments: int,
    stages: int,
    dtype: torch.dtype,
) -> None:
    if of_queries:
        v = min(v, 64)  # gradients sum over all values, that are one tile
    torch.manual_seed(length)
    spec = LinearAttention("sums", TaylorExp(2), HeadDims(d, v), normalize=normalize)
    module, name = build(spec, "triton"), on_warpgroups("query_states" if of_queries else "states")
    x, y = torch.randn(B, length, H, d).to(dtype), torch.randn(B, length, H, v).to(dtype)
    e = torch.randn(B, H, length) if of_queries else torch.ones(B, H, length)
    if of_queries and normalize:
        y = y.bfloat16()
    rows = (d + 1) * (d + 2) // 2
    sums = torch.full((B, H, segments, rows, v), float("nan"))
    numbers = torch.full(sums.shape[:-1], float("nan"))

    kernel, settings = getattr(module, name), dict(module.SCHEDULE[name][dtype]) | {"STAGES": stages}
    given_tensors = {
        "q": x,
        "k": x,
        "v": y,
        "do": y,
        "g": y,
        "e": e,
        "sums": sums,
        "normalizer_sums": numbers,
        "segment_tokens": None,
    }
    names = kernel.arg_names[: next(i for i, arg in enumerate(kernel.arg_names) if arg.endswith("_b"))]
    strides = [s for arg in names if f"{arg}_b" in kernel.arg_names for s in given_tensors[arg].stride()[:-1]]
    scale, heads = ([SCALE], [H]) if of_queries else ([], [H, H])
    ragged = grouped = False
    constants = [value for key, value in settings.items() if key != "num_warps"]
    launched = [given_tensors[arg] for arg in names]
    run(
        kernel,
        B * H * segments * cdiv(v, 64),
        launched,
        *strides,
        B,
        length,
        H,
        segments,
        *scale,
        *heads,
        every,
        ragged,
        grouped,
        *constants,
    )

    tokens = cdiv(cdiv(length, SEGMENT), segments) * SEGMENT
    ends = [(min(s * tokens, length), min((s + 1) * tokens, length)) for s in range(segments)]
    if not every:  # the segment from which no other starts
        idle = 0 if of_queries else segments - 1
        ends[idle] = (ends[idle][0],) * 2
    weight = torch.where(torch.arange(rows) < d, 0.5 if of_queries else 1.0, 1.0).double()
    wanted = expected(x.float() * SCALE if of_queries else x, y, e, weight, ends)
    assert_close("sums", sums, wanted[0], FORWARD[dtype])
    if normalize:
        assert_close("normalizer sums", numbers, wanted[1], FORWARD[dtype])
