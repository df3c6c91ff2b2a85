"""Features made of parts by kernels, against the parts one by one in float64; and calls of such layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close as same_numbers

import based_ops
from based_ops.codegen import pipeline
from based_ops.codegen.parts.layer import FeatureLayer, feature_layers
from based_ops.codegen.parts.pieces import MOST_NUMBERS, MOST_WEIGHTS, NoTile
from based_ops.codegen.schedule.model import HOST_C
from based_ops.codegen.spec import parts
from based_ops.codegen.spec.featured import Side, numbered
from based_ops.codegen.spec.parts import Part
from based_ops.featured import FeaturedVariant
from based_ops.reference.parts import features as naive
from tests.conftest import SPECS
from tests.kernels.inputs import LAYOUTS, laid_out
from tests.kernels.runners import LOW, Runner, interpreting
from tests.layers import build
from tests.strategies import pipelines
from tests.tolerance import BACKWARD, FORWARD, assert_close

F64 = torch.float64
TILES = (("CHUNK", 16), ("PARTS", 4), ("SHORTEST", 16), ("PROGRAMS", 64))
"""With which a few tokens are several tiles and segments."""
SHIPPED = sorted(name for name, spec in pipeline.load(SPECS).items() if getattr(spec, "has_parts", False))


def layer(chosen: tuple[Part, ...], width: int) -> FeatureLayer:
    found = tuple(numbered(chosen, width))
    return FeatureLayer("features", "features", chosen, found, width, ("float32", "bfloat16", "float16"))


def shipped(name: str) -> FeatureLayer:
    (found,) = feature_layers(pipeline.load(SPECS, [name])[name]).values()  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class Call:
    """A layer's module with the shape of one call."""

    layer: FeatureLayer
    module: ModuleType
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: str
    layout: str = "dense"
    seed: int = 0
    numbered: bool = False

    def values(self, *shape: int, salt: int, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        drawn = torch.randn(*shape, generator=generator, dtype=F64) * 0.5
        return drawn.to(self.device, dtype or self.dtype)

    def x(self) -> Tensor:
        return laid_out(self.values(*self.shape, self.layer.width, salt=0), self.layout)

    def parameters(self) -> list[Tensor]:
        wide = F64 if self.dtype == F64 else torch.float32
        found = []
        for salt, x in enumerate(self.layer.parameters, 2):
            dtype = self.dtype if self.layer.role(x) == "io" else wide
            shape = (self.shape[2], *x.shape) if x.learned else x.shape
            size = x.shape[0] ** -0.5 if len(x.shape) == 2 else 1.0
            found.append(size * self.values(*shape, salt=salt, dtype=dtype))
        return found

    def tokens(self) -> Tensor | None:
        """Numbers of tokens; those of packed sequences begin anew."""
        if not self.layer.turns:
            return None
        number = torch.arange(self.shape[1], device=self.device).expand(self.shape[:2])
        return (7 * number + 40_000) % 60_000 if self.numbered else number

    def run(self, dy: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and gradients of the kernels."""
        tokens = self.tokens()
        given = [self.x(), *self.parameters()]
        if self.layer.turns:
            given.append(tokens.int().contiguous() if self.numbered else None)  # type: ignore[union-attr,arg-type]
        found = self.module.backward(dy, *given)
        return self.module.forward(*given), list(found if isinstance(found, tuple) else (found,))

    def wanted(self, dy: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same in float64."""
        x = self.x().double().requires_grad_()
        learned = [q.learned for q in self.layer.parameters]
        read = [p.double().requires_grad_(x) for p, x in zip(self.parameters(), learned, strict=True)]
        side = Side("query", self.layer.parts, self.layer.parameters)
        names = [q.name for q in self.layer.parameters]
        y = naive(side, x, dict(zip(names, read, strict=True)), self.tokens())
        leaves = [x, *(p for p in read if p.requires_grad)]
        return y, list(torch.autograd.grad(y, leaves, dy.double(), materialize_grads=True))

    def check(self) -> None:
        dy = laid_out(self.values(*self.shape, self.layer.features, salt=1), self.layout)
        (y, gradients), (want, wanted) = self.run(dy), self.wanted(dy)
        forward, backward = FORWARD[self.dtype], BACKWARD[self.dtype]
        assert y.dtype == self.dtype
        assert_close("y", y, want, forward)
        names = ["dx", *(f"d{x.name}" for x in self.layer.learned)]
        for name, found, expected in zip(names, gradients, wanted, strict=True):
            # Gradients of normed features are what is left of larger ones.
            assert_close(name, found, expected, backward, floor=dy)


def module(runner: Runner, of: FeatureLayer) -> ModuleType:
    target = HOST_C if (runner.backend, runner.device) == ("tilelang", "cpu") else runner.backend
    return build(of, target, TILES if runner.device == "cpu" else ())


@st.composite
def calls(draw: st.DrawFn, runner: Runner, of: FeatureLayer, dtype: torch.dtype) -> Call:
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    length = draw(st.integers(1, 70) if runner.device == "cpu" else st.sampled_from((1, 64, 777)))
    return Call(
        of,
        module(runner, of),
        (batch, length, heads),
        dtype,
        runner.device,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 999)),
        draw(st.booleans()),
    )


