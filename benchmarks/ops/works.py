"""What is measured: the lines of `targets.yaml`, each one piece of work with the target it should reach."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

import based_ops
from based_ops.codegen.spec.signature import OF_KEYS, OF_STATES, OF_VALUES, Argument
from based_ops.variant import Variant, dtype_named

ROOM = Path(__file__).resolve().parent.parent
SPECS = ROOM / "specs"
TARGETS = ROOM / "targets.yaml"
TASKS = ("forward", "training", "step")
CLOCKS = ("device", "graph", "host")
FORMS = ("dense", "packed", "batch invariant", "featured")
FEATURED = ("q", "k")
"""The inputs that become features."""
HEADS = 16
"""Heads of a sweep's line, where it has so many rows."""


@dataclass(frozen=True)
class Work:
    """One call: a variant's `task` on inputs of B, H and T in one dtype; H is D where a layer has channels.

    `task` is "forward", "training" (forward and backward) or "step".  `state`: from an initial to a final
    state.  `clock` is what is timed: "device" (the device's time for an eager call), "graph" (the same in a
    CUDA graph of many calls) or "host" (the time until the call returns).

    `form`: a batch as it is, its sequences "packed" behind each other, "batch invariant", or "featured": of a
    layer with parts the whole of it, where otherwise its queries and keys are features already.  `kv_heads`:
    the heads of k and v where they are shared, which lets a layer with decays have as many.
    """

    variant: str
    task: str
    batch: int
    heads: int
    length: int
    dtype: str = "bfloat16"
    state: bool = False
    clock: str = "device"
    form: str = "dense"
    kv_heads: int = 0

    def __post_init__(self) -> None:
        for field, allowed in (("task", TASKS), ("clock", CLOCKS), ("form", FORMS)):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field}: got {getattr(self, field)!r}, must be one of {', '.join(allowed)}"
                )

    @property
    def op(self) -> Variant:
        """The compiled variant: a shipped one, or one of `benchmarks/specs`."""
        return _variant(self.variant)

    @property
    def spec(self) -> Any:
        """The variant's spec; whoever takes work of one mixer reads what that mixer has."""
        return self.op.spec

    @property
    def corrects(self) -> bool:
        """Whether the layer is a delta rule."""
        return getattr(self.spec, "update", "add") == "delta"

    @property
    def rows(self) -> int:
        """Sequences that are independent of each other, B·H."""
        return self.batch * self.heads

    def shape(self, argument: Argument) -> tuple[int, ...]:
        """What a tensor of the layer's signature has in this call."""
        sizes = {"B": self.batch, "T": self.length, "Tk": self.length}
        sizes |= self.op.signature.alike(self.heads)
        if self.kv_heads:
            sizes |= dict.fromkeys((OF_KEYS, OF_VALUES, OF_STATES), self.kv_heads)
        shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in argument.dims)
        featured = self.form == "featured" and argument.name in FEATURED
        return (*shape[:-1], self.op.qk) if featured else shape

    @property
    def torch_dtype(self) -> torch.dtype:
        return dtype_named(self.dtype)

    def __str__(self) -> str:
        more = (", with states" if self.state else "") + ("" if self.clock == "device" else f", {self.clock}")
        more += "" if self.form == "dense" else f", {self.form}"
        more += f", {self.kv_heads} heads of k and v" if self.kv_heads else ""
        size = f"B{self.batch} H{self.heads} T{self.length}"
        return f"{self.variant} {self.task} {size} {self.dtype}{more}"


@functools.cache
def _variant(name: str) -> Variant:
    if name in based_ops.names():
        return based_ops.get(name)
    return based_ops.load(SPECS / f"{name}.yaml")


@dataclass(frozen=True)
class Target:
    """A time to reach: `ms`; or `times` that of the lines `of` together (`per_limit`: each over its own
    limit); or the time in which the least bytes pass at `copy_share` of the copy bandwidth."""

    ms: float | None = None
    times: float | None = None
    of: tuple[Work, ...] = ()
    per_limit: bool = False
    copy_share: float | None = None


@dataclass(frozen=True)
class Entry:
    """One line to measure: its group, by which it can be asked for, its work and its target."""

    group: str
    work: Work
    target: Target | None = None
    sweep: bool = False


def entries(device: str, sweep: bool = True, only: Sequence[str] = ()) -> list[Entry]:
    """The lines of a device ("cuda" or "cpu"), those of the groups `only` if it names any.

    A line that the target of another refers to comes with it.  Raises `ValueError` for a group that is not
    there.
    """
    found = {entry.work: entry for entry in _table(device)}
    if sweep:
        for entry in _sweep(device):
            found.setdefault(entry.work, entry)
    groups = list(dict.fromkeys(entry.group for entry in found.values()))
    unknown = [name for name in only if name not in groups]
    if unknown:
        raise ValueError(f"got {', '.join(unknown)}, must be among {', '.join(groups)}")
    chosen = [entry for entry in found.values() if not only or entry.group in only]
    wanted = {work for entry in chosen if entry.target for work in entry.target.of}
    return [entry for work, entry in found.items() if entry in chosen or work in wanted]


def _document(device: str) -> Any:
    return yaml.safe_load(TARGETS.read_text(encoding="utf-8"))[device]


def _table(device: str) -> Iterator[Entry]:
    seen: set[Work] = set()
    for block in _document(device)["table"]:
        sizes = block.pop("sizes")
        group, at_most = block.pop("group"), block.pop("at_most", None)
        for size in sizes:
            batch, heads, length = map(int, size.split("x"))
            work = Work(batch=batch, heads=heads, length=length, **block)
            if work in seen:
                raise ValueError(f"{TARGETS}: {work} stands there twice")
            seen.add(work)
            ms = sizes[size] if isinstance(sizes, dict) else None
            yield Entry(group, work, _target(work, ms, at_most))


def _target(work: Work, ms: float | None, at_most: dict[str, Any] | None) -> Target | None:
    if ms is not None:
        return Target(ms=ms)
    if at_most is None:
        return None
    if "copy_share" in at_most:
        return Target(copy_share=at_most["copy_share"])
    others = at_most["of"] if isinstance(at_most["of"], list) else [at_most["of"]]
    return Target(
        times=at_most["times"],
        of=tuple(replace(work, **other) for other in others),
        per_limit=at_most.get("per") == "limit",
    )


def _sweep(device: str) -> Iterator[Entry]:
    for block in _document(device)["sweep"]:
        group, most = block.pop("group"), block.pop("most_tokens")
        for length, rows in product(block.pop("lengths"), block.pop("rows")):
            if length * rows <= most:
                heads = min(rows, HEADS)
                work = Work(batch=rows // heads, heads=heads, length=length, **block)
                yield Entry(group, work, sweep=True)
