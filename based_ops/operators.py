"""The operators of a variant as they follow from its layer's signature: what they do, their fakes, gradients.

A mixer says what its operators take and give (`codegen.spec.signature`) and nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from based_ops.codegen.spec.signature import Argument

from . import slots
from .admission import checked
from .operands import Operands, dtype_of
from .ops import Ops, below_autograd, call, derive, derive_backward, derive_step, launch
from .tracing import is_traced


def define(ops: Ops) -> None:
    """Defines forward, backward and step."""
    for which in ops.record.schemas:
        ops.define(which, _implementation(ops, which), _fake(ops, which))
    derive(ops, "forward", _Forward)
    derive_backward(ops)
    if "step" in ops.record.schemas:
        derive_step(ops)


def _implementation(ops: Ops, which: str) -> Callable[..., Any]:
    """What an operator does everywhere: it calls the generated function of its pass."""
    kernels, admission = ops.kernels, ops.admission
    taken: Operands | None = None
    place, count = 0, 0

    def run(*arguments: Any) -> Any:
        nonlocal taken, place, count
        if taken is None:  # what a layer's operators take is not asked for before the first call
            taken = admission.operands[which]
            place, count = taken.kernel, len(taken.entries)
        if len(arguments) < count:
            arguments = taken.filled(arguments)
        kernel = arguments[place]
        if checked.tensor is arguments[0]:
            checked.tensor = None
        else:
            kernel = admission.kernel(which, *arguments)
        passed = [*arguments]
        # Plain loops: a function for each tensor would take as long as all else that an operator does.
        for i in taken.strided:
            x = passed[i]
            if x is not None and not (x.is_contiguous() or x.stride(-1) == 1):
                passed[i] = x.contiguous()
        for i in taken.packed:
            x = passed[i]
            if x is not None:
                passed[i] = x.contiguous()
        del passed[place]
        function = getattr(kernels[kernel], which)
        if taken.writes and passed[-1] is not None:
            function = partial(slots.step, function, taken.written)
        return launch(function, arguments[taken.lead], passed)

    return run


def _fake(ops: Ops, which: str) -> Callable[..., Any]:
    """The operator without data: the same check, and empty results."""

    def fake(*arguments: Any) -> Any:
        layer, signature = ops.record.layer, ops.signature
        taken = ops.admission.operands[which]
        arguments = taken.filled(arguments)
        sizes = ops.admission.traced(which, *arguments)
        lead = arguments[taken.lead]

        def empty(x: Argument, there: bool = True) -> Tensor:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in x.dims]
            dtype = dtype_of(layer, x.dtype, lead.dtype)
            return lead.new_empty(shape if there and x.present else (0,), dtype=dtype)

        if which == "step":
            return empty(signature.output)
        if which == "forward":
            asked = bool(signature.final) and arguments[taken.kernel - 1]
            found = [empty(x) for x in (signature.output, *signature.kept)]
            found += [empty(x, asked) for x in signature.final]
        else:
            found = [empty(x, arguments[taken.named(x.name)] is not None) for x in signature.differentiable]
        return found[0] if len(found) == 1 else tuple(found)

    return fake


class _Forward(torch.autograd.Function):
    """The derivative of a forward operator: its backward operator."""

    @staticmethod
    def forward(ctx: Any, ops: Ops, keyset: Any, *arguments: Any) -> Any:
        signature, taken = ops.signature, ops.admission.operands["forward"]
        results = below_autograd(ops.forward, keyset, *arguments)
        output, *others = results if isinstance(results, tuple) else (results,)
        kept, final = others[: len(signature.kept)], others[len(signature.kept) :]
        inputs, numbers, carried = _apart(ops, arguments)
        behind = arguments[taken.kernel + 1 :]
        places, promised = behind[: signature.packs], behind[signature.packs :]
        read = [output, *kept] if signature.keeps_output else kept
        ctx.save_for_backward(*inputs, *read, *carried, *places)
        ctx.ops, ctx.numbers, ctx.kernel, ctx.promised = ops, numbers, arguments[taken.kernel], promised
        asked = bool(final) and arguments[taken.kernel - 1]
        ctx.output_shape, ctx.final_shapes = output.shape, [x.shape for x in final] if asked else None
        ctx.mark_non_differentiable(*kept, *(() if asked else final))
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        ops, signature = ctx.ops, ctx.ops.signature
        layer, saved = ops.record.layer, ctx.saved_tensors
        inputs, rest = saved[: len(signature.inputs)], saved[len(signature.inputs) :]
        places = rest[len(rest) - signature.packs :]
        read = rest[: len(rest) - len(signature.carried) - len(places)]
        carried = rest[len(read) : len(rest) - len(places)]
        d_final = list(others[len(signature.kept) :])
        of_others = (None,) * (bool(d_final) + 1 + len(places) + len(ctx.promised))
        if d_output is None and all(x is None for x in d_final):
            return (None,) * (2 + len(inputs) + len(ctx.numbers) + len(carried)) + of_others
        if d_output is None:
            dtype = dtype_of(layer, signature.output.dtype, inputs[0].dtype)
            d_output = inputs[0].new_zeros(ctx.output_shape, dtype=dtype)
        if any(x is not None for x in d_final):
            # Kernels take the gradients of a final state together or not at all.
            for place, (part, shape) in enumerate(zip(signature.final, ctx.final_shapes, strict=True)):
                if not part.present:
                    d_final[place] = None
                elif d_final[place] is None:
                    dtype = dtype_of(layer, part.dtype, inputs[0].dtype)
                    d_final[place] = inputs[0].new_zeros(shape, dtype=dtype)
        ready = ctx.kernel in ops.kernels and not is_traced()
        behind = (*places, *ctx.promised)
        arguments = (d_output, *d_final, *inputs, *read, *ctx.numbers, *carried, ctx.kernel, *behind)
        results = call(ops.backward, ready, arguments)
        gradients = iter(results if isinstance(results, tuple) else (results,))

        def of(arguments: Sequence[Argument], given: Sequence[Tensor | None]) -> list[Tensor | None]:
            found = [next(gradients) if x.differentiable else None for x in arguments]
            return [None if x is None else d for d, x in zip(found, given, strict=True)]

        of_inputs = of(signature.inputs, inputs)
        of_carried = of(signature.carried, carried)
        of_numbers = (None,) * len(ctx.numbers)
        return None, None, *of_inputs, *of_numbers, *of_carried, *of_others


def _apart(ops: Ops, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Inputs, numbers and what is carried of the arguments of a forward operator."""
    signature = ops.signature
    ends = len(signature.inputs), len(signature.numbers), len(signature.carried)
    first, second = ends[0], ends[0] + ends[1]
    return arguments[:first], arguments[first:second], arguments[second : second + ends[2]]
