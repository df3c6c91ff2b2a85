"""Any call of any shipped layer: options drawn together, against naive mathematics.

Each option has tests of its own; these are for what happens where options meet.  In float64, so that a
difference is a fault and no rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import based_ops
from based_ops.codegen.spec.signature import Argument
from based_ops.heads import multiple
from based_ops.variant import Variant
from tests.runtime.conftest import NAMES as ALONE
from tests.runtime.conftest import attends

from .inputs import names_of

NAMES = [name for name in ALONE if based_ops.get(name).unit == "H"]
INTEGERS = (torch.int32, torch.int64)
EXAMPLES = 200
F64 = torch.float64


@dataclass(frozen=True)
class Call:
    """What a call is given, in the order of the layer's signature, and by name."""

    op: Variant
    inputs: tuple[Tensor, ...]
    options: dict[str, Any]
    sequences: int
    """How many states it starts from and ends with."""
    heads: int
    """Those of a state."""

    def named(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What calls are given, by name."""
        return named(self.op, inputs)

    def state(self, seed: int) -> Any:
        """A state after some tokens."""
        sizes = {"B": self.sequences, "T": 20, "Tk": 20}
        earlier = self.op.signature.alike(self.heads) | sizes
        generator = torch.Generator().manual_seed(seed)
        inputs = [drawn(x, earlier, generator) for x in self.op.signature.inputs if x.present]
        return self.op.reference(**self.named(inputs), output_final_state=True)[1]


def named(op: Variant, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    names = [name for name, x in zip(names_of(op), op.signature.inputs, strict=True) if x.present]
    return dict(zip(names, inputs, strict=True))


def takes_scales(op: Variant) -> bool:
    """Whether the scale may be a tensor."""
    if not attends(op.name):
        return False
    feature_map = getattr(op.spec, "feature_map", None)
    return feature_map is None or feature_map.kind != "elementwise" or not op.spec.normalize


def drawn(x: Argument, sizes: dict[str, Any], generator: torch.Generator) -> Tensor:
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in x.dims]
    numbers = torch.randn(shape, generator=generator, dtype=F64)
    if x.corrects:
        return numbers.sigmoid()
    return -numbers.abs() / 4 if x.fades else numbers.abs() + 0.1 if x.weighs or x.multiplies else numbers


@st.composite
def calls(draw: st.DrawFn) -> Call:
    op = based_ops.get(draw(st.sampled_from(NAMES)))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 90))
    options: dict[str, Any] = {}
    sequences = batch
    form = draw(st.sampled_from(["plain", "packed", "padded"]))
    if form == "packed":
        batch, sequences = 1, draw(st.integers(1, 4))
        cuts = sorted(draw(st.lists(st.integers(0, length), min_size=sequences, max_size=sequences)))
        options["cu_seqlens"] = torch.tensor([0, *cuts], dtype=draw(st.sampled_from(INTEGERS)))
    elif form == "padded":
        ends = [sorted(draw(st.tuples(st.integers(0, length), st.integers(0, length)))) for _ in range(batch)]
        places = torch.arange(length)
        options["attention_mask"] = torch.stack([(places >= a) & (places < b) for a, b in ends])
    sizes = op.signature.alike(largest := draw(st.sampled_from([1, 2, 4])))
    if op.signature.parts and draw(st.booleans()):
        divisors = st.sampled_from([n for n in (1, 2, 4) if largest % n == 0])
        sizes |= {part: draw(divisors) for part in op.signature.parts}
        whole = multiple([sizes[part] for part in op.signature.parts])
        sizes |= {name: multiple([sizes[p] for p in parts]) for name, parts in op.signature.groups.items()}
        sizes |= {op.unit: whole} if op.unit in sizes else {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if takes_scales(op) and draw(st.booleans()):
        heads_of_queries = sizes[op.signature.lead.dims[2]]
        options["scale"] = torch.rand(heads_of_queries, generator=generator, dtype=F64) + 0.1
    sizes |= {"B": batch, "T": length, "Tk": length}
    inputs = tuple(drawn(x, sizes, generator) for x in op.signature.inputs if x.present)
    return Call(op, inputs, options, sequences, sizes[op.signature.unit_of_state])


def parts(state: Any) -> list[Tensor]:
    return [] if state is None else [x for x in state if x is not None]


def same(actual: Any, expected: Any) -> None:
    for got, want in zip(parts(actual), parts(expected), strict=True):
        assert_close(got, want, rtol=1e-7, atol=1e-9)


@settings(max_examples=EXAMPLES)
@given(call=calls(), data=st.data())
def test_calls(call: Call, data: st.DataObject) -> None:
    """Outputs, final states, and gradients by all that was given."""
    initial = call.state(data.draw(st.integers(0, 99))) if data.draw(st.booleans(), "initial state") else None
    final = data.draw(st.booleans(), "final state")
    weights = None
    found = []
    for run in (call.op, call.op.reference):
        inputs = [x.clone().requires_grad_() for x in call.inputs]
        state = initial
        if initial is not None:
            leaves = [x if x is None else x.clone().requires_grad_(x.is_floating_point()) for x in initial]
            state = type(initial)(*leaves)
        result = run(**call.named(inputs), initial_state=state, output_final_state=final, **call.options)
        o, end = result if isinstance(result, tuple) else (result, None)
        outputs = [x for x in (o, *parts(end)) if x.is_floating_point()]
        # Slots of a ring to which nothing has been written are 0, and have no gradient worth asking for.
        weights = weights or [torch.randn_like(x) * (x != 0) for x in outputs]
        sought = [*inputs, *(x for x in parts(state) if x.is_floating_point())]
        # Naive mathematics forgets inputs that no sequence has.
        loss = sum((x * 0).sum() for x in sought)
        loss += sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        found.append((o, end, torch.autograd.grad(loss, sought, allow_unused=True, materialize_grads=True)))
    (o, end, gradients), (exact, exact_end, wanted) = found
    assert_close(o, exact, rtol=1e-7, atol=1e-9)
    same(end, exact_end)
    for got, want in zip(gradients, wanted, strict=True):
        assert_close(got, want, rtol=1e-6, atol=1e-8)


@settings(max_examples=EXAMPLES // 2)
@given(call=calls(), data=st.data())
def test_pools(call: Call, data: st.DataObject) -> None:
    """Slots of a pool are read and written where they are named, and nowhere else."""
    count = call.sequences
    slots = data.draw(st.permutations(range(count + 2)), "slots")[:count]
    indices = torch.tensor(
        [data.draw(st.sampled_from([slot, slot, -1])) for slot in slots], dtype=torch.int32
    )
    states = call.state(3)
    pool = call.op.init_state(count + 2, call.heads, dtype=F64)
    there = indices >= 0
    for part, given_part in zip(parts(pool), parts(states), strict=True):
        part[indices[there].long()] = given_part[there].to(part.dtype)
    before = type(pool)(*(x if x is None else x.clone() for x in pool))
    with torch.no_grad():
        o, end = call.op(
            **call.named(call.inputs),
            initial_state=pool,
            output_final_state=True,
            state_indices=indices,
            **call.options,
        )
        exact, ends = call.op.reference(
            **call.named(call.inputs), initial_state=states, output_final_state=True, **call.options
        )
    assert end is pool
    for part, old, want in zip(parts(pool), parts(before), parts(ends), strict=True):
        others = [i for i in range(count + 2) if i not in indices.tolist()]
        assert torch.equal(part[others], old[others])
        assert_close(part[indices[there].long()], want[there].to(part.dtype), rtol=1e-7, atol=1e-9)
    if not call.options:
        assert_close(o[there], exact[there], rtol=1e-7, atol=1e-9)
        assert not o[~there].any()


@settings(max_examples=EXAMPLES // 2)
@given(call=calls(), data=st.data())
def test_steps(call: Call, data: st.DataObject) -> None:
    """Steps of one token and of several are the call."""
    if call.options:
        return
    length = min(call.inputs[0].shape[1], 20)
    moving = ["T" in x.dims or "Tk" in x.dims for x in call.op.signature.inputs if x.present]
    inputs = [x[:, :length] if m else x for x, m in zip(call.inputs, moving, strict=True)]
    state = call.state(5)
    start = type(state)(*(x if x is None else x.clone() for x in state))
    outputs, done = [], 0
    while done < length:
        more = min(length - done, data.draw(st.sampled_from([1, 1, 2, 5, 16])))
        piece = [x[:, done : done + more] if m else x for x, m in zip(inputs, moving, strict=True)]
        with torch.no_grad():
            outputs.append(call.op.step(**call.named(piece), state=state))
        done += more
    exact, end = call.op.reference(**call.named(inputs), initial_state=start, output_final_state=True)
    assert_close(torch.cat(outputs, 1), exact, rtol=1e-7, atol=1e-9)
    same(state, end)
