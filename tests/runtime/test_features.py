"""Layers with parts: features of queries and keys against the formulas of their papers, and calls of them."""

from __future__ import annotations

import math
import pickle
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops import errors, layers
from based_ops.codegen.errors import SpecWarning
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import dump_yaml
from based_ops.featured import FeaturedVariant
from tests.runtime.conftest import NAMES, WITH_PARTS
from tests.strategies import with_parts
from tests.tolerance import errors as errors_of

F64 = torch.float64
B, T, H = 2, 21, 3
Parameters = dict[str, Tensor]


def variant(name: str) -> FeaturedVariant:
    op = based_ops.get(name)
    assert isinstance(op, FeaturedVariant)
    return op


@pytest.fixture(params=WITH_PARTS)
def op(request: pytest.FixtureRequest) -> FeaturedVariant:
    return variant(request.param)


def inputs(op: FeaturedVariant, length: int = T, heads: int = H, dtype: torch.dtype = F64) -> list[Tensor]:
    torch.manual_seed(length)
    widths = (op.qk, op.qk, op.v)
    return [torch.randn(B, length, heads, width, dtype=F64).to(dtype).requires_grad_() for width in widths]


def parameters(op: FeaturedVariant, heads: int = H, dtype: torch.dtype = F64) -> Parameters:
    """As training begins with them, but for the learned, which have moved."""
    torch.manual_seed(3)
    made = op.init_parameters(heads, dtype=dtype)
    moved = {n: x.detach() + 0.3 * torch.randn_like(x) for n, x in made.items() if x.requires_grad}
    return made | {n: x.requires_grad_() for n, x in moved.items()}


# -- what the papers say: weights of one query and one key of head h, i - j tokens apart --------------------

Weight = Callable[[Tensor, Tensor, Parameters, int, int], Tensor]


