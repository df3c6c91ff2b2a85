"""What a search found, as records in the file of the architecture that it ran on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from based_ops.codegen import pipeline
from based_ops.codegen.ir.kernels import LaunchPlan
from based_ops.codegen.schedule import record_file, space
from based_ops.codegen.schedule.policy import policy
from based_ops.codegen.schedule.record_file import Entry
from based_ops.codegen.schedule.records import layer_facts

from .trials import Outcome

VERSIONS = {"triton": ("torch", "triton"), "tilelang": ("torch", "tilelang"), "torch": ("torch",)}
"""Packages whose versions a measurement of each backend depends on."""
DIGITS = 4
"""Significant digits of what is written."""


def of_limit(outcome: Outcome, machine: Mapping[str, Any]) -> float:
    """The fraction of the speed at which the pass would only read its inputs and write its outputs."""
    return 1e3 * outcome.bytes / machine["bandwidth"] / outcome.ms


def entries(outcome: Outcome, machine: Mapping[str, Any], today: date) -> list[Entry]:
    """One record for each program or plan that was tuned, whether or not it is the policy's choice."""
    job = outcome.job
    lowered = pipeline.lower(job.spec)
    kernels = pipeline.kernels(lowered, job.backend)
    shapes = [str(shape) for shape in job.shapes]
    measured = {
        "ms": _rounded(outcome.ms),
        "policy_ms": _rounded(outcome.policy_ms),
        "of_limit": _rounded(of_limit(outcome, machine)),
        "layer": job.spec.name,
        **({"shapes": shapes} if job.plan else {"shape": shapes[0]}),
        "device": machine["device"],
        **{name: machine[name] for name in VERSIONS[job.backend]},
        "date": today,
    }
    found = []
    for subject in (*kernels, *pipeline.plans_of(lowered, job.backend)):
        if subject.name not in outcome.schedules:
            continue
        chosen = outcome.schedules[subject.name]
        setting = chosen.settings[job.dtype]
        default = policy(job.spec, subject, job.backend)
        keep = (
            space.fixed_in_plan(subject, kernels, default.only(job.dtype))
            if isinstance(subject, LaunchPlan)
            else space.fixed(kernels)
        )
        open_choices = space.choices(subject, chosen.only(job.dtype), keep)
        found.append(
            Entry(
                _facts(outcome) | {"program": subject.name, "dtype": job.dtype},
                {name: size for name, size in setting.constants.items() if name in open_choices},
                setting.warps if "warps" in open_choices else None,
                setting.stages if "stages" in open_choices else None,
                chosen.rewrites if chosen.rewrites != default.rewrites else None,
                None if setting.used else False,
                measured,
            )
        )
    return found


def write(directory: Path, found: list[Outcome], machine: Mapping[str, Any], today: date) -> Path | None:
    """Put the records of these outcomes into the architecture's file; its path, or None if there are none.

    They replace all records of the same pass in the same dtype on the same backend, stale ones too, but for
    the launch plan where programs were tuned, programs where it was, and those in whose place others run.
    """
    if not found:
        return None
    path = directory / f"{machine['architecture']}.yaml"
    book = record_file.load(path)
    for outcome in found:
        replaces = [*_facts(outcome), "dtype"]
        lowered, backend = pipeline.lower(outcome.job.spec), outcome.job.backend
        known = (*pipeline.kernels(lowered, backend), *pipeline.plans_of(lowered, backend))
        untouched = {subject.name for subject in known} - {*outcome.schedules}
        book = record_file.merged(book, entries(outcome, machine, today), replaces, untouched)
    directory.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(record_file.text(book), encoding="utf-8")
    part.replace(path)
    return path


def _facts(outcome: Outcome) -> dict[str, Any]:
    job = outcome.job
    return layer_facts(job.spec) | {"backend": job.backend, "pass": job.which}


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
