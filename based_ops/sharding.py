"""Distributed tensors: sequences and heads are independent, so a process computes those that it has.

A call or an operator on `DTensor`s may have its batch and its heads (or channels) sharded, each over any
dimensions of the mesh, and everything may be replicated.  Every rank runs the kernels on its part, and
nothing is sent.  Only the gradients of what the batch shares, such as a convolution's taps, are sums over
ranks then, and marked as that.  All else is a `PlacementError`; nothing is moved in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from based_ops.codegen.names import qualified_op_name
from based_ops.codegen.spec.signature import INDICES, MOST_TOKENS, POOLED, SEQUENCES

from .errors import PlacementError, fail
from .heads import sizes_of
from .later import when_imported
from .state_base import named, variant_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DeviceMesh, DTensor, Placement

    from based_ops.codegen.spec.signature import Argument, Signature

    from .ops import Ops
    from .variant import Tensors, Variant

Dims = tuple[int | str, ...]
MODULE = "torch.distributed.tensor"


class Layout:
    """How the tensors of one call lie on a mesh: which size, if any, each of its dimensions shards.

    Sizes are B and the `unit` of a call, whatever `heads` count it.
    """

    def __init__(
        self, mesh: DeviceMesh, sizes: Sequence[str | None], unit: str, heads: Collection[str]
    ) -> None:
        self.mesh, self.sizes, self._unit, self._heads = mesh, sizes, unit, heads

    def placements(self, dims: Dims, gradient: bool = False) -> list[Placement]:
        """Of a tensor with such dimensions, or of what one rank has of its `gradient`."""
        from torch.distributed.tensor import Partial, Replicate, Shard

        dims = _alike(dims, self._unit, self._heads)

        def placement(size: str | None) -> Placement:
            if size in dims:
                return Shard(dims.index(size))
            return Partial() if gradient and size is not None else Replicate()

        return [placement(size) for size in self.sizes]

    def whole(self, part: Tensor, dims: Dims, extents: dict[str, int], gradient: bool = False) -> DTensor:
        """The distributed tensor, contiguous, of which this rank has a part."""
        from torch.distributed.tensor import DTensor

        shape = torch.Size([dim if isinstance(dim, int) else extents[dim] for dim in dims])
        stride = [1] * len(shape)
        for i in range(len(shape) - 1, 0, -1):
            stride[i - 1] = stride[i] * max(shape[i], 1)
        placements = self.placements(dims, gradient)
        return DTensor.from_local(
            part, self.mesh, placements, run_check=False, shape=shape, stride=tuple(stride)
        )


def layout(signature: Signature, tensors: Iterable[tuple[str, Dims, Tensor | None]]) -> Layout:
    """How named tensors with their dimensions lie; raises `PlacementError` unless they lie alike.

    Besides the batch, heads may be sharded, or channels.  Of heads in groups every rank must have whole
    groups, and as many.
    """
    from torch.distributed.tensor import DTensor

    unit, heads = signature.unit, (*signature.groups, *signature.parts)
    given = [(name, _alike(dims, unit, heads), x) for name, dims, x in tensors if x is not None]
    mesh = next(x.device_mesh for _, _, x in given if isinstance(x, DTensor))
    for name, _, x in given:
        if not isinstance(x, DTensor):
            fail(PlacementError, name, "a tensor of one process", "a DTensor, as other arguments are")
        if x.device_mesh != mesh:
            fail(PlacementError, name, "a DTensor on another mesh", "on the mesh of the other arguments")
    found = Layout(mesh, [_size(unit, given, place) for place in range(mesh.ndim)], unit, heads)
    ranks = math.prod([mesh.size(i) for i, size in enumerate(found.sizes) if size == unit])
    counts = {name: x.shape[dims.index(unit)] for name, dims, x in given if unit in dims}
    if ranks > 1 and signature.groups and len({*counts.values()}) > 1:
        for name, count in counts.items():
            if count % ranks:
                what = f"a multiple of {ranks}, the ranks that share heads: each must have whole groups"
                fail(PlacementError, name, f"{count} heads", what)
    return found


def _alike(dims: Dims, unit: str, heads: Collection[str]) -> Dims:
    """Dimensions of which all that count heads have one name."""
    return tuple([unit if dim in heads else dim for dim in dims])


def _size(unit: str, given: Sequence[tuple[str, Dims, Any]], place: int) -> str | None:
    """Which size is sharded over one dimension of a mesh."""
    from torch.distributed.tensor import Replicate, Shard

    found: str | None = None
    for name, dims, x in given:
        placement = x.placements[place]
        size = dims[placement.dim] if type(placement) is Shard and placement.dim < len(dims) else None
        if size in ("B", unit):
            found = found or str(size)
        elif type(placement) is not Replicate:
            fail(PlacementError, name, f"{placement} on dimension {place} of the mesh", _allowed(unit, dims))
    for name, dims, x in given:
        want: Placement = Shard(dims.index(found)) if found in dims else Replicate()
        if x.placements[place] != want:
            got = f"{x.placements[place]} on dimension {place} of the mesh"
            fail(PlacementError, name, got, f"{want} there, since another argument has its {found} sharded")
    return found


def _allowed(unit: str, dims: Dims) -> str:
    shards = [f"Shard(dim={dims.index(size)})" for size in ("B", unit) if size in dims]
    return (
        f"{', '.join(shards)} or Replicate(): batch and {'heads' if unit == 'H' else 'channels'} alone shard"
    )


_types: tuple[type, ...] = ()


def _know() -> None:
    global _types
    from torch.distributed.tensor import DTensor

    _types = (DTensor,)


when_imported(MODULE, _know)


def is_distributed(x: Any) -> bool:
    """Whether it is a distributed tensor."""
    return isinstance(x, _types)


# Calls of the public functions


def call(
    variant: Variant,
    inputs: Tensors,
    factor: Any,
    initial_state: Any,
    output_final_state: bool,
    backend: str | None,
    indices: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """A call of a variant on the parts of this rank."""
    if indices is not None:
        refuse_slots()
    _check(variant, "initial_state", inputs, initial_state)

    def run(inputs: Tensors, state: Any) -> tuple[Tensor, Any]:
        return variant._call(inputs, factor, state, output_final_state, backend)

    return _on_parts(variant, inputs, initial_state, run)


def step(
    variant: Variant,
    inputs: Tensors,
    factor: Any,
    state: Any,
    backend: str | None,
    indices: Tensor | None = None,
) -> Tensor:
    """A step on the parts of this rank, which updates those of the state."""
    if indices is not None:
        refuse_slots()
    _check(variant, "state", inputs, state, MOST_TOKENS)

    def run(inputs: Tensors, state: Any) -> tuple[Tensor, Any]:
        return variant._step(inputs, factor, state, backend), None

    return _on_parts(variant, inputs, state, run)[0]


def _check(variant: Variant, name: str, inputs: Tensors, state: Any, tokens: int | None = None) -> None:
    """The check of whole tensors: what is wrong with them is wrong on every rank."""
    if torch._C._is_any_autocast_enabled():
        return  # what fits is known after the parts have been cast
    lead: Any = inputs[0]
    batch, _, units = variant._check_inputs(variant, inputs, tokens)
    if tokens is not None or state is not None:
        variant._form.check(name, state, lead, batch, units, True)


def _on_parts(
    variant: Variant, inputs: Tensors, state: Any, function: Callable[[Tensors, Any], tuple[Tensor, Any]]
) -> tuple[Tensor, Any]:
    """What `function` makes of this rank's parts of inputs and of a state: an output, and a state or None."""
    signature = variant.signature
    held = list(zip(signature.inputs, inputs, strict=True))
    named_tensors = [(x.name, x.dims, tensor) for x, tensor in held]
    if state is not None:
        fields = zip(state._fields, signature.state, state, strict=True)
        named_tensors += [(f"state.{field}", x.dims, tensor) for field, x, tensor in fields]
    found = layout(signature, named_tensors)
    extents = sizes_of(signature, [(x.name, x, tensor) for x, tensor in held])
    for x, tensor in held:
        if tensor is not None:
            sizes = zip(x.dims, tensor.shape, strict=True)
            extents.update({dim: size for dim, size in sizes if isinstance(dim, str)})

    def local(x: Argument, tensor: Any) -> Any:
        if tensor is None:
            return None
        return tensor.to_local(grad_placements=found.placements(x.dims, gradient=True))

    def parts(state: Any, function: Callable[[Argument, Any], Any]) -> Any:
        if state is None:
            return None
        made = [function(x, part) for x, part in zip(signature.state, state, strict=True)]
        return named(type(state)(*made), variant_of(state))

    def whole(x: Argument, part: Any) -> Any:
        return None if part is None else found.whole(part, x.dims, extents)

    output, final = function(tuple([local(x, tensor) for x, tensor in held]), parts(state, local))
    return whole(signature.output, output), parts(final, whole)


