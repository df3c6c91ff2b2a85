"""Tile operations of the torch backend.

A generated torch function holds tiles as tensors ``[*batch, rows, columns]``: the batch axes of the grid are
leading dimensions, so one PyTorch call works for all heads at once.  Index tiles are `range` objects where
they are plain runs (a slice is then enough) and integer tensors elsewhere.  A tile is a value: loading
copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, nan
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """A plain run of indices, outside of every tensor before `first` and from `stop` on."""

    indices: range
    stop: int
    first: int = 0


Index = int | range | Run | Tensor


def cut(size: int, *lengths: int) -> int:
    """The size of a tile of sequences: no more than the longest has."""
    return min(size, max(1, *lengths))


def span(start: int, size: int, stop: int | None = None, first: int = 0) -> range | Run:
    """The indices ``start, ..., start + size - 1``."""
    run = range(start, start + size)
    return run if stop is None else Run(run, int(stop), int(first))


def indices(run: range | Run, like: Tensor) -> Tensor:
    """A run of indices as a tensor to calculate with."""
    run = run if isinstance(run, range) else run.indices
    return torch.arange(run.start, run.stop, device=like.device)


def widen(x: Tensor | float, rank: int) -> Tensor | float:
    """A value for each batch entry, made to broadcast with tiles of `rank` dimensions."""
    return x.reshape(*x.shape, *(1,) * rank) if isinstance(x, Tensor) else x


def heads_of(
    grouped: bool, like: Tensor, own: int, heads: int, every: int | None = None, member: int = 0
) -> Tensor | None:
    """Which of the `heads` heads of a tensor go with a program's `own`: see `Head` in `codegen/ir/nodes.py`.

    None where each has its own.
    """
    if not grouped or own == heads == (every or own):
        return None
    each = torch.arange(own, device=like.device)
    if every is None:
        return each // (own // heads)
    return (each * (every // own) + member) // (every // heads)


def load(
    tensor: Tensor,
    index: tuple[Index, ...],
    dtype: torch.dtype | None = None,
    fill: float = 0.0,
    heads: Tensor | None = None,
) -> Tensor:
    """Copy a tile of a batch-first tensor; what lies outside is `fill`.

    `heads`, where given, are those of the tensor to take along the last axis of the batch.  An index tensor
    of as many dimensions as the batch has, two or more, picks one position for each entry; one of one more
    is an index tile of each entry's own.
    """
    rank = first = tensor.dim() - len(index)
    batch = first - 1
    for entry in index:
        if isinstance(entry, Tensor) and entry.dim() == rank + 1:
            tensor = _each_its_own(tensor, first, entry, fill)
            first += 1
            continue
        if isinstance(entry, int):
            tensor = tensor.select(first, entry)
            continue
        if isinstance(entry, Tensor) and entry.dim() == rank > 1:
            where = entry.reshape(*entry.shape, *(1,) * (tensor.dim() - rank)).long()
            shape = [*tensor.shape[:first], 1, *tensor.shape[first + 1 :]]
            tensor = tensor.gather(first, where.expand(shape)).squeeze(first)
            continue
        tensor = _take(tensor, first, entry, fill)
        first += 1
    if heads is not None:
        return tensor.index_select(batch, heads).to(dtype or tensor.dtype)
    return tensor.to(dtype or tensor.dtype, copy=True)


def _each_its_own(tensor: Tensor, axis: int, entry: Tensor, fill: float) -> Tensor:
    """Elements that each entry of the batch chooses for itself along an axis."""
    extent = tensor.shape[axis]
    index = entry.reshape(*entry.shape, *(1,) * (tensor.dim() - axis - 1)).long()
    shape = [*tensor.shape[:axis], entry.shape[-1], *tensor.shape[axis + 1 :]]
    chosen = tensor.gather(axis, index.clamp(max=extent - 1).expand(shape))
    return chosen.masked_fill_(index >= extent, fill)


def _take(tensor: Tensor, axis: int, entry: range | Run | Tensor, fill: float) -> Tensor:
    first, extent = 0, tensor.shape[axis]
    if isinstance(entry, Run):
        first, extent, entry = entry.first, min(extent, entry.stop), entry.indices
    if isinstance(entry, Tensor):
        # Unsigned: an index that is out of range reads the filler, one element past the end.
        filler = tensor.new_full((*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :]), fill)
        return torch.cat([tensor, filler], axis).index_select(axis, entry.clamp(max=extent))
    start, size = _overlap(entry, first, extent)
    inside = tensor.narrow(axis, start, size)
    if size == len(entry):
        return inside
    before = min(max(0, first - entry.start), len(entry))
    front, back = (
        tensor.new_full((*tensor.shape[:axis], missing, *tensor.shape[axis + 1 :]), fill)
        for missing in (before, len(entry) - before - size)
    )
    return torch.cat([front, inside, back], axis)


def _overlap(run: range, first: int, extent: int) -> tuple[int, int]:
    """Start and size of what a run of indices has in common with ``first .. extent - 1``, if that has any."""
    first = min(first, extent)
    start, stop = (max(first, min(edge, extent)) for edge in (run.start, run.stop))
    return start, stop - start


def store(tensor: Tensor, index: tuple[Index, ...], value: Tensor, heads: Tensor | None = None) -> None:
    """Write a tile into a batch-first tensor; what lies outside is dropped.

    A one-dimensional index tensor of batch entries picks one position for each of them.  `heads`, where
    given, are those of the tensor along the last axis of the batch that it goes to.
    """
    axis = tensor.dim() - len(index)
    batch = axis
    if heads is not None:
        chosen = tensor.index_select(batch - 1, heads)
        store(chosen, index, value)
        tensor.index_copy_(batch - 1, heads, chosen)
        return
    picked: tuple[int, Tensor] | None = None
    for place, entry in enumerate(index):
        if isinstance(entry, int):
            tensor = tensor.select(axis, entry)
        elif isinstance(entry, Tensor):
            picked = axis, entry
            axis += 1
        else:
            first, extent = 0, tensor.shape[axis]
            if isinstance(entry, Run):
                first, extent, entry = entry.first, min(extent, entry.stop), entry.indices
            start, size = _overlap(entry, first, extent)
            tensor = tensor.narrow(axis, start, size)
            skipped = min(max(0, first - entry.start), len(entry))
            further = sum(not isinstance(other, int | Tensor) for other in index[place:])
            side = value.dim() - further if value.dim() > batch else 0
            value = value.narrow(side, skipped, size)
            axis += 1
    if picked is None:
        tensor.copy_(value.expand(tensor.shape))
        return
    axis, entry = picked
    where = entry.reshape(*entry.shape, *(1,) * (tensor.dim() - entry.dim())).long()
    shape = [*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :]]
    tensor.scatter_(axis, where.expand(shape), value.unsqueeze(axis).to(tensor.dtype))


def has_slots(pool: Tensor, indices: Tensor, rank: int) -> Tensor:
    """Which entries of a batch have a slot in a pool, as a value of `rank` batch axes."""
    there = (indices >= 0) & (indices < pool.shape[0])
    return there.reshape(-1, *(1,) * (rank - 1))


def entries(pools: Sequence[Tensor], indices: Tensor) -> list[Tensor]:
    """The slots of pools that indices name, copied; those that name none get zeros."""
    found = []
    for pool in pools:
        there, index = has_slots(pool, indices, pool.dim()), indices.clamp(0, max(0, pool.shape[0] - 1))
        taken = pool.index_select(0, index) if len(pool) else pool.new_zeros(len(indices), *pool.shape[1:])
        found.append(torch.where(there, taken, torch.zeros((), dtype=pool.dtype, device=pool.device)))
    return found


def put_back(pools: Sequence[Tensor], indices: Tensor, taken: Sequence[Tensor]) -> None:
    """Writes entries into the slots that indices name, and nothing for those that name none.

    No value is waited for: what has no slot writes what the first that has one does.  If none has, the first
    slot is written as it was.
    """
    for pool, new in zip(pools, taken, strict=True):
        if len(pool) == 0 or len(indices) == 0:
            continue
        there = has_slots(pool, indices, 1)
        writer = torch.where(there, torch.arange(len(there), device=there.device), there.int().argmax())
        index = indices.long()[writer].clamp(0, len(pool) - 1)
        pool.index_copy_(0, index, torch.where(there.any(), new[writer], pool.index_select(0, index)))


def columns(x: Tensor, index: Tensor, extent: int, fill: float, weight: Tensor | None = None) -> Tensor:
    """Gather columns of a tile; past `extent` they are `fill`.  `weight` has a factor for each of them."""
    gathered = torch.where(index < extent, x.index_select(-1, index.clamp(max=extent - 1)), fill)
    return gathered if weight is None else gathered * weight


def where(condition: Tensor | bool, x: Tensor | float, y: Tensor | float, dtype: torch.dtype) -> Tensor:
    """`torch.where` that gives two plain numbers the tiles' dtype instead of PyTorch's default.

    On a CPU, where looking costs nothing, a condition that holds everywhere chooses without copying: most
    tiles lie wholly inside the sequence.
    """
    if isinstance(condition, bool):
        if condition and isinstance(x, Tensor):
            return x
        condition = torch.tensor(condition)
    if not isinstance(x, Tensor):
        x = torch.full((), x, dtype=dtype, device=condition.device)
    elif condition.device.type == "cpu" and condition.numel() < x.numel() and bool(condition.all()):
        return x
    return torch.where(condition, x, y)


def dithered(x: Tensor, dtype: torch.dtype, token: Tensor, value: Tensor, place: Tensor) -> Tensor:
    """x in float32, rounded to `dtype` at random: see `Dithered` in `codegen/ir/nodes.py`.

    What is added to the bits that are cut off carries into those that stay as often as it should.  NaN stays.
    In float64 a state is never narrow.
    """
    if x.dtype == torch.float64:
        return x
    chance = _mixed(_bits(token) ^ 0x2545F491) ^ _bits(value)
    chance = (_mixed(chance) + place * 0x9E3779B9) & 0xFFFFFFFF
    cut = 16 if dtype == torch.bfloat16 else 13
    bits = (_bits(x) + (chance >> (32 - cut))) >> cut << cut
    return torch.where(x.isnan(), x, bits.to(torch.int32).view(torch.float32))


def _bits(x: Tensor) -> Tensor:
    """The bits of float32 as a number, in 64 bits because 32 would be taken for signed ones."""
    return x.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def _mixed(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def if_positive(x: Tensor, y: Tensor) -> Tensor:
    """y where x > 0, NaN where x is NaN, else 0."""
    return torch.where(x > 0, y, x.clamp(min=0))


def product(x: Tensor, y: Tensor, among: Tensor) -> Tensor:
    """x @ y, summed over the pairs that are `among` alone: what stands elsewhere in y does not matter.

    Elsewhere x is 0, unless its row holds NaN.  On a CPU, where looking costs nothing, a product that came
    out finite is right already; on other devices none is looked at, which would wait for them.
    """
    plain = x @ y
    if plain.device.type == "cpu" and isfinite(plain.sum()):
        return plain
    x, bounded = torch.where(among, x, 0.0), y.nan_to_num(0.0, 1.0, -1.0)
    plain = x @ bounded
    met = among.to(y.dtype) @ (~y.isfinite()).to(y.dtype)
    signs = x.sign() @ torch.where(y.isinf(), bounded, 0.0)
    # Infinities of one sign add up to it; any other sum of what is not finite is NaN.
    spoilt = torch.where(signs.abs() == met, signs * inf, nan)
    return torch.where(met > 0, plain + spoilt, plain)


def maximum(x: Tensor, y: Tensor | float) -> Tensor:
    """Elementwise maximum."""
    return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)


def minimum(x: Tensor, y: Tensor | float) -> Tensor:
    """Elementwise minimum."""
    return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)