@given(st.data())
def test_drawn_pipelines(runner: Runner, data: st.DataObject) -> None:
    """Kernels of any parts; of a fixed few where compiling one takes long."""
    plain = runner.backend == "torch"
    width = data.draw(st.integers(8, 40 if plain else 20))
    few = runner.backend == "tilelang"
    chosen = data.draw(st.sampled_from(FEW) if few else pipelines(width, 96 if plain else 48).filter(bool))
    of = layer(chosen, 12 if few else width)
    data.draw(calls(runner, of, F64 if plain else torch.float32)).check()


FEW = (
    (parts.Products(2), parts.Projection(16, bias=True), parts.Softmax(2)),
    (parts.L2Norm(), parts.Signs(), parts.RolledProducts(2), parts.Affine()),
)
"""Pipelines of odd widths, whose tiles have columns of nothing."""


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("dtype", [F64, torch.float32, *LOW], ids=str)
def test_shipped_layers(runner: Runner, name: str, dtype: torch.dtype) -> None:
    if dtype not in runner.dtypes or runner.backend == "tilelang" and name != SHIPPED[0]:
        pytest.skip("another backend computes it")
    if runner.interpreted and dtype == torch.float16:
        pytest.skip("bfloat16 is rounded by the same instructions")
    of = shipped(name)
    for numbered_ in (False, True) if of.turns else (False,):
        Call(of, module(runner, of), (2, 21, 1), dtype, runner.device, numbered=numbered_).check()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("width", [8, 9])
def test_all_products(runner: Runner, order: int, width: int) -> None:
    if runner.backend == "tilelang" and (order, width) != (3, 9):
        pytest.skip("one is enough where compiling takes seconds")
    of = layer((parts.Products(order),), width)
    Call(of, module(runner, of), (1, 9, 1), runner.dtypes[0], runner.device).check()


def test_functions_that_are_not_finite_at_0(runner: Runner) -> None:
    """What they are past the end of a sequence or past a tile's features reaches no gradient of a weight."""
    chosen = parts.Mapped("log(x**2)"), parts.Projection(9, bias=True), parts.Mapped("1/x")
    of = layer((*chosen, parts.Projection(10)), 9)
    call = Call(of, module(runner, of), (1, 19, 1), runner.dtypes[0], runner.device)
    dy = call.values(1, 19, 1, 10, salt=1)
    assert all(x.isfinite().all() for x in call.run(dy)[1])


def test_what_is_not_finite_stays_in_its_token(runner: Runner) -> None:
    of = shipped("hedgehog_qk64_v64")
    call = Call(of, module(runner, of), (1, 22, 2), runner.dtypes[0], runner.device)
    x, *read = call.x(), *call.parameters()
    spoilt = x.clone()
    spoilt[0, 5, 1, 3], spoilt[0, 20, 0] = math.nan, math.inf
    dy = call.values(1, 22, 2, of.features, salt=1)
    there = torch.ones(1, 22, 2, dtype=torch.bool, device=x.device)
    there[0, 5, 1] = there[0, 20, 0] = False
    for function, first in ((call.module.forward, ()), (call.module.backward, (dy,))):
        found, want = function(*first, spoilt, *read), function(*first, x, *read)
        found, want = (y[0] if isinstance(y, tuple) else y for y in (found, want))
        same_numbers(found[there], want[there], rtol=0, atol=0)
        assert found[~there].isnan().all()


def test_the_same_bits_again_and_alone(runner: Runner) -> None:
    """Sums for parameters have an order; features of a token depend on nothing else."""
    of = shipped("t2r_qk64_v64")
    call = Call(of, module(runner, of), (2, 34, 1), runner.dtypes[0], runner.device)
    dy = call.values(2, 34, 1, of.features, salt=1)
    first, second = call.run(dy), call.run(dy)
    for x, y in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        same_numbers(x, y, rtol=0, atol=0)
    # The products of NumPy, which are the interpreter's, depend on a row's place in its tile on some CPUs.
    start = dict(TILES)["CHUNK"] if interpreting() else 9
    alone = call.module.forward(call.x()[1:, start:30], *call.parameters())
    if runner.backend != "torch":  # whose products depend on their sizes
        same_numbers(alone, first[0][1:, start:30], rtol=0, atol=0)


