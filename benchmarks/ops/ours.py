"""This library's backends as contenders, and the check of what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from based_ops.codegen.spec.signature import OF_QUERIES, Argument
from based_ops.dispatch import BACKENDS
from based_ops.inputs import taken, tokens
from based_ops.tolerance import BACKWARD, CORRECTED, FORWARD, errors
from based_ops.verify import NOISE

from .contender import Call, Contender, Results
from .inputs import Inputs, named
from .works import Entry, Work

PIECE = 1024
"""Tokens of which the naive mathematics is taken at once; longer sequences hand on their state."""


@dataclass(frozen=True)
class Ours(Contender):
    """One backend, by its name."""

    by: str

    def takes(self, work: Work) -> bool:
        return True

    def why_not(self, entry: Entry, device: str) -> str | None:
        """Why this backend is not measured on a line; None if it is."""
        work = entry.work
        if device == "cpu" and self.by != "torch":
            return "not run: on a CPU this backend is for checking"
        if device == "cuda" and self.by != "triton" and (entry.sweep or work.clock != "device"):
            return "not run: on a GPU this backend is measured in the table's calls only"
        return next(s for s in work.op.backends(device, work.torch_dtype) if s.name == self.by).reason

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        """A call of the work: the output, or the gradients of all inputs."""
        op, by, state, kept = work.op, self.by, inputs.state, work.state
        if work.task == "step":
            token = named(op, inputs.leaves)
            return lambda: (op.step(state=state, **token, backend=by),)
        given, options = _laid(work, inputs.leaves)
        options |= {"initial_state": state, "output_final_state": kept, "backend": by}
        options |= {"parameters": inputs.parameters} if inputs.parameters else {}
        shape = work.shape(op.signature.output)
        if work.task == "forward":
            return lambda: (op(**given, **options)[0].view(shape),)

        def train() -> Results:
            o, _ = op(**given, **options)
            leaves = (*inputs.leaves, *inputs.learned)
            return torch.autograd.grad(o.view(shape), leaves, inputs.weight)[: len(inputs.leaves)]

        return train


def _laid(work: Work, leaves: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inputs of a call in the form of the work, and what else it is given."""
    if work.form == "batch invariant":
        return named(work.op, leaves), {"batch_invariant": True}
    if work.form in ("dense", "featured"):
        return named(work.op, leaves), {}
    numbers = torch.arange(work.batch + 1, dtype=torch.int32, device=leaves[0].device)
    packed = [
        x.flatten(0, 1).unsqueeze(0) if kind.dims[0] == "B" else x
        for x, kind in zip(leaves, taken(work.op), strict=True)
    ]
    return named(work.op, packed), {"cu_seqlens": numbers * work.length}


def backends() -> list[Ours]:
    """Every backend of this library."""
    return [Ours(name) for name in BACKENDS]


def default(work: Work, device: str) -> str:
    """The backend that serves a call which names none."""
    return next(s.name for s in work.op.backends(device, work.torch_dtype) if s.default)


def expected(work: Work, inputs: Inputs) -> Results:
    """What one call must give in its last row, by naive mathematics in float64."""
    training, op = work.task == "training", work.op
    pairs = zip(taken(op), inputs.leaves, strict=True)
    leaves = [_row(work, kind, x).detach().double().requires_grad_(training) for kind, x in pairs]
    state, options = _state_row(inputs.state), {}
    if inputs.parameters:  # those of the last head, but of all where they are not learned
        learned = {name for name, x in op.parameters.items() if x.learned}
        rows = {n: x[-1:] if n in learned else x for n, x in inputs.parameters.items()}
        options = {"parameters": {name: x.detach().double() for name, x in rows.items()}}
    with torch.set_grad_enabled(training):
        parts = []
        for start in range(0, work.length, PIECE):
            piece = named(op, tokens(op, leaves, start, start + PIECE))
            o, state = op.reference(**piece, initial_state=state, output_final_state=True, **options)
            parts.append(o)
        o = torch.cat(parts, dim=1)
    if not training:
        return (o,)
    return torch.autograd.grad(o, leaves, _row(work, op.signature.output, inputs.weight).double())


def fault(work: Work, results: Results, exact: Results) -> str | None:
    """What is wrong with the results of a call; None if they are as near to `exact` as they must be."""
    training, signature = work.task == "training", work.op.signature
    allowed = (BACKWARD if training else FORWARD)[work.torch_dtype]
    if work.corrects:
        allowed = allowed.loosened(CORRECTED)
    noise = NOISE * max(float(x.square().mean().sqrt()) for x in exact) if training else 0.0
    kinds = taken(work.op) if training else [signature.output]
    for kind, got, want in zip(kinds, results, exact, strict=True):
        found = errors(_row(work, kind, got), want, noise)
        if not allowed.allows(found):
            return (
                f"wrong: {'d' if training else ''}{kind.name} has error {found.norm:.2e} (allowed "
                f"{allowed.norm:.0e}), worst element {found.worst:.2e} (allowed {allowed.worst:.0e})"
            )
    return None


def _row(work: Work, kind: Argument, x: Tensor) -> Tensor:
    """What the last head or channel has of a tensor, in the last sequence if no two share an input."""
    last = work.op.signature.alike(1)
    if work.kv_heads:  # with all that share its keys and values
        last |= dict.fromkeys(("H", OF_QUERIES), work.heads // work.kv_heads)
    if all("B" in argument.dims for argument in taken(work.op)):
        last["B"] = 1
    return x[tuple(slice(-last[dim] if dim in last else None, None) for dim in kind.dims)]


def _state_row(state: Any) -> Any:
    """The last head of the last batch of a state, in float64; copied, since a step changes the original."""
    if state is None:
        return None
    rows = (x if x is None else x[-1:, -1:].clone() for x in state)
    return type(state)(*(x.double() if x is not None and x.is_floating_point() else x for x in rows))
