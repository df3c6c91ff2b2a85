"""What only hybrids take: factors of heads, and queries and keys of the window; and their layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.layers import HybridAttention
from based_ops.variant import Variant

SPEC = """name: {name}
mixer: hybrid
window: 5
feature_map: {{kind: taylor_exp, order: 2}}
head_dims: {{qk: 8, v: 16}}
window_dims: {{qk: 12}}
{forms}
window_factor: true
linear_factor: true
dtypes: [float32]
"""
BATCH, LENGTH, HEADS = 2, 13, 3


FORMS = {"shared": "combine: normalizer", "added": "combine: sum", "windowed": "rescale: window"}


@pytest.fixture(scope="module", params=list(FORMS))
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    path: Path = tmp_path_factory.mktemp("specs") / f"full_{request.param}.yaml"
    path.write_text(SPEC.format(name=path.stem, forms=FORMS[request.param]), encoding="utf-8")
    return based_ops.load(path)


def inputs(heads: tuple[int, int, int] = (HEADS, HEADS, HEADS)) -> dict[str, Tensor]:
    """Of so many heads of q, k and v; the window's own have as many."""
    torch.manual_seed(0)
    widths = {"q": 8, "k": 8, "v": 16, "q_window": 12, "k_window": 12}
    counts = dict(zip(widths, (*heads, *heads[:2]), strict=True))
    rows = {
        name: torch.randn(BATCH, LENGTH, counts[name], n, dtype=torch.float64) for name, n in widths.items()
    }
    factors = {name: torch.rand(max(heads), dtype=torch.float64) + 0.5 for name in FACTORS}
    return {name: x.requires_grad_() for name, x in (rows | factors).items()}


FACTORS = ("window_factor", "linear_factor")
GROUPS = {(6, 2, 2): 2, (1, 1, 4): 4, (6, 2, 3): 6, (2, 4, 1): 4}
"""Heads of q, k and v, and of the state."""


def cut(tensors: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: x if name in FACTORS else x[:, start:stop] for name, x in tensors.items()}


@pytest.mark.parametrize("without", [(), ("window_factor",), FACTORS])
def test_calls_equal_the_reference(hybrid: Variant, without: tuple[str, ...]) -> None:
    given = {name: x for name, x in inputs().items() if name not in without}
    o, state = hybrid(**given, output_final_state=True)
    want, end = hybrid.reference(**given, output_final_state=True)
    assert_close(o, want)
    for x, y in zip(state, end, strict=True):
        assert_close(x, y)
    leaves = list(given.values())
    weights = torch.randn_like(o)
    found, wanted = (torch.autograd.grad((x * weights).sum(), leaves) for x in (o, want))
    assert_close(found, wanted)


