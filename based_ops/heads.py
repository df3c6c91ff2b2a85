"""Heads in groups: q, k and v may each have fewer than the output, see `AttentionVariant`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from math import lcm
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import ShapeError, fail

if TYPE_CHECKING:
    from based_ops.codegen.spec.signature import Argument, Signature


def multiple(counts: Sequence[Any]) -> Any:
    """The least common multiple; of symbols one that the others divide, if there is one."""
    found = counts[0]
    for count in counts[1:]:
        if count == found or found % count == 0:
            continue
        found = count if count % found == 0 else lcm(operator.index(found), operator.index(count))
    return found


def repeated(x: Tensor, count: int, dim: int = 2) -> Tensor:
    """As many heads, each of them several times in a row where there are fewer."""
    return x if x.shape[dim] == count else x.repeat_interleave(count // x.shape[dim], dim)


def check(counts: Mapping[str, Any]) -> None:
    """Raises `ShapeError` unless heads of tensors, by their names, divide the largest number of them."""
    most = max(counts.values())
    for name, count in counts.items():
        if count != most and (count == 0 or most % count):
            heads = operator.index(most)
            allowed = [n for n in range(1, heads + 1) if heads % n == 0]
            nearest = min([(abs(n - operator.index(count)), n) for n in allowed])[1]
            wanted = f"a number that divides the largest, {heads}, such as {nearest}: groups share heads"
            fail(ShapeError, name, f"{operator.index(count)} heads", wanted)


def sizes_of(signature: Signature, tensors: Iterable[tuple[str, Argument, Tensor | None]]) -> dict[str, Any]:
    """The sizes of a call that count heads, and those that follow from them; none if they are not in groups.

    Tensors of another rank than their arguments have are left to whoever checks shapes.
    """
    counts: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, argument, tensor in tensors:
        if tensor is None or tensor.dim() != len(argument.dims):
            continue
        for dim, size in zip(argument.dims, tensor.shape, strict=True):
            if dim in signature.parts:
                counts.setdefault(dim, size)
                names.setdefault(dim, name)
    if not counts or len(counts) < len(signature.parts):
        return counts
    check({names[dim]: count for dim, count in counts.items()})
    for whole, parts in signature.groups.items():
        counts[whole] = multiple([counts[part] for part in parts])
    return counts