def test_what_is_no_tile_program_says_why() -> None:
    wide = layer((parts.Projection(128), parts.Projection(128)), 64)
    with pytest.raises(NoTile, match=f"more than {MOST_WEIGHTS} numbers"):
        wide.programs()
    rolled = layer((parts.Signs(), parts.RolledProducts()), 128)
    with pytest.raises(NoTile, match=f"matrices have more than {MOST_NUMBERS} numbers"):
        rolled.programs()
    with pytest.raises(NoTile, match="more than 16 groups"):
        layer((parts.Softmax(32),), 64).programs()
    branches = (parts.Signs(),), (parts.Projection(32),)
    with pytest.raises(NoTile, match="other pieces"):
        layer((parts.Branches("add", branches),), 16).programs()


# Calls of layers

KERNELS = pytest.mark.skipif(not interpreting() and not torch.cuda.is_available(), reason="Triton cannot run")


def variant(name: str) -> FeaturedVariant:
    op = based_ops.get(name)
    assert isinstance(op, FeaturedVariant)
    return op


def drawn(
    op: FeaturedVariant, length: int, heads: int = 2, batch: int = 2
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Any]]:
    """q, k and v in float32, parameters that have moved, and the options that have Triton make features."""
    device = "cpu" if interpreting() else "cuda"
    torch.manual_seed(length)
    widths = (op.qk, op.qk, op.v)
    inputs = [torch.randn(batch, length, heads, width, device=device) for width in widths]
    made = op.init_parameters(heads, device=device)
    moved = {n: x.detach() + 0.1 * torch.randn_like(x) for n, x in made.items() if x.requires_grad}
    given = made | {n: x.requires_grad_() for n, x in moved.items()}
    return inputs, given, {"parameters": given, "backend": "triton"}


CLOSE = {"rtol": 2e-3, "atol": 2e-4}


@KERNELS
@pytest.mark.parametrize("name", SHIPPED)
def test_calls_and_gradients(name: str) -> None:
    op = variant(name)
    inputs, p, options = drawn(op, 19, batch=1)
    rates = {}
    if op.spec.corrects:
        rates["beta"] = torch.rand_like(inputs[0][..., 0])
    if op.spec.decay == "token":
        rates["g"] = -torch.rand_like(inputs[0][..., 0])
    for x in (*inputs, *rates.values()):
        x.requires_grad_()
    leaves = [*inputs, *rates.values(), *(x for x in p.values() if x.requires_grad)]
    o, _ = op(*inputs, **rates, **options)
    want = op.reference(*inputs, **rates, parameters=p)
    assert_close("o", o, want, FORWARD[torch.float32])
    direction = torch.randn_like(o)
    found, wanted = (torch.autograd.grad((x * direction).sum(), leaves) for x in (o, want))
    for x, y in zip(found, wanted, strict=True):
        assert_close("gradient", x, y, BACKWARD[torch.float32].loosened(10), floor=direction)


@KERNELS
@pytest.mark.parametrize("name", ["hedgehog_qk64_v64", "cosformer_qk64_v64"])
@torch.no_grad()
def test_pieces_steps_padding_and_packing(name: str) -> None:
    op = variant(name)
    (q, k, v), p, options = drawn(op, 17)
    o, final = op(q, k, v, output_final_state=True, **options)
    first, state = op(q[:, :9], k[:, :9], v[:, :9], output_final_state=True, **options)
    second = op.step(q[:, 9:], k[:, 9:], v[:, 9:], state, **options)
    same_numbers(torch.cat([first, second], 1), o, **CLOSE)
    for x, y in zip(state, final, strict=True):
        same_numbers(x, y, **CLOSE)

    mask = torch.ones(2, 20, dtype=torch.bool, device=q.device)
    mask[0, :3] = mask[1, 17:] = False
    padded = [torch.full((2, 20, *x.shape[2:]), math.nan, device=x.device) for x in (q, k, v)]
    for x, whole in zip((q, k, v), padded, strict=True):
        whole[0, 3:], whole[1, :17] = x[0], x[1]
    got, _ = op(*padded, attention_mask=mask, **options)
    same_numbers(torch.stack([got[0, 3:], got[1, :17]]), o, **CLOSE)

    laid = [x.flatten(0, 1).unsqueeze(0) for x in (q, k, v)]
    edges = torch.tensor([0, 9, 17, 17, 34], device=q.device)
    got, _ = op(*laid, cu_seqlens=edges, **options)
    same_numbers(got[0, :9], first[0], **CLOSE)
    same_numbers(got[0, 17:], o[1], **CLOSE)


