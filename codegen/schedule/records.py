"""Tuning records: measured choices that override the policy, one YAML file an architecture.

A record applies to every layer that agrees with the facts it names.  `based-ops tune` writes the facts that
decide what a layer's programs are, and not its name: a layer of the same meaning has the same records under
any name.  A record of a program or of a size that is no longer there is an error, which says how to mend it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..ir.host import Pass
from ..ir.kernels import LaunchPlan, Sized
from ..spec.model import LayerSpec
from .legal import IllegalSchedule, require_legal
from .model import HOST_C, Schedule, Setting
from .record_file import Book, Entry, RecordError, load

DIRECTORY = Path(__file__).parent / "records"
ARCHITECTURE = {"triton": "sm_90", "tilelang": "sm_90", "torch": "cpu", HOST_C: "cpu"}
"""The architecture that each kind of generated module is scheduled for."""


@functools.cache
def book(architecture: str) -> Book:
    """The records of an architecture."""
    return load(DIRECTORY / f"{architecture}.yaml")


def serves(spec: LayerSpec) -> dict[str, str]:
    """The backend that serves a layer on each kind of device."""
    return {"cuda": book("sm_90").serves.get(spec.mixer, "triton"), "cpu": "torch"}


def layer_facts(spec: LayerSpec) -> dict[str, Any]:
    """What decides which programs a layer has and how large their tensors are."""
    return {"mixer": spec.mixer, **spec.facts()}


def apply(spec: LayerSpec, subject: Sized, schedule: Schedule) -> Schedule:
    """The schedule with every choice that a record overrides; raises `RecordError` if one does not fit."""
    architecture = ARCHITECTURE[schedule.backend]
    settings, rewrites = dict(schedule.settings), {}
    for dtype in schedule.settings:
        for entry in book(architecture).entries:
            if applies(entry, spec, schedule.backend, subject.name, dtype):
                settings[dtype] = _override(entry, settings[dtype], subject, architecture)
                trial = replace(schedule, settings={dtype: settings[dtype]})
                try:
                    require_legal(subject, trial)
                except IllegalSchedule as error:
                    raise _stale(
                        architecture, entry, f"the layer {spec.name} does not admit it: {error}"
                    ) from error
                if entry.rewrites is not None:
                    rewrites[entry.rewrites] = entry
    if len(rewrites) > 1:
        entries = " and ".join(map(str, rewrites.values()))
        raise RecordError(
            f"records {architecture}: {entries}: one program has one set of rewrites in all dtypes"
        )
    return replace(schedule, settings=settings, rewrites=next(iter(rewrites), schedule.rewrites))


def applies(entry: Entry, spec: LayerSpec, backend: str, program: str, dtype: str) -> bool:
    """Whether an entry is about this program in this dtype."""
    facts = {"name": spec.name, "backend": backend, "program": program, "dtype": dtype}
    return _agrees(entry, layer_facts(spec) | facts, ignoring={"pass"})


def require_current(
    spec: LayerSpec, subjects: Collection[Sized], passes: Iterable[Pass], backend: str
) -> None:
    """Raise `RecordError` if a record of this layer names a program that is not there, or not in its pass."""
    architecture = ARCHITECTURE[backend]
    facts = layer_facts(spec) | {"backend": backend}
    launched = {(part.part, name) for part in passes for name in part.launches}
    planned = {(plan.part, plan.name) for plan in subjects if isinstance(plan, LaunchPlan)}
    names = {subject.name for subject in subjects}
    for entry in book(architecture).entries:
        program, part = entry.facts.get("program"), entry.facts.get("pass")
        # An entry that leaves much of the layer open may be about other layers, and programs may be there for
        # dtypes that this one lacks.
        ours = "name" in entry.facts or entry.facts.keys() >= facts.keys()
        ours = ours and entry.facts.get("dtype", "float64") in (*spec.dtypes, "float64")
        known = facts | {"name": spec.name}
        if program is None or not ours or not _agrees(entry, known, ignoring={"pass", "program", "dtype"}):
            continue
        if program not in names:
            raise _stale(architecture, entry, f"the layer {spec.name} has no program of that name")
        if part is not None and (part, program) not in launched | planned:
            raise _stale(architecture, entry, f"the pass {part} of the layer {spec.name} has no such program")


def _agrees(entry: Entry, facts: Mapping[str, Any], ignoring: Collection[str]) -> bool:
    """Whether an entry says nothing else than `facts`; what is no fact of this layer is said of others."""
    return all(facts.get(key) == value for key, value in entry.facts.items() if key not in ignoring)


def _override(entry: Entry, setting: Setting, subject: Sized, architecture: str) -> Setting:
    if unknown := [name for name in entry.sizes if name not in subject.constants]:
        has = ", ".join(subject.constants) or "none"
        raise _stale(architecture, entry, f"the program has no {', '.join(unknown)}, only {has}")
    return Setting(
        setting.constants | dict(entry.sizes),
        entry.warps or setting.warps,
        entry.stages or setting.stages,
        setting.used if entry.used is None else entry.used,
        origin=_origin(entry, architecture),
    )


def _origin(entry: Entry, architecture: str) -> str:
    """Where a setting comes from, for people."""
    measured = entry.measured
    told = []
    if "ms" in measured:
        several = f" over {len(measured['shapes'])} shapes" if "shapes" in measured else ""
        one = f" at {measured['shape']}" if "shape" in measured else ""
        told.append(f"{measured['ms']:.3g} ms{one}{several}")
    if "of_limit" in measured:
        told.append(f"{100 * measured['of_limit']:.0f} % of limit")
    if versions := [
        f"{name} {measured[name]}" for name in ("torch", "triton", "tilelang") if name in measured
    ]:
        told.append(" ".join(versions))
    return f"record {architecture}" + (": " + ", ".join(told) if told else "")


def _stale(architecture: str, entry: Entry, why: str) -> RecordError:
    facts = entry.facts
    layer = entry.measured.get("layer") or facts.get("name") or "NAME"
    options = "".join(f" --{key} {facts[key]}" for key in ("backend", "pass", "dtype") if key in facts)
    return RecordError(
        f"{DIRECTORY / architecture}.yaml: the record {entry} is stale: {why}; "
        f"measure again with `based-ops tune {layer}{options}`, or delete it"
    )
