"""What an emitter is given: one layer, lowered and scheduled for one backend."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.check import Types, check
from ..ir.host import Pass
from ..ir.nodes import Program
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


@dataclass(frozen=True)
class ScheduledLayer:
    """Everything that a generated module is printed from."""

    spec: LayerSpec
    backend: str
    programs: tuple[ScheduledProgram, ...]
    passes: tuple[Pass, ...]
    plans: tuple[Schedule, ...] = ()
    """How passes choose what to launch: settings named after the pass."""

    def find(self, program: str) -> ScheduledProgram:
        return next(p for p in self.programs if p.program.name == program)
