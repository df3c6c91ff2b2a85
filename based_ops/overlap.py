"""Memory that a step writes belongs to nothing else that the step is given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

KEPT = 4096
"""Sets of addresses that are remembered."""


def extent(tensor: Tensor) -> int:
    """Bytes from the first element to behind the last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def period(tensor: Tensor) -> tuple[int, int] | None:
    """Bytes from an entry to the next, and bytes of an entry, of a tensor of dense entries that lie apart."""
    if tensor.is_contiguous() or not tensor.numel():
        return None
    length = tensor.numel() // tensor.shape[0]
    apart = tensor.stride(0) > length and tensor[0].is_contiguous()
    return (tensor.stride(0) * tensor.itemsize, length * tensor.itemsize) if apart else None


def overlapping(
    addresses: Sequence[int],
    extents: Sequence[int],
    written: int,
    periods: Sequence[tuple[int, int] | None] = (),
) -> tuple[int, int] | None:
    """The places of two tensors that share memory, of which at least one is written: those from `written` on.

    What has no memory (the meta device) has address 0.  With `periods`, pools may lie in the gaps of others.
    """
    if any(periods):
        return _meeting(addresses, extents, written, periods)
    end = end_of_written = 0
    last = last_written = -1
    for start, place in sorted(zip(addresses, range(len(addresses)), strict=True)):
        if start == 0 or extents[place] == 0:
            continue
        here = start + extents[place]
        if place >= written:
            if start < end:
                return last, place
            if here > end_of_written:
                end_of_written, last_written = here, place
        elif start < end_of_written:
            return last_written, place
        if here > end:
            end, last = here, place
    return None


def _meeting(
    addresses: Sequence[int],
    extents: Sequence[int],
    written: int,
    periods: Sequence[tuple[int, int] | None],
) -> tuple[int, int] | None:
    for later in range(written, len(addresses)):
        for first in range(later):
            start, other = addresses[first], addresses[later]
            apart = start + extents[first] <= other or other + extents[later] <= start
            if apart or not (start and other and extents[first] and extents[later]):
                continue
            mine, theirs = periods[first], periods[later]
            if mine and theirs and mine[0] == theirs[0]:
                offset = (other - start) % mine[0]
                if mine[1] <= offset <= mine[0] - theirs[1]:
                    continue
            return first, later
    return None


class Apart:
    """Remembers which tensors are apart, since most steps find the same ones again.

    A key is a size, a stride and the addresses: memory that another tensor has at an address later is no
    larger, as two storages that live at once never overlap.
    """

    def __init__(self) -> None:
        self._known: set[tuple[int, ...]] = set()

    def collision(self, tensors: Sequence[Tensor], written: int) -> tuple[int, int] | None:
        """What `overlapping` says of tensors, of which those from `written` on are."""
        try:
            pool = tensors[written]
            key = (pool.nbytes, pool.stride(0) if pool.dim() else 0, *map(Tensor.data_ptr, tensors))
        except RuntimeError:  # a wrapper of a transform: the operator will see what it holds
            return None
        if key in self._known:
            return None
        found = overlapping(key[2:], [*map(extent, tensors)], written, [*map(period, tensors)])
        if found is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known.add(key)
        return found
