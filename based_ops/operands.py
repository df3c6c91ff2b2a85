"""The check of an operator's tensors, which follows from the layer's signature.

The public functions check what users pass (`checks.py`) and then call operators past this check.  Exported
programs, compiled code and whoever calls `torch.ops` get it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from based_ops.codegen.dtypes import ACC, IO, STATE
from based_ops.codegen.spec.signature import INDICES, MOST_TOKENS, POOLED, SEQUENCES

from . import heads
from .errors import BasedOpsError, DeviceError, DtypeError, ShapeError, StateError, fail

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec
    from based_ops.codegen.spec.signature import Argument, Signature


@dataclass(frozen=True)
class Operand:
    """One tensor that an operator takes."""

    name: str
    argument: Argument
    part_of: str = ""
    """What may be left out, and is given as a whole or not at all."""
    written: bool = False
    returned: bool = False
    """It was returned by an operator: where the layer has no such thing, it is there and empty."""

    @property
    def has_batch(self) -> bool:
        """Whether its first dimension is the batch, or a pool for it."""
        return self.argument.dims[0] in ("B", "N", POOLED)

    @property
    def strided(self) -> bool:
        """Whether kernels take it with any strides but in its last dimension."""
        return not self.part_of and self.argument.dtype == IO

    @property
    def error(self) -> type[BasedOpsError]:
        """What a wrong shape or layout of it is."""
        return StateError if self.part_of or self.written else ShapeError


@dataclass(frozen=True, eq=False)
class Operands:
    """What one operator takes: an entry for each argument in the order of its schema, None for no tensor."""

    which: str
    layer: LayerSpec
    signature: Signature
    entries: tuple[Operand | None, ...]
    most: dict[str, int]
    """Sizes that have an end."""

    @functools.cached_property
    def tensors(self) -> dict[int, Operand]:
        """The tensors by where they stand."""
        return {place: entry for place, entry in enumerate(self.entries) if entry is not None}

    @functools.cached_property
    def places(self) -> tuple[int, ...]:
        """Where they stand."""
        return tuple(self.tensors)

    @functools.cached_property
    def strided(self) -> tuple[int, ...]:
        """Where those stand that kernels take with any strides but in the last dimension."""
        return tuple(place for place, x in self.tensors.items() if x.strided and not x.written)

    @functools.cached_property
    def packed(self) -> tuple[int, ...]:
        """Where those stand that kernels take contiguous; what an operator updates is as it is."""
        return tuple(place for place, x in self.tensors.items() if not (x.strided or x.written))

    @functools.cached_property
    def lead(self) -> int:
        """Where the input stands whose dtype and device are those of the call."""
        return self.named(self.signature.lead.name)

    def named(self, name: str) -> int:
        """Where the tensor of that name stands."""
        return next(place for place, entry in self.tensors.items() if entry.name == name)

    @functools.cached_property
    def indices(self) -> int | None:
        """Where indices of slots stand, of an operator that may be given any."""
        return next((place for place, x in self.tensors.items() if x.argument is INDICES), None)

    @functools.cached_property
    def sequences(self) -> int | None:
        """The same of where packed sequences lie."""
        return next((place for place, x in self.tensors.items() if x.argument is SEQUENCES), None)

    @functools.cached_property
    def sums_over_batch(self) -> bool:
        """Whether results are sums over the batch: gradients of what the whole batch shares."""
        return self.which == "backward" and any(x.dims[0] != "B" for x in self.signature.inputs)

    @functools.cached_property
    def writes(self) -> bool:
        """Whether the operator updates tensors."""
        return any(entry is not None and entry.written for entry in self.entries)

    @functools.cached_property
    def written(self) -> slice:
        """Where those stand, side by side."""
        places = [place for place, x in self.tensors.items() if x.written]
        return slice(places[0], places[-1] + 1)


def operands(layer: LayerSpec) -> dict[str, Operands]:
    """What the operators of a layer take, by their passes."""
    signature = layer.signature()
    inputs = [Operand(x.name, x) for x in signature.inputs]
    carried = [Operand(x.name, x, "" if x is SEQUENCES else "initial state") for x in signature.carried]
    numbers: list[None] = [None] * len(signature.numbers)
    output = signature.output
    read = [Operand(x.name, x, returned=True) for x in signature.kept]
    if signature.keeps_output:
        read.insert(0, Operand(output.name, output))
    final = [Operand(f"d_{x.name}", x, "gradient of the final state") for x in signature.final]
    asked: list[None] = [None] if signature.final else []
    found: dict[str, list[Operand | None]] = {
        "forward": [*inputs, *numbers, *carried, *asked],
        "backward": [Operand(f"d_{output.name}", output), *final, *inputs, *read, *numbers, *carried],
        "step": [
            *(Operand(x.name, x) for x in signature.stepped),
            *numbers,
            *(Operand(x.name, x, written=True) for x in signature.pools),
            Operand(INDICES.name, INDICES),
        ],
    }
    most = {"step": {"T": MOST_TOKENS}}
    return {
        which: Operands(which, layer, signature, (*entries, None), most.get(which, {}))
        for which, entries in found.items()
    }


def check(taken: Operands, arguments: Sequence[Any]) -> dict[str, Any]:
    """The sizes of a call; raises a typed error unless its tensors fit each other and the layer."""
    like: Tensor = arguments[0]
    pairs = [(x, arguments[place]) for place, x in enumerate(taken.entries) if x is not None]
    given = {x.part_of for x, tensor in pairs if x.part_of and tensor is not None}
    allowed = (*(getattr(torch, name) for name in taken.layer.dtypes), torch.float64)
    if like.dtype not in allowed:
        fail(DtypeError, pairs[0][0].name, str(like.dtype), f"one of {', '.join(map(str, allowed))}")
    sizes = heads.sizes_of(taken.signature, [(x.name, x.argument, tensor) for x, tensor in pairs])
    pooled = any(operand.argument is INDICES and tensor is not None for operand, tensor in pairs)
    sequences = next((tensor for operand, tensor in pairs if operand.argument is SEQUENCES), None)
    if sequences is not None:
        sizes |= {"B": 1, "N": sequences.numel() // 2}
    for operand, tensor in pairs:
        if "B" in sizes:
            sizes.setdefault("N", sizes["B"])
        if tensor is None:
            if operand.argument.present and operand.part_of in given:
                fail(operand.error, operand.name, None, f"given where the {operand.part_of} is")
            continue
        if not (operand.argument.present or operand.returned):
            fail(operand.error, operand.name, "a tensor", f"None: {taken.layer.name} has no such thing")
        if operand.written and not pooled:
            sizes.setdefault(POOLED, sizes["B"])
        _check_shape(taken, operand, tensor, sizes)
        dtype = dtype_of(taken.layer, operand.argument.dtype, like.dtype)
        if tensor.dtype != dtype:
            error = DtypeError if operand.error is ShapeError else StateError
            fail(error, operand.name, str(tensor.dtype), f"{dtype} for inputs of {like.dtype}")
        if tensor.device != like.device:
            fail(DeviceError, operand.name, str(tensor.device), f"on the device of all, {like.device}")
    return sizes


def _check_shape(taken: Operands, operand: Operand, tensor: Tensor, sizes: dict[str, Any]) -> None:
    """The shape of one tensor; sizes that it is the first to have become known."""
    dims = operand.argument.dims if operand.argument.present else (0,)
    shape, longer = tensor.shape, taken.signature.longer
    fits = len(shape) == len(dims)
    for dim, size in zip(dims, shape, strict=False):
        least = sizes.get(longer[dim], 0) if dim in longer else 0
        fits = (
            fits
            and size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
            and size >= least
            and (dim not in taken.most or size <= taken.most[dim])
        )
    if not fits:
        wanted = ", ".join(_described(dim, sizes, taken) for dim in dims)
        got = tuple(operator.index(size) for size in shape)
        fail(operand.error, operand.name, got, f"of shape [{wanted}] for {taken.layer.name}")


def _described(dim: int | str, sizes: dict[str, Any], taken: Operands) -> str:
    longer = taken.signature.longer
    if isinstance(dim, int):
        return str(dim)
    if dim in longer:
        return f"{dim} >= {operator.index(sizes[longer[dim]])}"
    if dim in taken.most and sizes.get(dim, 0) > taken.most[dim]:
        return f"{dim} <= {taken.most[dim]}"
    return str(operator.index(sizes[dim])) if dim in sizes else dim


def dtype_of(layer: LayerSpec, role: str, inputs: torch.dtype) -> torch.dtype:
    """The dtype of tensors of a role in calls with such inputs."""
    if role == IO:
        return inputs
    if role not in (ACC, STATE):
        return getattr(torch, role)
    if inputs == torch.float64:
        return inputs
    return torch.float32 if role == ACC else getattr(torch, layer.kept_dtype)