def _hedgehog(separate: bool) -> Weight:
    def features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = x @ weight + bias
        if separate:
            return torch.cat([torch.softmax(y, 0), torch.softmax(-y, 0)])
        e = torch.cat([y.exp(), (-y).exp()])
        return e / e.sum()

    def weigh(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
        phi_q = features(q, p["query_weight"][h], p["query_bias"][h])
        return phi_q @ features(k, p["key_weight"][h], p["key_bias"][h])

    return weigh


def _t2r(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
    phi_q = (q @ p["query_weight"][h] + p["query_bias"][h]).clamp(min=0)
    return phi_q @ (k @ p["key_weight"][h] + p["key_bias"][h]).clamp(min=0)


def _rebased(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
    def features(x: Tensor, side: str) -> Tensor:
        normed = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return p[f"{side}_gain"][h] * normed + p[f"{side}_shift"][h]

    return (features(q, "query") @ features(k, "key")) ** 2


def _dpfp(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
    def features(x: Tensor) -> Tensor:
        r = [max(float(v), 0.0) for v in (*x, *(-x))]
        return torch.tensor([r[i] * r[(i + 1) % len(r)] for i in range(len(r))], dtype=F64)

    return features(q) @ features(k)


def _performer(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
    root, omega = q.shape[0] ** 0.25, p["random"]

    def features(x: Tensor) -> Tensor:
        return (omega.T @ x - x @ x / 2).exp() / math.sqrt(omega.shape[1])

    return features(q / root) @ features(k / root)


def _allpoly(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
    def features(x: Tensor, side: str) -> Tensor:
        linear, squares = p[f"{side}_weight"][h], p[f"{side}_weight_2"][h]
        return ((x @ linear) ** 2 + x**2 @ squares) / math.sqrt(2)

    return features(q, "query") @ features(k, "key")


def _cosformer(q: Tensor, k: Tensor, p: Parameters, h: int, apart: int) -> Tensor:
    return (q.clamp(min=0) @ k.clamp(min=0)) * math.cos(math.pi / 2 * apart / 8192)


PAPERS: dict[str, Weight] = {
    "hedgehog_qk64_v64": _hedgehog(separate=False),
    "hedgehog_separate_qk64_v64": _hedgehog(separate=True),
    "rebased_qk16_v64": _rebased,
    "t2r_qk64_v64": _t2r,
    "dpfp_qk64_v64": _dpfp,
    "performer_qk64_v64": _performer,
    "allpoly_qk64_v64": _allpoly,
    "cosformer_qk64_v64": _cosformer,
}


def test_every_shipped_layer_has_its_formula() -> None:
    assert sorted(PAPERS) == WITH_PARTS


@torch.no_grad()
def test_weights_are_those_of_the_papers(op: FeaturedVariant) -> None:
    q, k, v = inputs(op, 7)
    p = parameters(op)
    o, _ = op(q, k, v, parameters=p)
    for b in range(B):
        for h in range(H):
            for i in range(7):
                a = torch.stack([PAPERS[op.name](q[b, i, h], k[b, j, h], p, h, i - j) for j in range(i + 1)])
                want = a @ v[b, : i + 1, h]
                assert_close(o[b, i, h], want / (a.sum() + op.spec.eps) if op.spec.normalize else want)


def test_random_features_estimate_exp() -> None:
    """The mean of many draws is exp(q·k): the rows have the lengths and directions of Gaussian vectors."""
    from based_ops.featured import _orthogonal

    torch.manual_seed(0)
    q, k = (0.5 * torch.randn(2, 16, dtype=F64)).unbind(0)
    omega = torch.cat([_orthogonal(16, 64, seed) for seed in range(200)], 1)
    got = ((omega.T @ q - q @ q / 2).exp() * (omega.T @ k - k @ k / 2).exp()).mean()
    assert_close(got, (q @ k).exp(), rtol=0.05, atol=0)
    block = _orthogonal(16, 16, 5)
    products = block.T @ block
    assert_close(products, products.diagonal().diag(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("order", [2, 3])
def test_products_are_powers(order: int) -> None:
    from based_ops.support.features import products

    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 7, dtype=F64).unbind(0)
    assert_close((products(q, order) * products(k, order)).sum(-1), (q * k).sum(-1) ** order)


# -- calls --------------------------------------------------------------------------------------------------


def test_gradients(op: FeaturedVariant) -> None:
    q, k, v = inputs(op, 6)
    p = parameters(op)
    learned = [x for x in p.values() if x.requires_grad]
    names = [n for n, x in p.items() if x.requires_grad]

    def run(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        o: Tensor = op(q, k, v, parameters=p | dict(zip(names, given, strict=True)))[0]
        return o

    torch.manual_seed(1)
    directions = [torch.randn_like(x) for x in (q, k, v, *learned)]
    weights = torch.randn_like(v)
    found = torch.autograd.grad((run(q, k, v, *learned) * weights).sum(), [q, k, v, *learned])
    slope = sum((g * d).sum() for g, d in zip(found, directions, strict=True))
    step = 1e-6
    with torch.no_grad():
        ends = [
            (run(*(x + s * d for x, d in zip((q, k, v, *learned), directions, strict=True))) * weights).sum()
            for s in (step, -step)
        ]
    assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@given(st.data())
def test_pieces_steps_padding_and_packing_are_one_call(data: st.DataObject) -> None:
    op = variant(data.draw(st.sampled_from(WITH_PARTS)))
    length = data.draw(st.integers(2, 40))
    cut = data.draw(st.integers(1, length - 1))
    q, k, v = (x.detach() for x in inputs(op, length))
    with torch.no_grad():
        p = parameters(op)
        o, final = op(q, k, v, parameters=p, output_final_state=True)
        assert_close(op.reference(q, k, v, parameters=p), o)

        first, state = op(*(x[:, :cut] for x in (q, k, v)), parameters=p, output_final_state=True)
        rest = [x[:, cut:] for x in (q, k, v)]
        second, end = op(*rest, parameters=p, initial_state=state, output_final_state=True)
        assert_close(torch.cat([first, second], 1), o)
        steps = []
        while rest[0].shape[1]:
            size = data.draw(st.integers(1, min(16, rest[0].shape[1])))
            steps.append(op.step(*(x[:, :size] for x in rest), state, parameters=p))
            rest = [x[:, size:] for x in rest]
        assert_close(torch.cat([first, *steps], 1), o)
        for one, other in ((end, final), (state, final)):
            for x, y in zip(one, other, strict=True):
                assert x is None and y is None or assert_close(x, y) is None

        left = data.draw(st.integers(0, 5))
        mask = torch.ones(B, length + 5, dtype=torch.bool)
        mask[0, :left] = mask[0, length + left :] = False
        mask[1, length:] = False
        padded = [torch.full((B, length + 5, *x.shape[2:]), math.nan, dtype=F64) for x in (q, k, v)]
        for x, whole in zip((q, k, v), padded, strict=True):
            whole[0, left : length + left], whole[1, :length] = x[0], x[1]
        got, ends = op(*padded, parameters=p, attention_mask=mask, output_final_state=True)
        assert_close(torch.stack([got[0, left : length + left], got[1, :length]]), o)
        assert_close(ends[0], final[0])

        packed = [x.flatten(0, 1).unsqueeze(0) for x in (q, k, v)]
        edges = torch.tensor([0, cut, length, length, 2 * length])
        got, ends = op(*packed, parameters=p, cu_seqlens=edges, output_final_state=True)
        assert_close(got[0, :cut], first[0])
        assert_close(got[0, length:], o[1])
        assert_close(ends[0][3], final[0][1])


def test_slots(op: FeaturedVariant) -> None:
    q, k, v = (x.detach() for x in inputs(op))
    with torch.no_grad():
        p = parameters(op)
        o, final = op(q, k, v, parameters=p, output_final_state=True)
        pool = op.init_state(4, H, dtype=F64)
        for x in pool:
            if x is not None:
                x[1] = math.nan
        slots = torch.tensor([3, -1], dtype=torch.int32)
        options = {"parameters": p, "state_indices": slots}
        got, _ = op(*(x[:, :9] for x in (q, k, v)), initial_state=pool, output_final_state=True, **options)
        more = op.step(*(x[:, 9:] for x in (q, k, v)), pool, **options)
        assert_close(torch.cat([got, more], 1)[0], o[0])
        assert not torch.cat([got, more], 1)[1].any()
        for x, y in zip(pool, final, strict=True):
            if x is not None:
                assert_close(x[3], y[0])
                assert x[1].isnan().all() and not x[[0, 2]].any()


def test_grouped_heads(op: FeaturedVariant) -> None:
    q, _, _ = inputs(op, heads=4)
    _, k, v = inputs(op, heads=2)
    if op.spec.tied:
        return
    made = op.init_parameters(4, dtype=F64, kv_heads=2)
    whole = op.init_parameters(4, dtype=F64)
    for name, x in made.items():
        whole[name] = x if x.shape == whole[name].shape else x.repeat_interleave(2, 0)
    keys, values = (x.repeat_interleave(2, 2) for x in (k, v))
    assert_close(op(q, k, v, parameters=made)[0], op(q, keys, values, parameters=whole)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision(op: FeaturedVariant, dtype: torch.dtype) -> None:
    q, k, v = inputs(op, 64, dtype=dtype)
    p = parameters(op, dtype=torch.float32)
    if not op.spec.one_sign:  # sums of weights of both signs can vanish
        q, k = (x.detach().abs().requires_grad_() for x in (q, k))
    o, _ = op(q, k, v, parameters=p)
    want = op.reference(*(x.double() for x in (q, k, v)), parameters={n: x.double() for n, x in p.items()})
    assert o.dtype == dtype
    if op.spec.one_sign:
        allowed = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}[dtype]
        assert errors_of(o, want).norm < allowed


def test_transforms_and_tools(op: FeaturedVariant) -> None:
    q, k, v = inputs(op)
    p = parameters(op)

    def loss(p: Parameters, q: Tensor) -> Tensor:
        return op(q, k, v, parameters=p)[0].square().sum()

    learned = {n: x for n, x in p.items() if x.requires_grad}
    fixed = {n: x for n, x in p.items() if not x.requires_grad}
    want = torch.autograd.grad(loss(p, q), [*learned.values(), q])
    found, by_q = torch.func.grad(lambda a, b: loss(fixed | a, b), argnums=(0, 1))(learned, q)
    for x, y in zip((*found.values(), by_q), want, strict=True):
        assert_close(x, y)
    several = torch.stack([q, -q])
    mapped = torch.vmap(lambda q: op(q, k.detach(), v.detach(), parameters=p)[0])(several.detach())
    assert_close(mapped[1], op(-q, k, v, parameters=p)[0])
    assert pickle.loads(pickle.dumps(op)) is op
    assert op.core.name == op.name and op.core.core is op.core


def test_compiled(op: FeaturedVariant) -> None:
    q, k, v = inputs(op)
    p = parameters(op)

    def loss(q: Tensor, k: Tensor, v: Tensor, p: Parameters) -> Tensor:
        return op(q, k, v, parameters=p)[0].square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [q, k, v, *(x for x in p.values() if x.requires_grad)]
    for x, y in zip(
        torch.autograd.grad(compiled(q, k, v, p), leaves),
        torch.autograd.grad(loss(q, k, v, p), leaves),
        strict=True,
    ):
        assert_close(x, y)


def test_under_autocast(op: FeaturedVariant) -> None:
    q, k, v = inputs(op, dtype=torch.float32)
    p = parameters(op, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o, _ = op(q, k, v, parameters=p)
    assert o.dtype == torch.bfloat16


# -- layers -------------------------------------------------------------------------------------------------


def test_layers_own_the_parameters(op: FeaturedVariant, tmp_path: Path) -> None:
    layer = layers.LinearAttention(32, 4, op, kv_heads=2).double()
    made = op.init_parameters(4, kv_heads=2)
    own, kept = dict(layer.named_parameters()), dict(layer.named_buffers())
    for name, x in made.items():
        assert (own if x.requires_grad else kept)[name].shape == x.shape
    x = torch.randn(2, 9, 32, dtype=F64)
    y, state = layer(x, output_state=True)
    y.square().sum().backward()
    for name, made_one in made.items():
        if made_one.requires_grad:
            assert own[name].grad is not None and own[name].grad.abs().sum() > 0, name
    with torch.no_grad():
        more = torch.randn(2, 3, 32, dtype=F64)
        together = layer(torch.cat([x, more], 1))[0]
        assert_close(layer.step(more, state.detach()), together[:, 9:])
    torch.save(layer.state_dict(), tmp_path / "layer")
    other = layers.LinearAttention(32, 4, op, kv_heads=2).double()
    other.load_state_dict(torch.load(tmp_path / "layer", weights_only=True))
    assert_close(other(x)[0], y)


# -- specs of other parts -----------------------------------------------------------------------------------

HYBRID = """\
name: {name}
mixer: hybrid
window: 5
feature_map: {{kind: elementwise, expression: x}}
head_dims: {{qk: 16, v: 16}}
window_dims: {{qk: 16}}
parts:
  - {{kind: projection, features: 16}}
  - {{kind: signs}}
  - {{kind: softmax}}
"""
MIXED = """\
name: {name}
mixer: linear_attention
feature_map: {{kind: taylor_exp, order: 2}}
head_dims: {{qk: 12, v: 16}}
parts:
  - {{kind: l2_norm}}
  - {{kind: projection, features: 8, bias: true}}
  - {{kind: layer_norm}}
  - {{kind: affine}}
key_parts:
  - {{kind: branches, join: multiply, of: [[{{kind: elementwise, expression: sqrt(relu(x))}}], []]}}
  - {{kind: projection, features: 8}}
"""
TIED = """\
name: {name}
mixer: linear_attention
feature_map: {{kind: elementwise, expression: elu(x) + 1}}
head_dims: {{qk: 12, v: 16}}
tied: true
parts:
  - {{kind: affine, bias: false}}
  - {{kind: projection, features: 8}}
"""


def load(tmp_path: Path, text: str, name: str) -> FeaturedVariant:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.format(name=name))
    op = based_ops.load(path)
    assert isinstance(op, FeaturedVariant)
    return op


@pytest.fixture(params=["HYBRID", "MIXED", "TIED"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> FeaturedVariant:
    return load(tmp_path, globals()[request.param], f"parts_{request.param.lower()}")


def test_other_parts(other: FeaturedVariant) -> None:
    q, k, v = inputs(other)
    p = parameters(other)
    own = {"q_window": q, "k_window": k} if other.spec.mixer == "hybrid" else {}
    o, final = other(q, k, v, parameters=p, output_final_state=True, **own)
    want = other.reference(q, k, v, parameters=p, **own)
    assert_close(o, want)
    leaves = [q, k, v, *p.values()]
    for x, y in zip(
        torch.autograd.grad(o.sin().sum(), leaves), torch.autograd.grad(want.sin().sum(), leaves), strict=True
    ):
        assert_close(x, y)
        assert x.isfinite().all()
    assert sorted(p) == sorted(other.parameters)


@given(spec=with_parts(max_qk=24, max_v=24, widest=48), seed=st.integers(0, 99))
def test_drawn_parts(spec: LinearAttention, seed: int) -> None:
    """Outputs, and gradients of all inputs and parameters, against the parts one by one and all pairs."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{spec.name}.yaml"
        path.write_text(dump_yaml(replace(spec, dtypes=("float32",))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpecWarning)
            op = based_ops.load(path)
    assert isinstance(op, FeaturedVariant)
    torch.manual_seed(seed)
    q, k, v = (0.5 * torch.randn(B, 9, H, width, dtype=F64) for width in (op.qk, op.qk, op.v))
    decays = {"head": (H,), "token": (B, 9, H)}.get(spec.decay)
    g = None if decays is None else -torch.rand(decays, dtype=F64)
    p = parameters(op)
    leaves = [x.requires_grad_() for x in (q, k, v)] + [x for x in p.values() if x.requires_grad]
    o, want = op(q, k, v, g, parameters=p)[0], op.reference(q, k, v, g, parameters=p)
    size = float(want.detach().abs().max()) + 1e-3
    assert_close(o / size, want / size, rtol=1e-7, atol=1e-9)
    found, wanted = (torch.autograd.grad((x / size).sum(), leaves) for x in (o, want))
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, rtol=1e-6, atol=1e-8 * float(y.abs().max()) + 1e-12)


def test_a_tied_layer_has_one_set(tmp_path: Path) -> None:
    op = load(tmp_path, TIED, "parts_tied")
    assert sorted(op.init_parameters(2)) == ["gain", "weight"]
    with pytest.raises(errors.ArgumentValueError, match="^kv_heads: got 1, must be 2"):
        op.init_parameters(2, kv_heads=1)


def test_a_root_at_zero_has_no_infinite_gradient(tmp_path: Path) -> None:
    """Where autograd would multiply the 0 of relu by the infinite slope of the root."""
    op = load(tmp_path, MIXED, "parts_mixed")
    q, k, v = inputs(op)
    k = (-k.detach().abs()).requires_grad_()
    (found,) = torch.autograd.grad(op(q, k, v, parameters=parameters(op))[0].sum(), k)
    assert found.isfinite().all()


# -- what is refused ----------------------------------------------------------------------------------------

BAD: dict[str, tuple[type[errors.BasedOpsError], str, Callable[[Parameters], object]]] = {
    "none": (errors.ArgumentValueError, "^parameters: got no 'query_weight', must be given", lambda p: None),
    "a list": (errors.ArgumentTypeError, "^parameters: got list, must be a dict", lambda p: [*p]),
    "one too few": (
        errors.ArgumentValueError,
        "got no 'key_bias'",
        lambda p: {n: x for n, x in p.items() if n != "key_bias"},
    ),
    "a misspelt one": (
        errors.ArgumentValueError,
        "got 'querry_weight', must be a parameter of .* did you mean 'query_weight'",
        lambda p: p | {"querry_weight": p["query_weight"]},
    ),
    "of other heads": (
        errors.ShapeError,
        r"^parameters\['query_weight'\]: got \(2, 64, 64\), must be of shape \[3, 64, 64\]",
        lambda p: p | {"query_weight": p["query_weight"][:2]},
    ),
    "integers": (errors.DtypeError, "key_bias", lambda p: p | {"key_bias": p["key_bias"].long()}),
    "elsewhere": (errors.DeviceError, "got meta", lambda p: p | {"key_bias": p["key_bias"].to("meta")}),
    "no tensor": (errors.ArgumentTypeError, "got float", lambda p: p | {"key_bias": 1.0}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters(case: str) -> None:
    op = variant("hedgehog_qk64_v64")
    error, text, bad = BAD[case]
    q, k, v = (x.detach() for x in inputs(op))
    given = bad(parameters(op))
    for call in (
        lambda: op(q, k, v, parameters=given),
        lambda: op.step(q[:, :1], k[:, :1], v[:, :1], op.init_state(B, H, dtype=F64), parameters=given),
        lambda: op.reference(q, k, v, parameters=given),
    ):
        with pytest.raises(error, match=text):
            call()


def test_bad_inputs(op: FeaturedVariant) -> None:
    q, k, v = inputs(op)
    p = parameters(op)
    with pytest.raises(errors.ShapeError, match=rf"^q: got .* must be of shape \[B, T, H, {op.qk}\]"):
        op(q[..., 1:], k, v, parameters=p)
    with pytest.raises(errors.ArgumentTypeError, match="^k: got list"):
        op(q, [k], v, parameters=p)
    with pytest.raises(errors.DtypeError, match="^q: got torch.int64"):
        op(q.long(), k, v, parameters=p)
    with pytest.raises(errors.ArgumentTypeError, match="^causal: no argument"):
        op(q, k, v, parameters=p, causal=True)
    with pytest.raises(errors.ShapeError, match="^v: got "):
        op(q, k, v[..., 1:], parameters=p)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(based_ops.get(name), "init_parameters")])
def test_layers_without_parts_take_none(name: str) -> None:
    op = based_ops.get(name)
    assert op.init_parameters(2) == {}
    with pytest.raises(errors.ArgumentValueError, match="^parameters: got 'a', must be left out"):
        op(None, None, None, parameters={"a": torch.ones(1)})


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (3, 0), (2, 1)])
def test_few_tokens_or_none(op: FeaturedVariant, batch: int, length: int) -> None:
    q, k, v = (torch.randn(batch, length, H, w, requires_grad=True) for w in (op.qk, op.qk, op.v))
    p = parameters(op, dtype=torch.float32)
    o, _ = op(q, k, v, parameters=p)
    o.sum().backward()
    assert o.shape == v.shape and q.grad is not None
    assert all(x.grad is not None for x in p.values() if x.requires_grad)
    with torch.no_grad():
        assert op.step(q, k, v, op.init_state(batch, H), parameters=p).shape == v.shape


def test_exported_with_free_sizes(op: FeaturedVariant) -> None:
    layer = layers.LinearAttention(32, 2, op).eval()
    free = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=3, max=4096)}

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = layer(x)[0]
            return y

    model = Model()
    model.layer = layer
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 9, 32),), dynamic_shapes={"x": free})
        x = torch.randn(3, 17, 32)
        assert_close(program.module()(x), model(x))
