"""The block of Mamba-2 against its definition, token by token and as a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, silu, softplus
from torch.testing import assert_close

from based_ops import errors
from based_ops.layers import Mamba2Mixer

WIDTH, TOKENS = 64, 37


@pytest.fixture(params=[1, 2], ids=["one group", "two groups"])
def mixer(request: pytest.FixtureRequest) -> Mamba2Mixer:
    torch.manual_seed(0)
    return Mamba2Mixer(WIDTH, groups=request.param, dtype=torch.float64)


def segment_sums(g: Tensor) -> Tensor:
    """The sum of g over (j, i] for every pair j <= i, -inf for the others: [..., T, T]."""
    sums = g.cumsum(-1)
    pairs = sums.unsqueeze(-1) - sums.unsqueeze(-2)
    return pairs.masked_fill(~torch.ones_like(pairs, dtype=torch.bool).tril(), -torch.inf)


def naive(mixer: Mamba2Mixer, u: Tensor) -> Tensor:
    """The block as arXiv 2405.21060 writes it: y = (L ∘ C Bᵀ) (Δ x) + D x, with one matrix L a head."""
    heads, groups, state = mixer.heads, mixer.groups, mixer.op.qk
    z, mixed, steps = mixer.in_proj(u).split([mixer.inner, mixer.conv.d_model, heads], dim=-1)
    weight = mixer.conv.weight.unsqueeze(1)
    padded = conv1d(mixed.mT, weight, mixer.conv.bias, padding=weight.shape[-1] - 1, groups=weight.shape[0])
    mixed = silu(padded[..., : u.shape[1]].mT)
    x, b, c = mixed.split([mixer.inner, groups * state, groups * state], dim=-1)
    x = x.unflatten(-1, (heads, -1))
    b, c = (y.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, 2) for y in (b, c))
    steps = softplus(steps + mixer.dt_bias)
    lasting = segment_sums((-mixer.A_log.exp() * steps).mT).exp()
    weights = lasting * torch.einsum("bihn,bjhn->bhij", c, b)
    y = torch.einsum("bhij,bjhp->bihp", weights, x * steps.unsqueeze(-1)) + mixer.D.unsqueeze(-1) * x
    gated = y.flatten(-2) * silu(z)
    normal = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + mixer.norm.eps)
    return mixer.out_proj(normal * mixer.norm.weight)


def test_the_block_is_its_definition(mixer: Mamba2Mixer) -> None:
    u = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    y, state = mixer(u)
    assert state is None
    wanted = naive(mixer, u)
    assert_close(y, wanted)
    dy = torch.randn_like(y)
    leaves = [u, *mixer.parameters()]
    found, exact = (torch.autograd.grad(out, leaves, dy) for out in (y, wanted))
    for one, other in zip(found, exact, strict=True):
        assert_close(one, other)


def test_pieces_and_steps_are_the_whole(mixer: Mamba2Mixer) -> None:
    u = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        want, _ = mixer(u)
        head, state = mixer(u[:, :20], output_state=True)
        middle, state = mixer(u[:, 20:30], state, output_state=True)
        assert state is not None
        steps = [mixer.step(u[:, t : t + 1], state) for t in range(30, TOKENS)]
        assert_close(torch.cat([head, middle, *steps], 1), want)
        state = mixer.init_state(2)
        assert_close(torch.cat([mixer.step(u[:, t : t + 1], state) for t in range(TOKENS)], 1), want)
    assert sum(x.nbytes for part in mixer.init_state(3) for x in part if x is not None) == mixer.state_bytes(
        3
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="decay: token"):
        Mamba2Mixer(WIDTH, "identity_qk64_v64")
    with pytest.raises(errors.ArgumentValueError, match="whole heads"):
        Mamba2Mixer(48)
    with pytest.raises(errors.ShapeError, match="u"):
        Mamba2Mixer(WIDTH)(torch.zeros(1, 2, 3))
