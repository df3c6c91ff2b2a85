"""How many operations `torch.utils.flop_counter.FlopCounterMode` counts for an operator.

They are those of products, a multiplication and an addition each two, that the outputs take at least,
whatever a kernel computes again: `Variant.products` has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .heads import multiple
from .later import when_imported

if TYPE_CHECKING:
    from torch import nn

    from .ops import Ops


def units_of(layer: nn.Module) -> int:
    """How many heads or channels a layer gives its operator `op`, each with the products of a variant."""
    counts = (getattr(layer, name, None) for name in ("heads", "d_model", "channels"))
    return int(next(filter(None, counts)))


def count(ops: Ops) -> None:
    """Has the operators of a variant counted."""
    when_imported("torch.utils.flop_counter", lambda: _register(ops))


def _register(ops: Ops) -> None:
    from torch.utils.flop_counter import register_flop_formula

    for which in ops.record.schemas:
        register_flop_formula(getattr(ops, which).overloadpacket)(_formula(ops, which))


def _formula(ops: Ops, which: str) -> Any:
    names = [x.name for x in getattr(ops, which)._schema.arguments]

    def formula(*shapes: Any, out_shape: Any, **named: Any) -> int:
        given, signature = dict(zip(names, shapes, strict=False)) | named, ops.signature
        sizes = {
            dim: n for x in signature.inputs for dim, n in zip(x.dims, given[x.name] or (), strict=False)
        }
        variant = ops.record.counted()
        units = multiple([sizes[part] for part in signature.groups.get(signature.unit, (signature.unit,))])
        rows = sizes["B"] * units
        if which == "step":
            return round(rows * variant.products(1, begun=True, final=True))
        begun = any(given.get(x.name) is not None for x in signature.carried)
        if which == "forward":
            final = bool(given.get("output_final_state"))
            return round(rows * variant.products(sizes["T"], begun, final))
        final = any(given.get(f"d_{x.name}") is not None for x in signature.final)
        forward = variant.products(sizes["T"], begun, final)
        return round(rows * variant.backward_products * forward)

    return formula
