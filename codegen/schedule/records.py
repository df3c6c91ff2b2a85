"""Tuning records: measured choices that override the policy, one YAML file an architecture.

    serves: {linear_attention: triton, sliding_window: triton}      # the fastest backend by mixer
    settings:
      - {backend: triton, program: outputs, qk: 16, v: 64, dtype: bfloat16, CHUNK: 128, warps: 8, stages: 2}

A record applies to every layer that agrees with the fields it names (mixer, name, qk, v, dtype, ...).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..ir.nodes import Program
from ..spec.model import LayerSpec
from .model import Schedule, Setting

ARCHITECTURE = "sm_90"


def serves(spec: LayerSpec) -> dict[str, str]:
    """The backend that serves a layer on each kind of device."""
    return {"cuda": _records().get("serves", {}).get(spec.mixer, "triton"), "cpu": "torch"}


def apply(spec: LayerSpec, program: Program, schedule: Schedule) -> Schedule:
    """The schedule with every choice that a record overrides."""
    settings, used = dict(schedule.settings), False
    for dtype, setting in schedule.settings.items():
        facts = {
            "backend": schedule.backend,
            "program": program.name,
            "mixer": spec.mixer,
            "name": spec.name,
            "qk": spec.head_dims.qk,
            "v": spec.head_dims.v,
            "dtype": dtype,
            "map": getattr(getattr(spec, "feature_map", None), "kind", None),
        }
        for record in _records().get("settings", ()):
            if all(facts[key] == value for key, value in record.items() if key in facts):
                setting, used = _override(setting, record), True
        settings[dtype] = setting
    return replace(schedule, settings=settings, origin=f"record {ARCHITECTURE}" if used else schedule.origin)


def apply_plan(spec: LayerSpec, plan: Schedule) -> Schedule:
    """The plan of a pass with every choice that a record overrides."""
    return plan


def _override(setting: Setting, record: dict[str, Any]) -> Setting:
    constants = {name: record.get(name, value) for name, value in setting.constants.items()}
    return Setting(constants, record.get("warps", setting.warps), record.get("stages", setting.stages))


@functools.cache
def _records() -> dict[str, Any]:
    path = Path(__file__).parent / "records" / f"{ARCHITECTURE}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
