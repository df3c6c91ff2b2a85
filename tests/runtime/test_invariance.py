"""`batch_invariant=True`: a sequence has the same bits alone and in any batch, packed, padded or neither.

On the torch backend here, and on Triton in another process, which is imported for its interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import based_ops
from based_ops import errors
from based_ops.packed import TOKENS
from based_ops.support.host import forward_plan
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import leaves, names_of, tensors_of

PLAIN = [name for name in every_kind() if hasattr(based_ops.get(name), "_ops")]
LENGTHS = (1, 2, 17)


def moving(layer: Variant) -> list[bool]:
    """Which inputs have tokens."""
    return [x.dims[:2] in TOKENS for x in layer.signature.inputs]


def rows(state: Any, n: int) -> Any:
    return None if state is None else type(state)(*(x if x is None else x[n : n + 1] for x in state))


def run(
    layer: Variant, inputs: list[Tensor | None], state: Any, backend: str, trained: bool, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """What has tokens, and what has states, of the results and of the gradients of a call."""
    given = [x if x is None else x.detach().clone() for x in inputs]
    begun = None if state is None else type(state)(*(x if x is None else x.clone() for x in state))
    asked = [x for x, has in zip(given, moving(layer), strict=True) if x is not None and has]
    of_states = [x for x in leaves(begun or ()) if x.is_floating_point()]
    if trained:
        for x in (*asked, *of_states):
            x.requires_grad_()
    options |= {name: x for name, x in zip(names_of(layer), given, strict=True) if x is not None}
    options |= {"initial_state": begun, "backend": backend}
    o, final = layer(**options, output_final_state=True, batch_invariant=True)
    if not trained:
        return [o], leaves(final)
    floating = [x for x in leaves(final) if x.is_floating_point()]
    loss = sum((x.float() * x.detach().float().cos()).sum() for x in (o, *floating))
    found = torch.autograd.grad(loss, [*asked, *of_states], allow_unused=True, materialize_grads=True)
    ends = [x.detach() for x in leaves(final)]
    return [o.detach(), *found[: len(asked)]], [*ends, *found[len(asked) :]]


def same(got: list[Tensor], want: list[Tensor], what: Any) -> None:
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y), what


def check(
    layer: Variant, backend: str, draw: Any, dtype: torch.dtype, device: str = "cpu", most: int = 3
) -> None:
    """A drawn batch, of at most so many sequences, in one of three forms, against each sequence alone."""
    trained = draw(st.booleans(), "trained")
    count, length, units = (
        draw(st.integers(1, most)),
        draw(st.sampled_from(LENGTHS)),
        draw(st.integers(1, most - 1)),
    )
    forms = ["dense", "packed", "padded"]
    form = draw(st.sampled_from(forms), "form")
    inputs = [x if x is None else x.to(device) for x in tensors_of(layer, count, length, dtype, units)]
    lengths = [length] * count
    if form != "dense":
        lengths = [draw(st.sampled_from((0, 1, length)), "length") for _ in range(count)]
    state = None
    if draw(st.booleans(), "begun"):
        with torch.no_grad():
            past = [x if x is None else x.to(device) for x in tensors_of(layer, count, 5, dtype, units)]
            shared = [x if has else y for x, y, has in zip(past, inputs, moving(layer), strict=True)]
            _, state = layer._call(tuple(shared), None, None, True, backend)
    pairs = [*zip(inputs, moving(layer), strict=True)]
    own = [
        [x if x is None or not has else x[n : n + 1, :size] for x, has in pairs]
        for n, size in enumerate(lengths)
    ]
    options: dict[str, Any] = {}
    together = inputs
    if form == "padded":
        options["attention_mask"] = (torch.arange(length) < torch.tensor(lengths)[:, None]).to(device)
    if form == "packed":
        edges = torch.tensor([0, *lengths]).cumsum(0).to(device)
        options["cu_seqlens"] = edges
        together = [
            x[0] if not has or x[0] is None else torch.cat(x, 1)  # type: ignore[arg-type]
            for x, has in zip(zip(*own, strict=True), moving(layer), strict=True)
        ]
    tokens, states = run(layer, together, state, backend, trained, **options)
    if form == "packed":
        tokens = [torch.nn.utils.rnn.pad_sequence(x[0].split(lengths), batch_first=True) for x in tokens]
    for n, size in enumerate(lengths):
        if size:
            mine, of_state = run(layer, own[n], rows(state, n), backend, trained)
            same([x[n : n + 1, :size] for x in tokens], mine, (form, n))
            same([x[n : n + 1] for x in states], of_state, (form, n, "state"))
            if size == 1 and not trained:
                stepped = rows(state, n) or layer._form.zeros(1, units, device, dtype, False)
                stepped = type(stepped)(*(x if x is None else x.clone() for x in stepped))
                o = layer._step(tuple(own[n]), None, stepped, backend)
                same([o, *leaves(stepped)], [*mine, *of_state], "step")


@pytest.mark.parametrize("name", PLAIN)
@given(data=st.data())
def test_a_sequence_has_its_own_bits(name: str, data: st.DataObject) -> None:
    check(based_ops.get(name), "torch", data.draw, data.draw(st.sampled_from((torch.float32, torch.float64))))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "tilelang"])
@pytest.mark.parametrize("name", PLAIN)
@given(data=st.data())
def test_on_a_gpu(name: str, backend: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    check(based_ops.get(name), backend, data.draw, dtype, "cuda")


def test_without_it_a_batch_is_cut_in_another_way() -> None:
    """On a GPU: few rows are cut into more segments, and so sums are rounded elsewhere."""
    plan = next(iter(based_ops.get("taylor2_qk16_v64")._record.module("torch").SCHEDULE["forward"].values()))
    wide = {**plan, "LONGEST": 1, "SHORTEST": 64, "PROGRAMS": 264, "FEWEST": 2}
    assert forward_plan(8192, 16, **wide) != forward_plan(8192, 256, **wide)


def test_in_compiled_code(variant: Variant) -> None:
    q, k, v = (torch.randn(3, 9, 2, width) for width in (variant.qk, variant.qk, variant.v))
    dims = len(variant._decay_dims)
    g = {"g": -torch.rand(*(3, 9, 2)[3 - dims :])} if dims else {}
    run = partial(variant, batch_invariant=True, output_final_state=True)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    o, final = compiled(q, k, v, **g)
    want, ends = run(q, k, v, **g)
    same([o, *leaves(final)], [want, *leaves(ends)], "compiled")


def test_refused(linear: Variant) -> None:
    q, k, v = (torch.randn(1, 9, 2, width) for width in (linear.qk, linear.qk, linear.v))
    run = partial(linear, cu_seqlens=torch.tensor([0, 4, 9]), batch_invariant=True)
    assert run(q, k, v)[0].shape == v.shape
    with pytest.raises(Exception, match="batch_invariant: got True, must be False in compiled code"):
        torch.compile(run, fullgraph=True, backend="aot_eager")(q, k, v)
    featured = based_ops.get("hedgehog_qk64_v64")
    q, k, v = (torch.randn(1, 9, 2, 64) for _ in "qkv")
    with pytest.raises(errors.ArgumentValueError, match="batch_invariant: .* made by PyTorch"):
        featured(q, k, v, parameters=featured.init_parameters(2), batch_invariant=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_on_triton() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.runtime.test_invariance", *PLAIN],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == PLAIN, run.stderr


def main(layer: Variant) -> None:
    @settings(max_examples=4, deadline=None, database=None, derandomize=True)
    @given(data=st.data())
    def drawn(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16)))
        check(layer, "triton", data.draw, dtype, most=2)

    drawn()
    print(layer.name)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(based_ops.get(name))
