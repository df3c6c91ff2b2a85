"""Scales that are tensors, one number a head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.variant import Variant

NAMES = ("taylor2_qk16_v64", "taylor2_decay_qk16_v64", "identity_qk64_v64", "retention_qk64_v64")
OTHERS = ("window16_d64", "hybrid_taylor2_qk16_v64_w64")
F64 = torch.float64
B, T, H = 2, 37, 3


@pytest.fixture(params=(*NAMES, *OTHERS))
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


def given(op: Variant, heads: int = H) -> list[Tensor]:
    """q, k and v, and g of a layer that fades."""
    torch.manual_seed(0)
    found = [torch.randn(B, T, heads, width, dtype=F64) * 0.5 for width in (op.qk, op.qk, op.v)]
    shape = {"head": (heads,), "token": (B, T, heads)}.get(getattr(op.spec, "decay", "none"))
    return found if shape is None else [*found, -torch.rand(shape, dtype=F64)]


def of_head(tensors: list[Tensor], h: int) -> list[Tensor]:
    return [x[:, :, h : h + 1] if x.dim() > 1 else x[h : h + 1] for x in tensors]


def test_every_head_has_its_own(op: Variant) -> None:
    scale, inputs = torch.tensor([0.1, 0.5, 2.0], dtype=F64), given(op)
    o, final = op(*inputs, scale=scale, output_final_state=True)
    assert_close(op.reference(*inputs, scale=scale), o)
    state = op.init_state(B, H, dtype=F64)
    tokens = [x[:, :4] if x.dim() > 1 else x for x in inputs]
    y = op.step(*tokens[:3], state, *tokens[3:], scale=scale)
    for h in range(H):
        alone, end = op(*of_head(inputs, h), scale=float(scale[h]), output_final_state=True)
        assert_close(o[:, :, h : h + 1], alone)
        assert_close(y[:, :, h : h + 1], alone[:, :4])
        for got, want in zip(final, end, strict=True):
            if got is not None and got.dim() > 1:
                assert_close(got[:, h : h + 1], want)


def test_gradients(op: Variant) -> None:
    inputs = [x.requires_grad_() for x in given(op)]
    scale = torch.tensor([0.1, 0.5, 2.0], dtype=F64, requires_grad=True)
    weights = torch.randn(B, T, H, op.v, dtype=F64)
    found, wanted = (
        torch.autograd.grad((run(*inputs, scale=scale) * weights).sum(), [*inputs, scale])
        for run in (lambda *x, scale: op(*x, scale=scale)[0], op.reference)
    )
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want)

    def loss(scale: Tensor) -> Tensor:
        return (op(*inputs, scale=scale)[0] * weights).sum()

    step = 1e-6 * torch.eye(H, dtype=F64)
    slopes = [(loss(scale + d) - loss(scale - d)) / 2e-6 for d in step]
    assert_close(found[-1], torch.stack(slopes).detach(), rtol=1e-5, atol=1e-6)


def test_in_groups() -> None:
    q, _, _ = given(op := based_ops.get("taylor2_qk16_v64"), 4)
    _, k, v = given(op, 2)
    scale = torch.rand(4, dtype=F64)
    whole = op(q, *(x.repeat_interleave(2, 2) for x in (k, v)), scale=scale)[0]
    assert_close(op(q, k, v, scale=scale)[0], whole)


def test_under_the_compiler() -> None:
    op = based_ops.get("taylor2_qk16_v64")
    inputs, scale = given(op), torch.rand(H, dtype=F64)
    compiled = torch.compile(lambda *x: op(*x[:-1], scale=x[-1])[0], fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs, scale), op(*inputs, scale=scale)[0])


@pytest.mark.parametrize(
    ("scale", "error"),
    [
        (torch.ones(2), errors.ShapeError),
        (torch.ones(H, 1), errors.ShapeError),
        (torch.ones(H, dtype=torch.int64), errors.DtypeError),
        (torch.ones(H, device="meta"), errors.DeviceError),
    ],
    ids=str,
)
def test_wrong_scales(scale: Tensor, error: type[Exception]) -> None:
    op = based_ops.get("taylor2_qk16_v64")
    with pytest.raises(error, match="^scale: got "):
        op(*given(op), scale=scale)


def test_a_normaliser_has_the_scale_too() -> None:
    op = based_ops.get("pos_elu_qk64_v64")
    with pytest.raises(errors.ArgumentValueError, match="^scale: got a tensor, must be a Python float"):
        op(*given(op), scale=torch.ones(H, dtype=F64))
