"""The schedule of a kernel or plan: the policy's, with what tuning records override."""

from __future__ import annotations

from ..ir.kernels import Sized
from ..spec.model import LayerSpec
from . import records
from .model import Schedule
from .policy import policy


def choose(spec: LayerSpec, subject: Sized, target: str) -> Schedule:
    """The schedule of a kernel or plan for one kind of generated module."""
    return records.apply(spec, subject, policy(spec, subject, target))
