"""The schedule of a program: the policy's, with what tuning records override."""

from __future__ import annotations

from ..ir.nodes import Program
from ..spec.model import LayerSpec
from . import records
from .model import Schedule
from .policy import policy


def choose(spec: LayerSpec, program: Program, target: str) -> Schedule:
    """The schedule of `program` for one kind of generated module."""
    return records.apply(spec, program, policy(spec, program, target))
