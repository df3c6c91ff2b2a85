"""What each of two processes does for `test_sharding.py`: `python -m tests.runtime.ranks RANK FILE`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.testing import assert_close

import based_ops
from based_ops import errors, invariance, ops
from based_ops.codegen.spec.signature import POOLED
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import state_of, tensors_of
from .test_operators import PASSES, arguments

F64 = torch.float64


def placed(dims: Sequence[Any], sizes: Sequence[str | None]) -> list[Placement]:
    """Where a tensor lies if these sizes are sharded over the dimensions of a mesh."""
    dims = ["H" if dim in ("HQ", "HK", "HV", "HS") else dim for dim in dims]
    return [Shard(dims.index(size)) if size in dims else Replicate() for size in sizes]


def compare(got: Any, want: Any, what: str) -> None:
    assert (got is None) == (want is None), what
    if got is not None:
        assert isinstance(got, DTensor) and got.shape == want.shape, what
        # Parts may be summed in another order, since plans depend on how much there is.
        assert_close(got.full_tensor(), want, rtol=1e-9, atol=1e-9, msg=lambda text: f"{what}: {text}")


def calls(layer: Variant, mesh: Any, sizes: Sequence[str | None], batch: int) -> None:
    """A sequence, its gradients, another that goes on, and a step."""
    signature = layer.signature
    inputs, begun = tensors_of(layer, batch, 9, F64, 3), state_of(layer, batch, F64, 3)

    def run(share: Any) -> list[Any]:
        given = [share(x, tensor) for x, tensor in zip(signature.inputs, inputs, strict=True)]
        parts = [share(x, part) for x, part in zip(signature.state, begun, strict=True)]
        o, first = layer._call(tuple(given), None, None, True, None)
        p, final = layer._call(tuple(given), None, type(begun)(*parts), True, None)
        leaf = [x for x in (*given, *parts) if x is not None and x.requires_grad]
        ends = [x for x in (p, *final) if x is not None and x.requires_grad]
        loss = sum((o.sin().sum(), *(x.sin().sum() for x in ends)), start=0.0)
        gradients = torch.autograd.grad(loss, leaf)
        token = [
            share(x, None if tensor is None else tensor[:, :1] if x.dims[0] == "B" else tensor)
            for x, tensor in zip(signature.inputs, inputs, strict=True)
        ]
        state = type(first)(*[None if x is None else x.detach().clone() for x in first])
        with torch.no_grad():
            y = layer._step(tuple(None if x is None else x.detach() for x in token), None, state, None)
        assert first.variant == final.variant == layer.name
        return [o, p, *first, *final, *gradients, y, *state]

    def whole(_: Any, x: Any) -> Any:
        return x if x is None or not x.is_floating_point() else x.detach().clone().requires_grad_()

    def shared(argument: Any, x: Any) -> Any:
        if x is None:
            return None
        found = distribute_tensor(x.detach().clone(), mesh, placed(argument.dims, sizes))
        return found.requires_grad_() if x.is_floating_point() else found

    for i, (got, want) in enumerate(zip(run(shared), run(whole), strict=True)):
        compare(got, want, f"{layer.name} {sizes} batch {batch}: result {i}")


def operators(layer: Variant, mesh: Any, sizes: Sequence[str | None]) -> None:
    """Operators that are called directly."""
    for which in PASSES:
        for optional in (False, True):
            given = [
                x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for x in arguments(layer, which, optional)
            ]
            taken = ops.of(layer.name).admission.operands[which]
            if taken.indices is not None:
                given[taken.indices] = None
            shared = list(given)
            for place, entry in taken.tensors.items():
                if given[place] is not None:
                    dims = entry.argument.dims if entry.argument.present else (0,)
                    dims = tuple("B" if dim in (POOLED, "N") else dim for dim in dims)
                    shared[place] = distribute_tensor(given[place].clone(), mesh, placed(dims, sizes))
            op = getattr(layer.operators, which)
            got, want = op(*shared), op(*given)
            results = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
            for i, (x, y) in enumerate(results):
                compare(x, y, f"{layer.name} {which} {sizes}: result {i}")
            for place, entry in taken.tensors.items():
                if entry.written and given[place] is not None:
                    compare(shared[place], given[place], f"{layer.name} {which}: {entry.name}")


def compiled(layer: Variant, mesh: Any, sizes: Sequence[str | None]) -> None:
    """What is compiled calls the operators."""
    inputs = tensors_of(layer, 2, 9)

    def run(*inputs: Any) -> Any:
        return layer._call(inputs, None, None, False, None)[0].sin()

    given = [
        None if x is None else distribute_tensor(x, mesh, placed(argument.dims, sizes)).requires_grad_()
        for argument, x in zip(layer.signature.inputs, inputs, strict=True)
    ]
    wanted = [x for x in given if x is not None]
    want = run(*given)
    got = torch.compile(run, backend="aot_eager", fullgraph=True)(*given)
    assert_close(got.full_tensor(), want.full_tensor())
    gradients = [torch.autograd.grad(x.sum(), wanted) for x in (got, want)]
    for x, y in zip(*gradients, strict=True):
        assert_close(x.full_tensor(), y.full_tensor())


def refusals(layer: Variant, mesh: Any) -> None:
    """What cannot be computed where it lies is named, and so is where it lies."""
    signature, unit = layer.signature, layer.unit
    inputs = tensors_of(layer, 2, 8, units=2)
    lead = signature.lead

    def share(placements: dict[str, Placement]) -> tuple[Any, ...]:
        return tuple(
            None if x is None else distribute_tensor(x, mesh, [placements.get(argument.name, Replicate())])
            for argument, x in zip(signature.inputs, inputs, strict=True)
        )

    kind = "heads" if unit == "H" else "channels"
    every = {x.name: Shard(1) for x in signature.inputs if "T" in x.dims}
    second = next((x for x in signature.inputs[1:] if "B" in x.dims and x.present), None)
    partial = DTensor.from_local(inputs[0], mesh, [torch.distributed.tensor.Partial()], run_check=False)
    wrong = [
        (share(every), rf"^{lead.name}: got S.*1.* on dimension 0 of the mesh, must be Shard\(dim=0\), "
         rf"Shard\(dim=2\) or Replicate\(\): batch and {kind} alone shard"),
        ((partial, *share({})[1:]), f"^{lead.name}: got P"),
    ]  # fmt: skip
    if second is not None:  # another input with a batch
        plain = list(share({}))
        place = signature.inputs.index(second)
        plain[place] = inputs[place]
        wrong += [
            (share({lead.name: Shard(0)}), f"^{second.name}: got R.*, must be S.*0.* there, since another"),
            (tuple(plain), f"^{second.name}: got a tensor of one process, must be a DTensor"),
        ]
    for given, text in wrong:
        operator_given = [*given, *[None] * (len(signature.carried))]
        numbers = list(signature.numbers.values())
        asked = [False] if signature.final else []
        direct = [*given, *numbers, *operator_given[len(given) :], *asked, "torch"]
        for call in (
            lambda given=given: layer._call(given, None, None, False, None),
            lambda direct=direct: layer.operators.forward(*direct),
        ):
            try:
                call()
            except errors.PlacementError as error:
                assert re.search(text, str(error)), (text, str(error))
            else:
                raise AssertionError(f"{layer.name}: not refused: {text}")


def groups(layer: Variant, mesh: Any) -> None:
    """Heads in groups: every rank has whole groups, or the call is refused."""
    sharded = [Shard(2)]
    for q_heads, kv_heads, fits in ((4, 2, True), (2, 4, True), (3, 1, False)):
        q, k, v = (
            torch.randn(2, 9, n, d, dtype=F64)
            for n, d in ((q_heads, layer.qk), (kv_heads, layer.qk), (kv_heads, layer.v))
        )
        shared = [distribute_tensor(x.clone(), mesh, sharded).requires_grad_() for x in (q, k, v)]
        whole = [x.requires_grad_() for x in (q, k, v)]
        if not fits:
            for call in (lambda s=shared: layer(*s), lambda s=shared: direct(layer, s)):
                try:
                    call()
                except errors.PlacementError as error:
                    assert re.match("q: got 3 heads, must be a multiple of 2", str(error)), str(error)
                else:
                    raise AssertionError(f"{layer.name}: groups that ranks share are not refused")
            continue
        (o, state), (want, end) = (layer(*x, output_final_state=True) for x in (shared, whole))
        gradients = [torch.autograd.grad(x.sin().sum(), y) for x, y in ((o, shared), (want, whole))]
        pairs = zip((o, *state, *gradients[0]), (want, *end, *gradients[1]), strict=True)
        for i, (got, wanted) in enumerate((*pairs, (direct(layer, shared)[0], want))):
            compare(got, wanted, f"{layer.name} {q_heads} heads of {kv_heads}: result {i}")


def direct(layer: Variant, inputs: Sequence[Any]) -> Any:
    """The forward operator."""
    carried = [None] * len(layer.signature.carried)
    asked = [False] if layer.signature.final else []
    numbers = layer.signature.numbers.values()
    return layer.operators.forward(*inputs, *numbers, *carried, *asked, "torch")


def slots(layer: Variant, mesh: Any) -> None:
    """Indices of slots and masks are refused, not overlooked."""
    inputs = tensors_of(layer, 2, 1)
    given = [None if x is None else distribute_tensor(x, mesh, [Replicate()]) for x in inputs]
    state = state_of(layer, 2)
    try:
        layer._step(tuple(given), None, state, None, torch.zeros(2, dtype=torch.int32))
    except errors.PlacementError as error:
        assert str(error).startswith("state_indices: "), str(error)
    else:
        raise AssertionError(f"{layer.name}: slots are not refused")
    try:
        invariance.call(layer, tuple(given), None, None, False, None)
    except errors.PlacementError as error:
        assert str(error).startswith("batch_invariant: got DTensors"), str(error)
    else:
        raise AssertionError(f"{layer.name}: batch_invariant is not refused")
    if not layer.signature.packs:
        return
    try:
        layer(*given, attention_mask=torch.ones(2, 1, dtype=torch.bool))
    except errors.PlacementError as error:
        assert str(error).startswith("attention_mask: got DTensors"), str(error)
    else:
        raise AssertionError(f"{layer.name}: masks are not refused")


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    line, square = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    for name in every_kind():
        layer = based_ops.get(name)
        torch.manual_seed(0)
        for size in ("B", layer.unit, None):
            for batch in (1, 3):
                calls(layer, line, [size], batch)
            operators(layer, line, [size])
        calls(layer, square, ["B", layer.unit], 2)
        refusals(layer, line)
        slots(layer, line)
    for name in ("taylor2_qk16_v64", "window16_d64"):
        groups(based_ops.get(name), line)
    for name in ("taylor2_qk16_v64", "conv3_silu"):
        layer = based_ops.get(name)
        compiled(layer, line, [layer.unit])
    dist.destroy_process_group()
    print("fine")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
