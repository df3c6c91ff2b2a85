"""Calls and layers whose q, k and v have different numbers of heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export
from torch.testing import assert_close

import based_ops
from based_ops import errors
from based_ops.layers import LinearAttention, SlidingWindowAttention
from based_ops.variant import Variant

NAMES = (
    "taylor2_qk16_v64",
    "retention_qk64_v64",
    "simple_gla_qk64_v64",
    "window16_d64",
    "hybrid_taylor2_qk16_v64_w64",
)
GROUPS = ((6, 2, 2), (1, 1, 4), (6, 2, 3), (2, 4, 1))
"""Heads of q, k and v: grouped queries, grouped values, k and v that do not divide each other, and keys."""
STATES = {(6, 2, 2): 2, (1, 1, 4): 4, (6, 2, 3): 6, (2, 4, 1): 4}
F64 = torch.float64


@pytest.fixture(params=NAMES)
def op(request: pytest.FixtureRequest) -> Variant:
    return based_ops.get(request.param)


@pytest.fixture(params=GROUPS, ids=str)
def heads(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


def inputs(op: Variant, heads: tuple[int, int, int], length: int = 37, batch: int = 2) -> list[Tensor]:
    """q, k and v, and g of a layer that fades."""
    torch.manual_seed(0)
    widths = (op.qk, op.qk, op.v)
    found = [torch.randn(batch, length, n, d, dtype=F64) for n, d in zip(heads, widths, strict=True)]
    shape = {"head": (STATES[heads],), "token": (batch, length, STATES[heads])}.get(
        getattr(op.spec, "decay", "none")
    )
    return found if shape is None else [*found, -torch.rand(shape, dtype=F64)]


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def loss(o: Tensor, state: Any) -> Tensor:
    ends = (x.sin().sum() for x in state if x is not None and x.is_floating_point())
    return sum(ends, start=o.sin().sum())


def tokens(tensors: list[Tensor], start: int, stop: int) -> list[Tensor]:
    return [x[:, start:stop] if x.dim() > 1 else x for x in tensors]


def test_a_call_is_its_reference(op: Variant, heads: tuple[int, int, int]) -> None:
    given, same = leaves(inputs(op, heads)), leaves(inputs(op, heads))
    o, state = op(*given, output_final_state=True)
    wanted, final = op.reference(*same, output_final_state=True)
    assert o.shape == (2, 37, max(heads), op.v)
    assert all(x is None or x.shape[1] == STATES[heads] for x in state)
    assert_close(o, wanted)
    assert_close([x for x in state if x is not None], [x for x in final if x is not None])
    pairs = torch.autograd.grad(loss(o, state), given), torch.autograd.grad(loss(wanted, final), same)
    for found, exact in zip(*pairs, strict=True):
        assert_close(found, exact)


def test_pieces_and_steps_are_the_whole(op: Variant, heads: tuple[int, int, int]) -> None:
    given = inputs(op, heads)
    with torch.no_grad():
        whole, end = op(*given, output_final_state=True)
        first, state = op(*tokens(given, 0, 20), output_final_state=True)
        second, after = op(*tokens(given, 20, 37), initial_state=state, output_final_state=True)
        assert_close(torch.cat([first, second], 1), whole)
        steps = []
        for t in range(20, 37, 5):
            q, k, v, *g = tokens(given, t, min(t + 5, 37))
            steps.append(op.step(q, k, v, state, *g))
        assert_close(torch.cat([first, *steps], 1), whole)
        for found in (after, state):
            assert_close([x for x in found if x is not None], [x for x in end if x is not None])
        other = op.init_state(2, STATES[heads], dtype=F64)
        q, k, v, *g = tokens(given, 0, 1)
        assert_close(op.step(q, k, v, other, *g), whole[:, :1])


def test_slots(op: Variant, heads: tuple[int, int, int]) -> None:
    given, indices = inputs(op, heads, 9), torch.tensor([3, -1], dtype=torch.int32)
    pool, state = op.init_state(4, STATES[heads], dtype=F64), op.init_state(2, STATES[heads], dtype=F64)
    for t in range(0, 9, 4):
        q, k, v, *g = tokens(given, t, min(t + 4, 9))
        found = op.step(q, k, v, pool, *g, state_indices=indices)
        assert_close(found[:1], op.step(q, k, v, state, *g)[:1])
        assert not found[1].any()
    for part, x in zip(pool, state, strict=True):
        assert part is None or (torch.equal(part[3], x[0]) and not part[:3].any())


def test_nothing_to_do(op: Variant, heads: tuple[int, int, int]) -> None:
    given = inputs(op, heads, 9)
    for cut in (tokens(given, 0, 0), [x[:0] if x.dim() > 1 else x for x in given]):
        cut = leaves(cut)
        o, state = op(*cut, output_final_state=True)
        assert o.shape == (*cut[0].shape[:2], max(heads), op.v)
        assert all(x is None or x.shape[:2] == (cut[0].shape[0], STATES[heads]) for x in state)
        for x, gradient in zip(cut, torch.autograd.grad(o.sum(), cut), strict=True):
            assert gradient.shape == x.shape and not gradient.any()


def test_operators_are_right(op: Variant, heads: tuple[int, int, int]) -> None:
    carried = [None] * len(op.signature.carried)
    asked = [True] if op.signature.final else []
    arguments = (*leaves(inputs(op, heads, 5)), 0.5, *carried, *asked, "torch")
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op.operators.forward, arguments, test_utils=tests)


def test_compiled_and_exported() -> None:
    op = based_ops.get("taylor2_qk16_v64")
    given = [x.float() for x in inputs(op, GROUPS[0])]

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return op(q, k, v)[0]

    wanted = op(*given)[0]
    compiled = torch.compile(Model(), backend="aot_eager", fullgraph=True, dynamic=True)
    assert_close(compiled(*given), wanted)
    length = Dim("length", min=2, max=512)
    program = export(Model(), tuple(given), dynamic_shapes=({1: length},) * 3).module()
    assert_close(program(*given), wanted)
    shorter = [x[:, :11] for x in given]
    assert_close(program(*shorter), op(*shorter)[0])


def test_decays_have_the_heads_of_the_state() -> None:
    op = based_ops.get("retention_qk64_v64")
    q, k, v, g = inputs(op, GROUPS[0])
    with pytest.raises(errors.ShapeError, match=r"^g: .* of shape \[2\]"):
        op(q, k, v, g.repeat_interleave(3))


@pytest.mark.parametrize(
    "name", ["taylor2_qk16_v64", "simple_gla_qk64_v64", "retention_qk64_v64", "window16_d64"]
)
def test_layers_share_heads(name: str) -> None:
    """A layer with fewer heads of keys and values is one whose projections repeat them."""
    kind = SlidingWindowAttention if name.startswith("window") else LinearAttention
    torch.manual_seed(0)
    layer = kind(24, 6, name, dtype=F64, kv_heads=2)
    plain = kind(24, 6, name, dtype=F64)
    assert "kv_heads=2" in repr(layer) and "kv_heads" not in repr(plain)

    def repeated(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1)

    weights = {key: x if key[0] in "qo" else repeated(x) for key, x in layer.state_dict().items()}
    plain.load_state_dict(weights)
    x = torch.randn(2, 21, 24, dtype=F64)
    with torch.no_grad():
        wanted, _ = plain(x)
        first, state = layer(x[:, :9], output_state=True)
        second, state = layer(x[:, 9:15], state, output_state=True)
        steps = [layer.step(x[:, t : t + 3], state) for t in range(15, 21, 3)]
        assert_close(torch.cat([first, second, *steps], 1), wanted)
    assert sum(part.nbytes for part in layer.init_state(2) if part is not None) == layer.state_bytes(2)
    assert layer.state_bytes(2) * 3 == plain.state_bytes(2)


def test_layers_of_heads_that_do_not_divide() -> None:
    with pytest.raises(
        errors.ArgumentValueError, match="^kv_heads: got 4, must be a divisor of heads, 6, such as 3"
    ):
        LinearAttention(24, 6, "taylor2_qk16_v64", kv_heads=4)