# Operators that are called directly, or by what compiled code calls


def shard(ops: Ops) -> None:
    """Teaches the operators of a variant what to do with distributed tensors."""
    when_imported(MODULE, lambda: _register(ops))


def _register(ops: Ops) -> None:
    from torch.distributed.tensor import DTensor

    from .ops import LIBRARY

    for which in ops.record.schemas:
        name = qualified_op_name(ops.record.name, which)
        torch.library.register_torch_dispatch(name, DTensor, _rule(ops, which), lib=LIBRARY)


def _rule(ops: Ops, which: str) -> Callable[..., Any]:
    def rule(_: Any, op: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        given: dict[str, Any] = {x.name: x.default_value for x in op._schema.arguments}
        given |= dict(zip(given, arguments, strict=False)) | (named or {})
        values, signature = list(given.values()), ops.signature
        taken = ops.admission.operands[which]
        if taken.indices is not None and values[taken.indices] is not None:
            refuse_slots()
        if taken.sequences is not None and values[taken.sequences] is not None:
            what = "left out with DTensors: call with the sequences that each rank has"
            fail(PlacementError, SEQUENCES.name, "packed sequences", what)
        held = [(entry, values[place]) for place, entry in taken.tensors.items()]
        found = layout(signature, [(x.name, _dims(x.argument), tensor) for x, tensor in held])
        extents = sizes_of(signature, [(x.name, x.argument, tensor) for x, tensor in held])
        for x, tensor in held:
            if tensor is not None and x.argument.present:
                sizes = zip(_dims(x.argument), tensor.shape, strict=True)
                extents.update({dim: size for dim, size in sizes if isinstance(dim, str)})
        mine = [x.to_local() if is_distributed(x) else x for x in values]
        lead = mine[taken.lead]
        if lead.shape[0] == 0 or lead.shape[2] == 0:  # nothing of the batch or of the heads lies here
            results = ops.fakes[which](*mine)
            results = [x.zero_() for x in (results if isinstance(results, tuple) else (results,))]
        else:
            results = op(*mine)
            results = results if isinstance(results, tuple) else (results,)
        made = {"forward": signature.results, "backward": signature.differentiable}
        wholes = []
        for result, part in zip(made.get(which, (signature.output,)), results, strict=True):
            # What is absent, or was not asked for, has no entries.
            dims = _dims(result) if result.present and part.dim() == len(result.dims) else (0,)
            wholes.append(found.whole(part, dims, extents, gradient=which == "backward"))
        return wholes[0] if len(wholes) == 1 else tuple(wholes)

    return rule


def _dims(x: Argument) -> Dims:
    """An argument that a layer lacks has no entries; a state has one for each sequence."""
    return tuple("B" if dim in (POOLED, "N") else dim for dim in x.dims) if x.present else (0,)


def refuse_slots() -> NoReturn:
    """Which rank has a slot, its index does not say."""
    what = "left out with DTensors: take the rows of the pool that each rank has"
    fail(PlacementError, INDICES.name, "indices of slots", what)