@pytest.mark.parametrize("heads", list(GROUPS), ids=str)
def test_heads_in_groups(hybrid: Variant, heads: tuple[int, int, int]) -> None:
    given = inputs(heads)
    o, state = hybrid(**given, output_final_state=True)
    want, end = hybrid.reference(**given, output_final_state=True)
    assert_close(o, want)
    leaves, weights = list(given.values()), torch.randn_like(o)
    losses = ((x * weights).sum() + y.state.sin().sum() for x, y in ((o, state), (want, end)))
    found, wanted = (torch.autograd.grad(loss, leaves) for loss in losses)
    assert_close(found, wanted)
    for x, y in zip(state, end, strict=True):
        assert x.shape[1] == GROUPS[heads]
        assert_close(x, y)
    repeated = {
        name: x if name in FACTORS else x.repeat_interleave(max(heads) // x.shape[2], 2)
        for name, x in given.items()
    }
    assert_close(hybrid(**repeated)[0], o)


@pytest.mark.parametrize("heads", [(HEADS, HEADS, HEADS), (6, 2, 3)], ids=str)
@pytest.mark.parametrize("begun", [False, True])
def test_packed_sequences_are_calls_of_their_own(
    hybrid: Variant, heads: tuple[int, int, int], begun: bool
) -> None:
    """Empty ones, one token, fewer than a window has, and more; tokens of nobody behind them."""
    edges = [0, 5, 5, 6, 17, 17, 24]
    given = {
        name: x if name in FACTORS else x.flatten(0, 1)[None].detach().requires_grad_()
        for name, x in inputs(heads).items()
    }
    before = None
    if begun:
        with torch.no_grad():
            earlier = [hybrid(**cut(given, 0, n), output_final_state=True)[1] for n in (3, 0, 9, 5, 12, 1)]
        before = type(earlier[0])(*(torch.cat(parts) for parts in zip(*earlier, strict=True)))
    offsets = torch.tensor(edges, dtype=torch.int32)
    o, state = hybrid(**given, cu_seqlens=offsets, initial_state=before, output_final_state=True)
    pieces, ends = [], []
    for n, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        first = None if before is None else type(before)(*(x[n : n + 1] for x in before))
        piece, end = hybrid(**cut(given, start, stop), initial_state=first, output_final_state=True)
        pieces.append(piece)
        ends.append(end)
    want = torch.cat([*pieces, torch.zeros_like(o[:, 24:])], 1)
    assert_close(o, want)
    together = [torch.cat(parts) for parts in zip(*ends, strict=True)]
    for name, x, y in zip(state._fields, state, together, strict=True):
        assert_close(x, y, msg=name)
    weights, leaves = torch.randn_like(o), list(given.values())
    losses = ((x * weights).sum() + y.sin().sum() for x, y in ((o, state.state), (want, together[3])))
    found, wanted = (torch.autograd.grad(loss, leaves) for loss in losses)
    assert_close(found, wanted)


def test_a_mask_is_sequences_without_their_padding(hybrid: Variant) -> None:
    given = inputs()
    places = torch.arange(LENGTH)
    mask = torch.stack([places >= 4, places < 7])
    spoilt = {
        name: x if name in FACTORS else x.masked_fill(~mask[..., None, None], float("nan"))
        for name, x in given.items()
    }
    o, state = hybrid(**spoilt, attention_mask=mask, output_final_state=True)
    for row, (start, stop) in enumerate(((4, LENGTH), (0, 7))):
        own = {name: x if name in FACTORS else x[row : row + 1] for name, x in given.items()}
        want, end = hybrid(**cut(own, start, stop), output_final_state=True)
        assert_close(o[row : row + 1, start:stop], want)
        assert not o[row, :start].any() and not o[row, stop:].any()
        for x, y in zip(state, end, strict=True):
            assert_close(x[row : row + 1], y)


@pytest.mark.parametrize("heads", [(HEADS, HEADS, HEADS), *GROUPS], ids=str)
def test_pieces_and_steps_are_the_whole(hybrid: Variant, heads: tuple[int, int, int]) -> None:
    given = {name: x.detach() for name, x in inputs(heads).items()}
    want, end = hybrid(**given, output_final_state=True)
    first, state = hybrid(**cut(given, 0, 6), output_final_state=True)
    second, state = hybrid(**cut(given, 6, 8), initial_state=state, output_final_state=True)
    steps = [hybrid.step(**cut(given, t, t + 1), state=state) for t in range(8, LENGTH)]
    assert_close(torch.cat([first, second, *steps], 1), want)
    for name, x, y in zip(state._fields, state, end, strict=True):
        assert_close(x, y, msg=name)
    of_state = GROUPS.get(heads, HEADS)
    start = hybrid.init_state(BATCH, of_state, dtype=torch.float64)
    assert_close(hybrid.step(**given, state=start), want)
    assert start.nbytes == hybrid.state_bytes(BATCH, of_state, dtype=torch.float64)


def test_a_layer_that_lacks_them_says_so() -> None:
    op = based_ops.get("hybrid_taylor2_qk16_v64_w64")
    q, v = torch.randn(1, 4, 2, 16), torch.randn(1, 4, 2, 64)
    for name in (*FACTORS, "q_window", "k_window"):
        with pytest.raises(errors.ArgumentTypeError, match=f"^{name}: got a tensor, must be None"):
            op(q, q, v, **{name: torch.ones(2)})


def test_what_is_wrong_with_them(hybrid: Variant) -> None:
    given = {name: x.detach() for name, x in inputs().items()}

    def called(**other: Any) -> None:
        hybrid(**{**given, **other})

    for wrong, error, message in (
        ({"window_factor": torch.ones(2)}, errors.ShapeError, "^window_factor: .* one number a head"),
        ({"linear_factor": 2.0}, errors.ArgumentTypeError, "^linear_factor: got float"),
        ({"q_window": None}, errors.ArgumentTypeError, "^q_window: got NoneType"),
        ({"k_window": given["k"]}, errors.ShapeError, r"^k_window: .* of shape \[2, 13, 3, 12\]"),
        ({"k_window": given["k_window"].float()}, errors.DtypeError, "^k_window: "),
    ):
        with pytest.raises(error, match=message):
            called(**wrong)
    below = {"linear_factor": torch.tensor([1.0, -1.0, 1.0])}
    if hybrid.spec.combine == "sum":
        called(**below)
    else:
        with pytest.raises(
            errors.ArgumentValueError, match="^linear_factor: got a number below, -1, must be"
        ):
            called(**below)


@pytest.mark.parametrize("kv_heads", [HEADS, 1])
def test_the_layer_learns_them(hybrid: Variant, kv_heads: int) -> None:
    layer = HybridAttention(32, HEADS, hybrid, dtype=torch.float64, kv_heads=kv_heads)
    x = torch.randn(BATCH, LENGTH, 32, dtype=torch.float64)
    layer(x)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    with torch.no_grad():
        want, _ = layer(x)
        _, state = layer(x[:, :7], output_state=True)
        steps = torch.cat([layer.step(x[:, t : t + 1], state) for t in range(7, LENGTH)], 1)
    assert_close(steps, want[:, 7:])


@pytest.fixture(scope="module")
def lolcats(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    path = tmp_path_factory.mktemp("specs") / "lolcats.yaml"
    spec = SPEC.format(name="lolcats", forms="rescale: window\neps: 0")
    path.write_text(spec.replace("kind: taylor_exp, order: 2", "kind: elementwise, expression: exp(x)"))
    return based_ops.load(path)


def quadratic(given: dict[str, Tensor]) -> Tensor:
    """LoLCATs' hybrid in the terms of its paper (arXiv 2410.10254), over all pairs of tokens at once."""
    tokens = torch.arange(LENGTH)
    older = tokens[:, None] - tokens >= 5
    scores = torch.einsum("bihd,bjhd->bhij", given["q_window"], given["k_window"]) * 12**-0.5
    scores = scores.masked_fill(older | (tokens > tokens[:, None]), float("-inf"))
    near = given["window_factor"][:, None, None] * (scores - scores.amax(-1, keepdim=True)).exp()
    far = torch.einsum("bihd,bjhd->bhij", given["q"].exp(), given["k"].exp()) * older
    far = given["linear_factor"][:, None, None] * far
    o = torch.einsum("bhij,bjhd->bihd", near + far, given["v"])
    return o / (near + far).sum(-1).mT.unsqueeze(-1)


def test_lolcats_with_its_gradients(lolcats: Variant) -> None:
    """The highest score does not cancel, so it has a gradient too."""
    given = inputs()
    want, leaves = quadratic(given), list(given.values())
    weights = torch.randn_like(want)
    wanted = torch.autograd.grad((want * weights).sum(), leaves)
    for o in (lolcats(**given, scale=1.0)[0], lolcats.reference(**given, scale=1.0)):
        assert_close(o, want)
        assert_close(torch.autograd.grad((o * weights).sum(), leaves), wanted)


def test_no_factor_at_all_leaves_the_other_part(hybrid: Variant) -> None:
    """A factor of 0 takes its part away; what is left is a mean of its own values."""
    given = {name: x.detach() for name, x in inputs().items()}
    window = given["window_factor"] * 0
    o, _ = hybrid(**{**given, "window_factor": window, "v": torch.ones_like(given["v"])})
    factor = given["linear_factor"] if hybrid.spec.combine == "sum" else torch.ones(HEADS, dtype=o.dtype)
    assert_close(o[:, 5:], factor[:, None].expand_as(o[:, 5:]), rtol=1e-5, atol=0)  # all but what eps takes
