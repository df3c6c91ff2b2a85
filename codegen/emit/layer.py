"""What an emitter is given: one layer, lowered and scheduled for one backend."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.check import Types, check
from ..ir.host import Pass
from ..ir.kernels import ForeignKernel, Kernel
from ..ir.program import Program
from ..ir.rewrite import rewritten
from ..schedule.legal import require_legal
from ..schedule.model import Schedule
from ..spec.model import LayerSpec


@dataclass(frozen=True)
class ScheduledProgram:
    """A program after its schedule's rewrites, with the types of its variables."""

    program: Program
    schedule: Schedule
    types: Types

    @staticmethod
    def of(program: Program, schedule: Schedule) -> ScheduledProgram:
        require_legal(program, schedule)

        def size(constant: str) -> int:
            return max(schedule.values(constant))

        program = rewritten(program, schedule.rewrites, size)
        return ScheduledProgram(program, schedule, check(program))

    @property
    def kernel(self) -> Program:
        """How it is launched."""
        return self.program


@dataclass(frozen=True)
class ScheduledForeign:
    """A kernel printed by hand, with its schedule."""

    kernel: ForeignKernel
    schedule: Schedule
    architecture: str = "sm_90"
    """The GPUs that it is printed for."""


ScheduledKernel = ScheduledProgram | ScheduledForeign


def scheduled(kernel: Kernel, schedule: Schedule) -> ScheduledKernel:
    """A kernel with its schedule, which has to be legal."""
    if isinstance(kernel, ForeignKernel):
        require_legal(kernel, schedule)
        return ScheduledForeign(kernel, schedule)
    return ScheduledProgram.of(kernel, schedule)


@dataclass(frozen=True)
class ScheduledLayer:
    """Everything that a generated module is printed from."""

    spec: LayerSpec
    backend: str
    kernels: tuple[ScheduledKernel, ...]
    passes: tuple[Pass, ...]
    plans: tuple[Schedule, ...] = ()
    """How passes choose what to launch: settings named after launch plans."""

    @property
    def programs(self) -> tuple[ScheduledProgram, ...]:
        """Its tile programs alone."""
        return tuple(scheduled for scheduled in self.kernels if isinstance(scheduled, ScheduledProgram))

    def find(self, name: str) -> ScheduledKernel:
        return next(scheduled for scheduled in self.kernels if scheduled.kernel.name == name)
