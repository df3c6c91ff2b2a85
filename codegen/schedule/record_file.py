"""The file of tuning records: its format, read strictly and written so that a difference is easy to read.

    serves: {linear_attention: triton, sliding_window: triton}      # the fastest backend by mixer
    why:
      linear_attention: TileLang takes three times as long
    settings:
      - {mixer: linear_attention, map: taylor2, qk: 16, backend: triton, program: outputs, dtype: bfloat16,
         CHUNK: 128, warps: 8, stages: 2,
         measured: {ms: 0.316, shape: B16 H16 T8192, of_limit: 0.61, torch: 2.11.0, triton: 3.6.0}}

An entry says what it applies to (`FACTS`; what it leaves out may be anything), what it chooses (sizes in
capital letters and `CHOICES`; what it leaves out stays the policy's) and how that was measured (`MEASURED`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ..dtypes import DTYPES
from ..errors import BasedOpsError, nearest_name
from ..ir.rewrite import REWRITES
from ..mixers import mixers
from ..names import BACKENDS, PASSES
from . import orders
from .model import HOST_C

_OF_LAYERS: list[tuple[str, type | tuple[object, ...]]] = [
    item for cls in mixers().values() for item in cls.fact_types.items()
]
FACTS: dict[str, type | tuple[object, ...]] = {
    "name": str,
    "mixer": tuple(mixers()),
    # What several mixers have comes last.
    **dict(sorted(_OF_LAYERS, key=lambda item: _OF_LAYERS.count(item))),
    "backend": (*BACKENDS, HOST_C),
    "pass": PASSES,
    "program": str,
    "dtype": (*DTYPES, "float64"),
}
"""What an entry can say of where it applies: a type, or the allowed values."""
CHOICES = ("warps", "stages", "rewrites", "used")
MEASURED: dict[str, type | tuple[type, ...]] = {
    "ms": (float, int),
    "policy_ms": (float, int),
    "of_limit": (float, int),
    "layer": str,
    "shape": str,
    "shapes": list,
    "device": str,
    "torch": str,
    "triton": str,
    "tilelang": str,
    "date": date,
}
"""How an entry was measured: medians of the whole pass in milliseconds, with this entry and with the policy;
the fraction of the speed at which the pass would only move its inputs and outputs; where and when.  Over
several `shapes` they are geometric means."""

HEADER = "# Measured choices, written by `based-ops tune`.  Their format: codegen/schedule/record_file.py.\n"


class RecordError(BasedOpsError, ValueError):
    """A tuning record that cannot be read, or that no longer fits the program it names."""

    remedy = "tune the layer again with `based-ops tune NAME`, or delete the record"


@dataclass(frozen=True)
class Entry:
    """One record."""

    facts: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    warps: int | None = None
    stages: int | None = None
    rewrites: tuple[str, ...] | None = None
    used: bool | None = None
    """False where the program in whose place this one could run is faster."""
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "{" + ", ".join(f"{key}: {value}" for key, value in self.facts.items()) + "}"


@dataclass(frozen=True)
class Book:
    """All records of one architecture."""

    serves: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
    """For each mixer, why that backend serves it and not the other."""


def load(path: Path) -> Book:
    """The records of a file, none if there is no file; raises `RecordError`."""
    if not path.is_file():
        return Book()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RecordError(f"{path}: {error}") from error
    return book(data, str(path))


def book(data: object, where: str) -> Book:
    """Records from plain data; `where` begins every error."""
    if not isinstance(data, dict):
        raise RecordError(f"{where}: must be a mapping with `serves` and `settings`")
    for key in data:
        _known(where, key, ("serves", "why", "settings"))
    serves = data.get("serves") or {}
    for mixer, backend in serves.items():
        _known(f"{where}: serves", mixer, mixers())
        _value(f"{where}: serves: {mixer}", backend, BACKENDS)
    why = data.get("why") or {}
    for mixer, reason in why.items():
        _known(f"{where}: why", mixer, mixers())
        _value(f"{where}: why: {mixer}", reason, str)
    settings = data.get("settings") or []
    if not isinstance(settings, list):
        raise RecordError(f"{where}: settings: must be a list")
    entries = tuple(entry(item, f"{where}: entry {i}") for i, item in enumerate(settings, 1))
    return Book(serves, entries, why)


def entry(data: object, where: str) -> Entry:
    """One record from plain data."""
    if not isinstance(data, dict):
        raise RecordError(f"{where}: must be a mapping, not {data!r}")
    sizes = {key: value for key, value in data.items() if isinstance(key, str) and key.isupper()}
    for key, value in data.items():
        if key in sizes or key in ("warps", "stages"):
            if type(value) is not int or value < 1:
                raise RecordError(f"{where}: {key}: {value!r} must be a positive integer")
        elif key in FACTS:
            _value(f"{where}: {key}", value, FACTS[key])
        else:
            _known(where, key, (*FACTS, *CHOICES, "measured"))
    rewrites = data.get("rewrites")
    if rewrites is not None:
        if not isinstance(rewrites, list):
            raise RecordError(f"{where}: rewrites: {rewrites!r} must be a list")
        for name in rewrites:
            _value(f"{where}: rewrites", name, (*REWRITES, *sorted(orders.NAMES)))
    used = data.get("used")
    if used is not None:
        _value(f"{where}: used", used, bool)
    measured = data.get("measured") or {}
    if not isinstance(measured, dict):
        raise RecordError(f"{where}: measured: {measured!r} must be a mapping")
    for key, value in measured.items():
        _known(f"{where}: measured", key, MEASURED)
        if not isinstance(value, MEASURED[key]) or isinstance(value, bool):
            raise RecordError(f"{where}: measured: {key}: {value!r} is of the wrong type")
    return Entry(
        {key: data[key] for key in FACTS if key in data},
        sizes,
        data.get("warps"),
        data.get("stages"),
        None if rewrites is None else tuple(rewrites),
        used,
        measured,
    )


def text(records: Book) -> str:
    """The file of these records: sorted by what they apply to, three lines an entry."""
    lines = [HEADER, f"serves: {_flow(dict(records.serves))}\n"]
    lines += (
        ["why:\n", *(f"  {mixer}: {reason}\n" for mixer, reason in records.why.items())]
        if records.why
        else []
    )
    if not records.entries:
        return "".join(lines) + "settings: []\n"
    lines.append("settings:\n")
    for item in sorted(records.entries, key=_order):
        choices = {"warps": item.warps, "stages": item.stages, "used": item.used}
        chosen: dict[str, Any] = dict(item.sizes) | {k: v for k, v in choices.items() if v is not None}
        if item.rewrites is not None:
            chosen["rewrites"] = list(item.rewrites)
        parts = [_flow(dict(item.facts)), _flow(chosen)]
        if item.measured:
            parts.append(_flow({"measured": dict(item.measured)}))
        lines.append("  - {" + ",\n     ".join(part[1:-1] for part in parts if part != "{}") + "}\n")
    return "".join(lines)


def merged(
    records: Book, fresh: Iterable[Entry], replaces: Iterable[str], keeps: Collection[str] = ()
) -> Book:
    """The records with `fresh` among them; entries that agree with one of those in all of `replaces` go.

    Those of the programs in `keeps` stay.
    """
    fresh, keys = tuple(fresh), tuple(replaces)
    taken = [{key: item.facts.get(key) for key in keys} for item in fresh]
    kept = [
        item
        for item in records.entries
        if item.facts.get("program") in keeps or {key: item.facts.get(key) for key in keys} not in taken
    ]
    return Book(records.serves, (*kept, *fresh), records.why)


def _order(item: Entry) -> list[tuple[bool, str]]:
    """Sorts by facts in their order; the general before the special, which overrides it."""
    return [
        (key in item.facts, f"{value:05d}" if type(value := item.facts.get(key)) is int else str(value))
        for key in FACTS
    ]


def _flow(data: Mapping[str, Any]) -> str:
    """Plain data on one line of YAML."""
    return yaml.safe_dump(dict(data), default_flow_style=True, sort_keys=False, width=10**6).strip()


def _known(where: str, key: object, allowed: Iterable[str]) -> None:
    names = tuple(allowed)
    if key not in names:
        near = nearest_name(str(key), names)
        hint = f"did you mean `{near}`?" if near else f"allowed: {', '.join(names)}"
        raise RecordError(f"{where}: unknown key `{key}` ({hint})")


def _value(where: str, value: object, allowed: type | tuple[object, ...]) -> None:
    if isinstance(allowed, tuple):
        if value not in allowed:
            names = [str(name) for name in allowed]
            near = nearest_name(str(value), names)
            hint = f"did you mean `{near}`?" if near else f"allowed: {', '.join(names)}"
            raise RecordError(f"{where}: `{value}` is not known ({hint})")
    elif type(value) is not allowed:
        raise RecordError(f"{where}: {value!r} must be of type {allowed.__name__}")
