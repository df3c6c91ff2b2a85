"""Calls and steps under `torch.func`, against the same transforms of the reference or a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.testing import assert_close

from based_ops import errors
from based_ops.variant import Variant

from .inputs import leaves, qkv
from .test_layers import WIDTH, layer_for

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
QKV = (0, 1, 2)


def small(variant: Variant, many: int | None = None, **changes: Any) -> tuple[Tensor, ...]:
    """q, k and v, with a dimension of `many` in front of the others."""
    shape = {"batch": 2, "length": 5, "dtype": F64} | changes
    if many is None:
        return qkv(variant, **shape)
    return tuple(x.unflatten(0, (many, -1)) for x in qkv(variant, **shape | {"batch": many * shape["batch"]}))


def both(variant: Variant) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """A loss of the outputs, and the same of the reference."""
    return (
        lambda q, k, v: variant(q, k, v)[0].sin().sum(),
        lambda q, k, v: variant.reference(q, k, v).sin().sum(),
    )


def pieces(function: Any, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """The outputs of a sequence in two pieces, and the floating tensors of the state behind it."""
    _, state = function(q[:, :2], k[:, :2], v[:, :2], output_final_state=True)
    o, state = function(q[:, 2:], k[:, 2:], v[:, 2:], initial_state=state, output_final_state=True)
    return [o, *(x for x in leaves(state) if x.is_floating_point())]


def mapped(state: Any) -> Any:
    """`in_dims` of a state."""
    return type(state)(*(None if part is None else 0 for part in state))


TRANSFORMS: dict[str, tuple[int | None, Callable[[Callable[..., Tensor]], Callable[..., Any]]]] = {
    "grad": (None, lambda loss: func.grad(loss, QKV)),
    "vjp": (
        None,
        lambda loss: lambda q, k, v: func.vjp(lambda k: loss(q, k, v), k)[1](torch.ones((), dtype=F64)),
    ),
    "vmap": (3, func.vmap),
    "gradients of each sample": (3, lambda loss: func.vmap(func.grad(loss, QKV))),
    "gradient of all samples": (3, lambda loss: func.grad(lambda *x: func.vmap(loss)(*x).sum(), QKV)),
    "one k for all": (3, lambda loss: lambda q, k, v: func.vmap(func.grad(loss), (0, None, 0))(q, k[0], v)),
    "another dimension": (3, lambda loss: lambda q, k, v: func.vmap(loss, (2, 0, 0))(q.movedim(0, 2), k, v)),
    "vmap of vmap": (
        2,
        lambda loss: lambda *x: func.vmap(func.vmap(lambda *y: loss(*(t[None] for t in y))))(*x),
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(variant: Variant, transform: str) -> None:
    many, apply = TRANSFORMS[transform]
    got, want = (apply(loss)(*small(variant, many)) for loss in seeded(both(variant)))
    assert_close(got, want, **CLOSE)


def seeded(losses: Any) -> Any:
    """Each loss with the same random numbers."""
    for loss in losses:
        torch.manual_seed(0)
        yield loss


@pytest.mark.parametrize("transform", ["grad", "gradients of each sample"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_transforms(variant: Variant, transform: str, dynamic: bool) -> None:
    many, apply = TRANSFORMS[transform]
    loss, reference = both(variant)
    x = small(variant, many)
    compiled = torch.compile(apply(loss), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_close(compiled(*x), apply(reference)(*x), **CLOSE)


def test_gradients_through_states(variant: Variant) -> None:
    q, k, v = small(variant, 3)
    results = []
    for function in (variant, lambda *x, **y: variant.reference(*x, **y)):

        def loss(*x: Tensor, function: Any = function) -> Tensor:
            return sum((part.cos().sum() for part in pieces(function, *x)), torch.zeros((), dtype=F64))

        results.append(func.vmap(func.grad(loss, QKV))(q, k, v))
    assert_close(*results, **CLOSE)


def test_jacobian(variant: Variant) -> None:
    q, k, v = small(variant, length=3)
    got, want = (
        func.jacrev(function)(k)
        for function in (
            lambda k: variant(q, k, v)[0][0, :, 1, :2],
            lambda k: variant.reference(q, k, v)[0, :, 1, :2],
        )
    )
    assert_close(got, want, **CLOSE)


def test_batched_gradients(variant: Variant) -> None:
    x = small(variant)
    results = []
    for function in (lambda *x: variant(*x)[0], variant.reference):
        y = [t.clone().requires_grad_() for t in x]
        o = function(*y)
        d_o = torch.linspace(-1, 1, 4 * o.numel(), dtype=F64).view(4, *o.shape)
        results.append(torch.autograd.grad(o, y, d_o, is_grads_batched=True))
    assert_close(*results, **CLOSE)


def test_autograd_sees_through_vmap(variant: Variant) -> None:
    """Outside of a transform, whose tensors inside do not say that they require a gradient."""
    x = [t.requires_grad_() for t in small(variant, 3)]
    got, want = (torch.autograd.grad(func.vmap(loss)(*x).sum(), x) for loss in both(variant))
    assert_close(got, want, **CLOSE)


def test_gradients_of_each_sample_of_a_layer(variant: Variant) -> None:
    layer = layer_for(variant)
    weights = {name: x.detach() for name, x in layer.named_parameters()}
    x = torch.randn(3, 4, WIDTH, dtype=F64)

    def loss(weights: Any, x: Tensor) -> Tensor:
        return func.functional_call(layer, weights, (x[None],))[0].square().sum()

    got = func.vmap(func.grad(loss), (None, 0))(weights, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None])[0].square().sum().backward()
        for name, weight in layer.named_parameters():
            assert_close(got[name][i], weight.grad)


SECOND: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad of grad": lambda f, x: func.grad(lambda x: func.grad(f)(x).sum())(x),
    "jacrev of jacrev": lambda f, x: func.jacrev(func.jacrev(f))(x),
    "autograd of grad": lambda f, x: torch.autograd.grad(func.grad(f)(y := x.requires_grad_()).sum(), y),
    "jvp": lambda f, x: func.jvp(f, (x,), (x,)),
    "jvp of grad": lambda f, x: func.jvp(func.grad(f), (x,), (x,)),
    "grad of jvp": lambda f, x: func.grad(lambda y: func.jvp(f, (y,), (x,))[1])(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "hessian": lambda f, x: func.hessian(f)(x),
    "jvp of vmap": lambda f, x: func.jvp(lambda x: func.vmap(f)(x[None]), (x,), (x,)),
}


@pytest.mark.parametrize("transform", SECOND)
def test_what_does_not_exist_is_refused(variant: Variant, transform: str) -> None:
    q, k, v = small(variant)
    with pytest.raises(errors.GradientError, match="no derivative|no forward mode"):
        SECOND[transform](lambda q: variant(q, k, v)[0].sin().sum(), q)


def states(variant: Variant) -> tuple[Any, Any]:
    """A state of 3 times 2 sequences that have seen a token, and the same with the 3 in front."""
    state = variant.init_state(6, 2, dtype=F64)
    variant.step(*(x.flatten(0, 1) for x in small(variant, 3, length=1)), state)
    return state, type(state)(*(x if x is None else x.clone().unflatten(0, (3, 2)) for x in state))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_mapped_steps(variant: Variant, compiled: bool) -> None:
    alone, stacked = states(variant)
    tokens = small(variant, 3, length=1)
    want = variant.step(*(x.flatten(0, 1) for x in tokens), alone)
    step = func.vmap(variant.step, in_dims=(0, 0, 0, mapped(stacked)))
    if compiled:
        step = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_close(step(*tokens, stacked).flatten(0, 1), want, **CLOSE)
    for part, other in zip(leaves(stacked), leaves(alone), strict=True):
        assert_close(part.flatten(0, 1), other, **CLOSE)


def test_the_operator_updates_states_mapped_anywhere(variant: Variant) -> None:
    alone, stacked = states(variant)
    tokens, op = small(variant, 3, length=1), getattr(torch.ops.based_ops, f"{variant.name}_step")
    want = op(*(x.flatten(0, 1) for x in tokens), 0.5, *alone, "torch")
    turned = [x if x is None else x.movedim(0, 2).contiguous() for x in stacked]
    dims = [None if x is None else 2 for x in turned]
    got = func.vmap(op, (0, 0, 0, None, *dims, None))(*tokens, 0.5, *turned, "torch")
    assert_close(got.flatten(0, 1), want, **CLOSE)
    for part, other in zip(leaves(turned), leaves(alone), strict=True):
        assert_close(part.movedim(2, 0).flatten(0, 1), other, **CLOSE)


def test_a_state_for_all_is_refused(variant: Variant) -> None:
    tokens, state = small(variant, 3, length=1), variant.init_state(2, 2, dtype=F64)
    shared = type(state)(*(None if x is None else x.expand(3, *x.shape) for x in state))
    for states, dims in ((state, None), (shared, mapped(state))):
        with pytest.raises(errors.StateError, match="got one for all, must be mapped over"):
            func.vmap(variant.step, in_dims=(0, 0, 0, dims))(*tokens, states)
    assert all(not x.any() for x in leaves(state))


def test_steps_of_a_mapped_prompt(variant: Variant) -> None:
    """A state that comes out of `vmap` goes into it again."""
    many = small(variant, 3, length=4)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, state = variant(q[:, :3], k[:, :3], v[:, :3], output_final_state=True)
        return variant.step(q[:, 3:], k[:, 3:], v[:, 3:], state)

    want = torch.stack([variant(*(x[i] for x in many))[0][:, 3:] for i in range(3)])
    assert_close(func.vmap(run)(*many), want, **CLOSE)


def test_a_step_in_a_gradient_is_refused(variant: Variant) -> None:
    q, k, v = small(variant, length=1)

    def loss(q: Tensor) -> Tensor:
        return variant.step(q, k, v, variant.init_state(2, 2, dtype=F64)).sum()

    with pytest.raises(errors.GradientError, match="not differentiable"):
        func.grad(loss)(q)


@pytest.mark.parametrize("batch, length", [(0, 5), (2, 0)])
def test_mapping_over_empty_calls(variant: Variant, batch: int, length: int) -> None:
    q, k, v = (torch.zeros(3, batch, length, 2, x) for x in (variant.qk, variant.qk, variant.v))
    got = func.vmap(func.grad(lambda *x: variant(*x)[0].sum(), QKV))(q, k, v)
    assert [x.shape for x in got] == [q.shape, k.shape, v.shape]
