"""DeltaNet's block and Based's with a delta rule, against their definitions, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, normalize, silu, softplus
from torch.testing import assert_close

from based_ops import errors
from based_ops.layers import BasedDelta, DeltaNet

WIDTH, TOKENS, HEADS = 48, 21, 2


@pytest.fixture(params=["gated", "plain", "twice as fast"])
def mixer(request: pytest.FixtureRequest) -> DeltaNet:
    torch.manual_seed(0)
    name = "delta_qk64_v64" if request.param == "plain" else "gated_delta_qk64_v64"
    fast = request.param == "twice as fast"
    return DeltaNet(WIDTH, HEADS, name, gate=not fast, negative_eigenvalues=fast, dtype=torch.float64)


def naive(mixer: DeltaNet, x: Tensor) -> Tensor:
    """S_t = α_t S_{t-1} (I - β_t k_t k_tᵀ) + β_t v_t k_tᵀ, o_t = S_t q_t (arXiv 2412.06464, (10))."""
    mixed = mixer.qkv_proj(x)
    weight = mixer.conv.weight.unsqueeze(1)
    padded = conv1d(mixed.mT, weight, mixer.conv.bias, padding=weight.shape[-1] - 1, groups=weight.shape[0])
    q, k, v = silu(padded[..., : x.shape[1]].mT).unflatten(-1, (3 * HEADS, 64)).split(HEADS, 2)
    q, k = normalize(q, dim=-1), normalize(k, dim=-1)
    beta = mixer.most * mixer.b_proj(x).sigmoid()
    left = torch.ones_like(beta)
    if mixer.fades:
        left = (-mixer.A_log.exp() * softplus(mixer.a_proj(x) + mixer.dt_bias)).exp()
    state = x.new_zeros(x.shape[0], HEADS, 64, 64)
    outputs = []
    for t in range(x.shape[1]):
        rate, key = beta[:, t, :, None, None], k[:, t].unsqueeze(-1)
        turn = torch.eye(64, dtype=x.dtype) - rate * key @ key.mT
        state = left[:, t, :, None, None] * state @ turn + rate * v[:, t].unsqueeze(-1) @ key.mT
        outputs.append((state @ q[:, t].unsqueeze(-1)).squeeze(-1))
    o = torch.stack(outputs, 1)
    y = (o * torch.rsqrt(o.square().mean(-1, keepdim=True) + mixer.norm.eps) * mixer.norm.weight).flatten(-2)
    return mixer.o_proj(y if mixer.g_proj is None else y * silu(mixer.g_proj(x)))


def test_the_block_is_its_definition(mixer: DeltaNet) -> None:
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    y, state = mixer(x)
    assert state is None
    wanted = naive(mixer, x)
    assert_close(y, wanted)
    dy = torch.randn_like(y)
    leaves = [x, *mixer.parameters()]
    found, exact = (torch.autograd.grad(out, leaves, dy) for out in (y, wanted))
    for one, other in zip(found, exact, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("based", [False, True], ids=["DeltaNet", "BasedDelta"])
def test_pieces_steps_and_padding(based: bool) -> None:
    torch.manual_seed(0)
    made = BasedDelta(WIDTH, HEADS, kv_heads=1) if based else DeltaNet(WIDTH, HEADS)
    layer = made.double()
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        whole, final = layer(x, output_state=True)
        first, state = layer(x[:, :8], output_state=True)
        rest = [layer.step(x[:, t : t + 3], state) for t in range(8, TOKENS, 3)]
        assert_close(torch.cat([first, *rest], 1)[:, :TOKENS], whole)
        mask = torch.ones(2, TOKENS, dtype=torch.bool)
        mask[0, :5] = False
        padded, _ = layer(x, attention_mask=mask)
        assert_close(padded[0, 5:], layer(x[:1, 5:])[0][0])
        begun = layer.init_state(2)
        outputs = [layer.step(x[:, t : t + 1], begun) for t in range(TOKENS)]
        assert_close(torch.cat(outputs, 1), whole)
    sizes = [y for part in (final if not based else (final,)) for y in part if y is not None]
    assert layer.state_bytes(2) == sum(y.nbytes for y in sizes)


def test_rates_are_based_deltas_own() -> None:
    """A rate of 0 leaves nothing to read."""
    layer = BasedDelta(WIDTH, HEADS, dtype=torch.float64)
    layer.b_proj.weight.data.zero_()
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    q, k, v = layer._project(x)
    half = layer.op.reference(q, k, v, beta=torch.full((1, TOKENS, HEADS), 0.5, dtype=torch.float64))
    assert_close(layer(x)[0], layer.o_proj(half.flatten(-2)))


def test_other_variants_are_refused() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="^variant: got taylor2_qk16_v64, .*update: delta"):
        DeltaNet(WIDTH, HEADS, "taylor2_qk16_v64")
    with pytest.raises(errors.ArgumentTypeError, match="^variant: got identity_qk64_v64, .*update: delta"):
        BasedDelta(WIDTH, HEADS, "identity_qk64_v64")
