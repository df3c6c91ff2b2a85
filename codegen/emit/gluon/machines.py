"""The machines that kernels are printed for, by their architectures."""

from __future__ import annotations

from .blackwell import Blackwell
from .hopper import Hopper
from .machine import Machine

HOPPER = "sm_90"
MACHINES: dict[str, type[Machine]] = {HOPPER: Hopper, "sm_100": Blackwell}
