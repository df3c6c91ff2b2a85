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
from based_ops.codegen.spec.signature import INDICES, KERNEL, MOST_TOKENS, POOLED, SEQUENCES, Operand

from . import heads
from .errors import BasedOpsError, DeviceError, DtypeError, ShapeError, StateError, fail

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec
    from based_ops.codegen.spec.signature import Setting, Signature


@dataclass(frozen=True, eq=False)
class Operands:
    """What one operator takes, in the order of its schema."""

    which: str
    layer: LayerSpec
    signature: Signature
    entries: tuple[Operand | Setting, ...]
    most: dict[str, int]
    """Sizes that have an end."""

    @functools.cached_property
    def tensors(self) -> dict[int, Operand]:
        """The tensors by where they stand."""
        return {place: entry for place, entry in enumerate(self.entries) if isinstance(entry, Operand)}

    @functools.cached_property
    def kernel(self) -> int:
        """Where the name of the kernel stands."""
        return self.entries.index(KERNEL)

    @functools.cached_property
    def defaults(self) -> tuple[Any, ...]:
        """What those behind the kernel are, unless a call says it."""
        behind = self.entries[self.kernel + 1 :]
        return tuple(None if isinstance(entry, Operand) else False for entry in behind)

    def filled(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with those that were left out, which PyTorch does where they are the defaults."""
        missing = len(self.entries) - len(arguments)
        return (*arguments, *self.defaults[-missing:]) if missing else arguments

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
        return any(x.written for x in self.tensors.values())

    @functools.cached_property
    def written(self) -> slice:
        """Where those stand, side by side."""
        places = [place for place, x in self.tensors.items() if x.written]
        return slice(places[0], places[-1] + 1)


def operands(layer: LayerSpec) -> dict[str, Operands]:
    """What the operators of a layer take, by their passes."""
    signature = layer.signature()
    most = {"step": {"T": MOST_TOKENS} | signature.free}
    return {
        which: Operands(which, layer, signature, signature.operands(which), most.get(which, {}))
        for which in signature.schemas()
    }


def check(taken: Operands, arguments: Sequence[Any]) -> dict[str, Any]:
    """The sizes of a call; raises a typed error unless its tensors fit each other and the layer."""
    like: Tensor = arguments[0]
    pairs = [(x, arguments[place]) for place, x in taken.tensors.items()]
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
                fail(_error(operand), operand.name, None, f"given where the {operand.part_of} is")
            continue
        if not (operand.argument.present or operand.returned):
            fail(_error(operand), operand.name, "a tensor", f"None: {taken.layer.name} has no such thing")
        if operand.written and not pooled:
            sizes.setdefault(POOLED, sizes["B"])
        _check_shape(taken, operand, tensor, sizes)
        dtype = dtype_of(taken.layer, operand.argument.dtype, like.dtype)
        if tensor.dtype != dtype:
            error = DtypeError if _error(operand) is ShapeError else StateError
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
        fail(_error(operand), operand.name, got, f"of shape [{wanted}] for {taken.layer.name}")


def _described(dim: int | str, sizes: dict[str, Any], taken: Operands) -> str:
    longer = taken.signature.longer
    if isinstance(dim, int):
        return str(dim)
    if dim in longer:
        return f"{dim} >= {operator.index(sizes[longer[dim]])}"
    if dim in taken.most and sizes.get(dim, 0) > taken.most[dim]:
        return f"{dim} <= {taken.most[dim]}"
    return str(operator.index(sizes[dim])) if dim in sizes else dim


def _error(operand: Operand) -> type[BasedOpsError]:
    """What a wrong shape or layout of it is."""
    return StateError if operand.part_of or operand.written else ShapeError


def dtype_of(layer: LayerSpec, role: str, inputs: torch.dtype) -> torch.dtype:
    """The dtype of tensors of a role in calls with such inputs."""
    if role == IO:
        return inputs
    if role not in (ACC, STATE):
        return getattr(torch, role)
    if inputs == torch.float64:
        return inputs
    return torch.float32 if role == ACC else getattr(torch, layer.kept_dtype)
