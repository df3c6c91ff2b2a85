"""The public functions against the reference, and their derivatives, on the torch backend in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.variant import Variant

from .inputs import leaves, meaning, qkv

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def test_something_is_generated() -> None:
    assert based_ops.names()


def test_forward_is_the_reference(any_variant: Variant) -> None:
    q, k, v = qkv(any_variant, dtype=F64)
    o, final = any_variant(q, k, v, output_final_state=True)
    want, want_final = any_variant.reference(q, k, v, output_final_state=True)
    assert_close(o, want, **CLOSE)
    assert o.is_contiguous() and o.dtype == v.dtype
    for got, expected in zip(leaves(final), leaves(want_final), strict=True):
        assert_close(got, expected, **CLOSE)


def test_gradients_are_those_of_the_reference(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=F64, requires_grad=True)
    _, start = variant.reference(*qkv(variant, length=7, dtype=F64), output_final_state=True)
    floating = [leaf.requires_grad_() for leaf in leaves(start) if leaf.is_floating_point()]
    results = []
    for function in (variant, variant.reference):
        o, final = function(q, k, v, initial_state=start, output_final_state=True)
        outputs = [o, *(leaf for leaf in leaves(final) if leaf.is_floating_point())]
        loss = sum(
            (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs
        )
        results.append(torch.autograd.grad(loss, [q, k, v, *floating]))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("only", ["state", "normalizer"])
def test_gradient_from_a_part_of_the_final_state(linear: Variant, only: str) -> None:
    q, k, v = qkv(linear, dtype=F64, requires_grad=True)
    results = []
    for function in (linear, linear.reference):
        _, final = function(q, k, v, output_final_state=True)
        loss = getattr(final, only).square().sum()
        results.append(torch.autograd.grad(loss, [q, k, v], allow_unused=True, materialize_grads=True))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, **CLOSE)


def test_forward_mode_is_refused(variant: Variant) -> None:
    q, k, v = qkv(variant)
    first = [x[:, :1] for x in (q, k, v)]
    state = variant.init_state(2, 2)
    with forward_ad.dual_level():
        variant(q, k, v)
        variant.step(*first, state)
        tangent = forward_ad.make_dual(v, torch.ones_like(v))
        with pytest.raises(NotImplementedError, match="forward mode"):
            variant(q, k, tangent)
        with pytest.raises(errors.GradientError, match="no forward mode: differentiate it backwards"):
            variant(q, k, tangent)
        with pytest.raises(errors.GradientError, match="not differentiable"):
            variant.step(*first[:2], tangent[:, :1], state)


def test_pieces_are_the_whole(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=F64)
    want, want_state = variant(q, k, v, output_final_state=True)
    state, pieces = None, []
    for piece in (slice(0, 1), slice(1, 1), slice(1, 14), slice(14, 21)):
        o, state = variant(
            q[:, piece], k[:, piece], v[:, piece], initial_state=state, output_final_state=True
        )
        pieces.append(o)
    assert_close(torch.cat(pieces, dim=1), want, **CLOSE)
    for got, expected in zip(leaves(state), leaves(want_state), strict=True):
        assert_close(got, expected, **CLOSE)


def test_steps_are_the_whole(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=F64)
    want, want_state = variant(q, k, v, output_final_state=True)
    state = variant.init_state(2, 2, dtype=F64)
    parts = [variant.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], state) for t in range(21)]
    assert_close(torch.cat(parts, dim=1), want, **CLOSE)
    for got, expected in zip(meaning(variant, state), meaning(variant, want_state), strict=True):
        assert_close(got, expected, **CLOSE)


def test_gradcheck(variant: Variant) -> None:
    q, k, v = (x[..., :1, :] for x in qkv(variant, batch=1, length=3, dtype=F64))
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: variant(*x)[0], inputs, fast_mode=True)


def test_operators_are_differentiable_themselves(linear: Variant) -> None:
    q, k, v = qkv(linear, dtype=F64, requires_grad=True)
    op = getattr(torch.ops.based_ops, f"{linear.name}_forward")
    o, n, final, final_n = op(q, k, v, 0.25, None, None, False, "torch")
    assert o.requires_grad and not n.requires_grad and not final.requires_grad
    want = linear.reference(q, k, v, scale=0.25)
    assert_close(torch.autograd.grad(o.sum(), (q, k, v)), torch.autograd.grad(want.sum(), (q, k, v)), **CLOSE)


def test_scale_replaces_the_specs(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=F64)
    assert_close(variant(q, k, v, scale=0.3)[0], variant.reference(q, k, v, scale=0.3), **CLOSE)
    assert_close(variant(q, k, v, scale=variant.default_scale)[0], variant(q, k, v)[0], **CLOSE)


def test_strides(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=F64)
    want, _ = variant(q, k, v)
    for order in ((0, 2, 1, 3), (3, 2, 1, 0)):
        strided = [x.permute(order).contiguous().permute(order) for x in (q, k, v)]
        assert_close(variant(*strided)[0], want, **CLOSE)


def test_expanded_gradient(variant: Variant) -> None:
    q, k, v = qkv(variant, dtype=F64, requires_grad=True)
    got = torch.autograd.grad(variant(q, k, v)[0].sum(), (q, k, v))
    want = torch.autograd.grad(variant.reference(q, k, v).sum(), (q, k, v))
    assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("batch, length, heads", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_empty(variant: Variant, batch: int, length: int, heads: int) -> None:
    q, k, v = qkv(variant, batch, length, heads, requires_grad=True)
    o, state = variant(q, k, v, output_final_state=True)
    assert o.shape == v.shape
    for got, want in zip(leaves(state), leaves(variant.init_state(batch, heads)), strict=True):
        assert_close(got, want)
    o.sum().backward()


def test_empty_keeps_the_state(variant: Variant) -> None:
    _, start = variant(*qkv(variant), output_final_state=True)
    _, final = variant(*qkv(variant, length=0), initial_state=start, output_final_state=True)
    for got, want in zip(leaves(final), leaves(start), strict=True):
        assert_close(got, want)
        assert got.data_ptr() != want.data_ptr()


def emptied(variant: Variant) -> set[str]:
    """Parts of a state that a call returns empty, whatever it is given: no gradient comes from them."""
    return {"k", "v"} if getattr(variant.spec, "replay", None) else set()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("batch, length, heads", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_gradients_of_empty_calls(
    variant: Variant, batch: int, length: int, heads: int, compiled: bool
) -> None:
    """Of every output with respect to every input alone: zeros, but ones from a state to itself."""
    start = variant.init_state(batch, heads, dtype=F64)
    kept = [i for i, x in enumerate(start) if x is not None and x.is_floating_point()]
    filled = [i for i in kept if start._fields[i] not in emptied(variant)]
    inputs = [*qkv(variant, batch, length, heads, F64), *(torch.randn_like(start[i]) for i in kept)]

    def outputs(*inputs: torch.Tensor) -> list[torch.Tensor]:
        parts = list(start)
        for i, x in zip(kept, inputs[3:], strict=True):
            parts[i] = x
        o, end = variant(*inputs[:3], initial_state=type(start)(*parts), output_final_state=True)
        return [o, *(end[i] for i in filled)]

    run = torch.compile(outputs, fullgraph=True, backend="aot_eager") if compiled else outputs
    for i, x in enumerate(inputs):
        given = [y.detach().requires_grad_(j == i) for j, y in enumerate(inputs)]
        begun = kept[i - 3] if i >= 3 else None
        for part, output in zip([None, *filled], run(*given), strict=True):
            (got,) = torch.autograd.grad(output.sum(), given[i], retain_graph=True)
            itself = part is not None and part == begun
            assert_close(got, torch.full_like(x, float(itself)), rtol=0, atol=0)


def test_empty_calls_without_a_state_have_gradients(variant: Variant) -> None:
    q, k, v = qkv(variant, length=0, requires_grad=True)
    _, end = variant(q, k, v, output_final_state=True)
    parts = [x for name, x in end._asdict().items() if name not in emptied(variant) and x is not None]
    for output in (x for x in parts if x.is_floating_point()):
        gradients = torch.autograd.grad(output.sum(), (q, k, v), retain_graph=True)
        assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]


def test_no_state_unless_asked(variant: Variant) -> None:
    assert variant(*qkv(variant))[1] is None


def test_state_bytes(any_layer: Variant) -> None:
    state = any_layer.init_state(3, 2)
    assert sum(leaf.nbytes for leaf in leaves(state)) == any_layer.state_bytes(3, 2)
    state = any_layer.init_state(3, 2, dtype=F64)
    assert sum(leaf.nbytes for leaf in leaves(state)) == any_layer.state_bytes(3, 2, dtype=F64)


def test_autocast_casts_once(variant: Variant) -> None:
    q, k, v = qkv(variant, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, _ = variant(q, k, v)
    assert o.dtype == torch.bfloat16
    want, _ = variant(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert_close(o, want, rtol=0, atol=0)
    o.float().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


def test_autocast_leaves_the_inside_of_a_kernel_alone(variant: Variant) -> None:
    q, k, v = qkv(variant)
    op = getattr(torch.ops.based_ops, f"{variant.name}_forward")
    signature = variant.signature
    asked = [False] if signature.final else []
    rest = (1.0, *(None for _ in signature.carried), *asked, "torch")
    want = op(q, k, v, *rest)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(op(q, k, v, *rest)[0], want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_rings_like_keys(window: Variant, dtype: torch.dtype) -> None:
    first, more = qkv(window), qkv(window, requires_grad=True)
    _, start = window(*first, output_final_state=True)
    start = start._replace(k=start.k.requires_grad_(), v=start.v.requires_grad_())
    with torch.autocast("cpu", dtype=dtype):
        o, end = window(*more, initial_state=start, output_final_state=True)
    assert o.dtype == end.k.dtype == end.v.dtype == dtype
    cast = start._replace(k=start.k.to(dtype), v=start.v.to(dtype))
    want, _ = window(*(x.to(dtype) for x in more), initial_state=cast)
    assert_close(o, want, rtol=0, atol=0)
    o.float().sum().backward()
    assert start.k.grad is not None and start.k.grad.abs().sum() > 0


def test_autocast_steps_in_the_dtype_of_the_ring(window: Variant) -> None:
    token = qkv(window, length=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            state, other = (window.init_state(2, 2, dtype=dtype) for _ in range(2))
            got = window.step(*(x.bfloat16() for x in token), state)
            with torch.autocast("cpu", enabled=False):
                want = window.step(*(x.bfloat16().to(dtype) for x in token), other)
            assert_close([got, *state], [want, *other], rtol=0, atol=0)
        for dtype in (torch.float16, torch.float64):
            with pytest.raises(errors.StateError, match=rf"^state\.k: got {dtype}, .* convert it"):
                window.step(*token, window.init_state(2, 2, dtype=dtype))


def test_autocast_where_the_spec_has_float32_alone(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant, "dtypes", (torch.float32, torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, _ = variant(*qkv(variant, dtype=torch.bfloat16))
    assert o.dtype == torch.float32


def test_autocast_leaves_float64_alone(variant: Variant) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert variant(*qkv(variant, dtype=F64))[0].dtype == F64


def test_steps_are_seen_by_autograd(variant: Variant) -> None:
    """A state that a backward pass still needs must not change unnoticed."""
    if "position" in variant.init_state(1, 1)._fields:
        return  # its forward copies the rings
    q, k, v = qkv(variant, requires_grad=True)
    state = variant.init_state(2, 2)
    o, _ = variant(q, k, v, initial_state=state)
    with torch.no_grad():
        variant.step(q[:, :1], k[:, :1], v[:, :1], state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


def test_inference_mode(variant: Variant) -> None:
    q, k, v = qkv(variant)
    with torch.inference_mode():
        o, state = variant(q, k, v, output_final_state=True)
        variant.step(q[:, :1], k[:, :1], v[:, :1], state)
    assert_close(o, variant(q, k, v)[0])


def test_variants_pickle_by_name(layer: Variant) -> None:
    import copy
    import pickle

    assert pickle.loads(pickle.dumps(layer)) is layer
    assert copy.deepcopy(layer) is layer