@KERNELS
def test_grouped_heads_and_slots() -> None:
    op = variant("t2r_qk64_v64")
    (q, _, _), p, options = drawn(op, 9, heads=2)
    k, v = (torch.randn_like(q)[:, :, :1] for _ in range(2))
    p = {n: x[:1] if n.startswith("key") else x for n, x in p.items()}
    options["parameters"] = p
    same_numbers(op(q, k, v, **options)[0], op.reference(q, k, v, parameters=p), **CLOSE)
    with torch.no_grad():
        pool = op.init_state(3, 1, device=q.device)
        slots = torch.tensor([2, -1], dtype=torch.int32, device=q.device)
        for t in range(2):
            now = (x[:, t : t + 1] for x in (q, k, v))
            o = op.step(*now, pool, state_indices=slots, **options)
        same_numbers(o[0, 0], op.reference(q, k, v, parameters=p)[0, 1], **CLOSE)
        assert not o[1].any() and not pool[0][:2].any()


@KERNELS
def test_transforms() -> None:
    op = variant("t2r_qk64_v64")
    (q, k, v), p, options = drawn(op, 5, heads=1, batch=1)
    several = torch.stack([q, -q])
    mapped = torch.vmap(lambda q: op(q, k, v, **options)[0])(several)
    same_numbers(mapped[1], op(-q, k, v, **options)[0], **CLOSE)

    def loss(p: dict[str, Tensor], q: Tensor) -> Tensor:
        o: Tensor = op(q, k, v, parameters=p, backend="triton")[0]
        return o.square().sum()

    found = torch.func.grad(loss)({n: x.detach() for n, x in p.items()}, q)
    want = torch.autograd.grad(loss(p, q), list(p.values()))
    for x, y in zip(found.values(), want, strict=True):
        same_numbers(x, y, **CLOSE)


@KERNELS
def test_compiled() -> None:
    op = variant("hedgehog_qk64_v64")
    inputs, p, options = drawn(op, 5, heads=1, batch=1)
    leaves = list(p.values())

    def loss(*given: Tensor) -> Tensor:
        o: Tensor = op(*given, **options)[0]
        return o.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, want = (torch.autograd.grad(f(*inputs), leaves) for f in (compiled, loss))
    for x, y in zip(found, want, strict=True):
        same_numbers(x, y, **CLOSE)


@KERNELS
def test_padding_has_no_part_in_gradients_of_parameters() -> None:
    op = variant("t2r_qk64_v64")
    inputs, p, options = drawn(op, 6, heads=1, batch=1)
    padded = [torch.cat([x, torch.full_like(x, math.nan)], 1) for x in inputs]
    mask = torch.arange(12, device=inputs[0].device)[None] < 6
    o, _ = op(*padded, attention_mask=mask, **options)
    want, _ = op(*inputs, **options)
    leaves = list(p.values())
    found, wanted = (torch.autograd.grad(x.square().sum(), leaves) for x in (o, want))
    for x, y in zip(found, wanted, strict=True):
        same_numbers(x, y, **CLOSE)


@KERNELS
def test_queries_and_keys_of_other_dtypes_are_refused() -> None:
    op = variant("cosformer_qk64_v64")
    (q, k, v), _, options = drawn(op, 3, heads=1, batch=1)
    for tensors in ((q, k.double(), v), (q.bfloat16(), k, v)):
        with pytest.raises(based_ops.errors.DtypeError, match="^k: got"):
            op(*tensors, **options)
    o, _ = op(q[:, :0], k[:, :0], v[:, :0], **options)
    assert o.shape == (1, 0, 1, 64)


def test_layers_say_who_makes_their_features() -> None:
    for name in SHIPPED:
        assert repr(variant(name)).endswith("; features by kernels>")
        assert variant(name).makers


@KERNELS
@torch.no_grad()
def test_the_same_bits_in_any_batch() -> None:
    op = variant("hedgehog_qk64_v64")
    (q, k, v), _, options = drawn(op, 18)
    both, _ = op(q, k, v, batch_invariant=True, **options)
    alone, _ = op(q[1:], k[1:], v[1:], batch_invariant=True, **options)
    same_numbers(both[1:], alone, rtol=0, atol=0)
    with pytest.raises(based_ops.errors.ArgumentValueError, match="are made by PyTorch"):
        op(q, k, v, batch_invariant=True, **options | {"backend": "torch"})
