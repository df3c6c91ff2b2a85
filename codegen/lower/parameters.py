"""What generated functions are called with: what their operators take, but for the kernel's name."""

from __future__ import annotations

from dataclasses import replace

from ..ir.host import Extent, Parameter, Pass, Present, wrap
from ..ir.kernels import NUMBER, TRUTH
from ..names import packed
from ..spec.signature import KERNEL, SEQUENCES, Operand, Setting, Signature

KINDS = {"float": NUMBER, "bool": TRUTH}


def parameters(signature: Signature, which: str) -> tuple[Parameter, ...]:
    """Those of the pass `which`; programs call the gradient of the output `d` and its name."""
    taken = signature.operands(which)
    place = taken.index(KERNEL)
    found = [_parameter(x, taken) for x in (*taken[:place], *taken[place + 1 :])]
    if which == "backward":
        found[0] = replace(found[0], name=f"d{signature.output.name}")
    return *found[:place], *(replace(x, left_out=True) for x in found[place:])


def _parameter(x: Operand | Setting, taken: tuple[Operand | Setting, ...]) -> Parameter:
    if isinstance(x, Setting):
        return Parameter(x.name, KINDS[x.type])
    tensors = [y for y in taken if isinstance(y, Operand)]
    if x.written:
        states = [y for y in tensors if y.written]
        first, *more = x.argument.dims
        shape = (Extent(states[0].name, 0), *map(wrap, more)) if x.argument.present else None
        return Parameter(x.name, shape=shape)
    if not x.optional:
        return Parameter(x.name)
    # What is given as a whole is there if the first of it is.
    whole = next(y for y in tensors if y is x or (x.part_of and y.part_of == x.part_of))
    return Parameter(x.name, when=Present(whole.name))


def over_sequences(function: Pass) -> Pass:
    """A pass that the one of its part calls where there are packed sequences: they are there."""
    given = (replace(x, left_out=False) for x in function.parameters)
    taken = tuple(Parameter(x.name) if x.name == SEQUENCES.name else x for x in given)
    part = function.name.removesuffix(packed(""))
    return replace(function, name=packed(part), parameters=taken, instead_of=part)
